"""A picture of a run of sequential Monte Carlo. matplotlib is imported when one is drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from nflib.montecarlo.history import History

__all__ = ["plot_history"]


def plot_history(history: History, path: str | Path | None = None) -> Any:
    """Plot a run of `smc`: effective sample sizes, ancestors, acceptance, step sizes, normaliser at each temperature.

    Args:
        history: of the run, `SMCSamples.history`.
        path: of an image that is written as well, if one is given.

    Returns:
        The matplotlib figure.

    Raises:
        ValueError: an empty history.
    """
    if len(history) == 0:
        raise ValueError("plot_history: the history is empty; run smc first.")
    from matplotlib.figure import Figure

    number = np.arange(1, len(history) + 1)
    figure = Figure(figsize=(11.0, 6.0), layout="constrained")
    (sizes, ancestors, path_axes), (acceptance, steps, evidence) = figure.subplots(2, 3, sharex=True)

    fractions = np.asarray(history.effective_sample_size_fraction)
    sizes.plot(number, fractions, label="effective")
    sizes.plot(number, history.conditional_ess_fraction, label="conditional")
    resampled = np.asarray(history.resampled)
    sizes.plot(number[resampled], fractions[resampled], "k|", label="resampled")
    sizes.set(ylabel="sample size / N", ylim=(0.0, 1.05))
    sizes.legend()
    ancestors.semilogy(number, history.num_ancestors)
    ancestors.set(ylabel="ancestors left")
    path_axes.semilogy(number, history.inverse_temperatures)
    path_axes.set(ylabel="inverse temperature")
    acceptance.plot(number, history.acceptance)
    acceptance.set(ylabel="acceptance", ylim=(0.0, 1.05))
    moves = np.arange(1, len(history.step_sizes) + 1) * len(history) / len(history.step_sizes)
    steps.semilogy(moves, history.step_sizes)
    steps.set(ylabel="step size")
    evidence.plot(number, np.cumsum(history.log_normalizer_increments))
    evidence.set(ylabel="log-normaliser so far / nats")
    for axes in (acceptance, steps, evidence):
        axes.set(xlabel="temperature number")
    if path is not None:
        figure.savefig(Path(path), dpi=150)
    return figure
