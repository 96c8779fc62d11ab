"""How many independent samples correlated series of an angle are worth."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

WINDOW = 5.0
"""Autocorrelations are summed up to this many times the autocorrelation time found so far."""


@dataclass(frozen=True)
class Mixing:
    """time: integrated autocorrelation time, in frames, 1/2 for independent ones; effective_sample_size: of all frames
    together; resolved: False where the series are too short to tell, and both figures only bounds or guesses.
    """

    time: float
    effective_sample_size: float
    resolved: bool


def mixing(angles: NDArray[np.floating]) -> Mixing | None:
    """Autocorrelation of independent series ``(L, T)`` of an angle, in radians; None for fewer than 4 frames each.

    The autocorrelation is that of exp(i angle), which knows no jump at 180 degrees, about the mean of all series:
    series that stay in different places count as correlated. It is summed, ``tau = 1/2 + sum_t rho(t)``, up to the
    first ``t >= 5 tau`` (Sokal, in Functional Integration, 131, 1997); the effective sample size is ``L T / (2 tau)``,
    at most ``L T``.
    """
    num_series, length = angles.shape
    if length < 4:
        return None
    z = np.exp(1j * angles.astype(np.float64))
    z -= z.mean()
    size = 2 ** int(np.ceil(np.log2(2 * length)))  # room for no wrap-around
    power = np.abs(np.fft.fft(z, size, axis=1)) ** 2
    covariance = np.fft.ifft(power, axis=1).real[:, :length].sum(0) / np.arange(length, 0, -1)
    if covariance[0] < 1e-12 * num_series:
        return None  # an angle that never moves has no autocorrelation
    rho = covariance / covariance[0]
    tau = np.maximum(0.5 + np.concatenate([[0.0], np.cumsum(rho[1:])]), 0.5)
    # The last tenth of the lags is noise; a window that does not close before is none.
    last = max(2, length - length // 10)
    closed = np.nonzero(np.arange(last) >= WINDOW * tau[:last])[0]
    resolved = len(closed) > 0
    time = float(tau[closed[0]] if resolved else tau[:last].max())
    return Mixing(time, num_series * length / (2.0 * time), resolved)
