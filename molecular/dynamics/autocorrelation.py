"""How many independent samples correlated series of an angle are worth."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

WINDOW = 5.0
"""Autocorrelations are summed up to this many times the autocorrelation time found so far."""
NOTICEABLE = 0.9
"""Averages over runs of frames are correlated where their autocorrelation time, in runs, is at least that."""
EXCESS = 1.4
"""By how much that time, in frames, is on average too long for a part that decays exponentially: runs of frames are up
to 1.5 times as long as it."""
FEWEST_RUNS = 400
"""Of fewer runs, in all series together, the autocorrelation is noise."""


@dataclass(frozen=True)
class Mixing:
    """How well series mix: the result of `mixing`.

    Args:
        time: integrated autocorrelation time, in frames; 1/2 for independent ones.
        effective_sample_size: of all frames together.
        resolved: False where the series are too short to tell, and all figures only bounds or guesses.
        slowest: autocorrelation time of the slowest part, in frames, which is longer where most of the motion is fast.
    """

    time: float
    effective_sample_size: float
    resolved: bool
    slowest: float


def mixing(angles: NDArray[np.floating]) -> Mixing | None:
    """The autocorrelation time of independent series ``(L, T)`` of an angle, in radians; None for fewer than 4 frames.

    The autocorrelation is that of exp(i angle), which knows no jump at 180 degrees, about the mean of all series:
    series that stay in different places count as correlated. It is summed, ``tau = 1/2 + sum_t rho(t)``, up to the
    first ``t >= 5 tau`` (Sokal, in Functional Integration, 131, 1997); the effective sample size is ``L T / (2 tau)``,
    at most ``L T``. A slow part beneath fast motion is beyond that window, so averages over runs of 2, 4, 8 ... frames
    are judged likewise: a mean over all of them is the same, so tau is theirs times the ratio of variances.
    """
    num_series, length = angles.shape
    if length < 4:
        return None
    z = np.exp(1j * angles.astype(np.float64))
    z -= z.mean()
    variance = np.mean(np.abs(z) ** 2)
    if variance < 1e-12:
        return None  # an angle that never moves has no autocorrelation
    time, resolved = _integrated_time(z)
    slowest, width = time, 1
    while z.size >= 2 * FEWEST_RUNS and z.shape[1] >= 8:
        z, width = 0.5 * (z[:, : z.shape[1] // 2 * 2 : 2] + z[:, 1::2]), 2 * width
        own, closed = _integrated_time(z)
        if own >= NOTICEABLE:
            time = max(time, own * width * float(np.mean(np.abs(z) ** 2) / variance))
            slowest = max(slowest, own * width / EXCESS)
            resolved &= closed
    return Mixing(time, num_series * length / (2.0 * time), resolved, max(slowest, time))


def _integrated_time(z: NDArray[np.complexfloating]) -> tuple[float, bool]:
    """tau of centred series ``(L, T)``, in frames, and whether its window closed."""
    length = z.shape[1]
    size = 2 ** int(np.ceil(np.log2(2 * length)))  # room for no wrap-around
    power = np.abs(np.fft.fft(z, size, axis=1)) ** 2
    covariance = np.fft.ifft(power, axis=1).real[:, :length].sum(0) / np.arange(length, 0, -1)
    rho = covariance / max(covariance[0], np.finfo(np.float64).tiny)
    tau = np.maximum(0.5 + np.concatenate([[0.0], np.cumsum(rho[1:])]), 0.5)
    # The last tenth of the lags is noise; a window that does not close before is none.
    last = max(2, length - length // 10)
    closed = np.nonzero(np.arange(last) >= WINDOW * tau[:last])[0]
    return (float(tau[closed[0]]), True) if len(closed) else (float(tau[:last].max()), False)
