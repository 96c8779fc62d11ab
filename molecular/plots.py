"""Figures of peptide ensembles."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

BINS = 60


def ramachandran(
    panels: dict[str, tuple[NDArray, NDArray | None]],
    path: str | Path,
    *,
    title: str = "",
    temperature: float = 300.0,
) -> None:
    """Free-energy maps of (phi, psi), side by side, as a PNG.

    panels: name -> (angles ``(N, 2)`` in radians, weights ``(N,)`` or None). Colours are ``-log p`` in kT above each
    map's minimum, on one scale; empty bins stay white.
    """
    figure = Figure(figsize=(4.0 * len(panels) + 0.6, 4.3), layout="constrained")
    FigureCanvasAgg(figure)
    row = figure.subplots(1, len(panels), squeeze=False)[0]
    image = None
    for axes, (name, (angles, weights)) in zip(row, panels.items(), strict=True):
        image = _free_energy(axes, angles, weights)
        axes.set_title(name)
        axes.set_xlabel("φ / degrees")
    row[0].set_ylabel("ψ / degrees")
    if image is not None:
        figure.colorbar(image, ax=list(row), label=f"free energy / kT at {temperature:g} K", shrink=0.85)
    if title:
        figure.suptitle(title)
    figure.savefig(path, dpi=150)


def _free_energy(axes: Axes, angles: NDArray, weights: NDArray | None):
    edges = np.linspace(-180.0, 180.0, BINS + 1)
    degrees = np.degrees(angles)
    density, _, _ = np.histogram2d(degrees[:, 0], degrees[:, 1], bins=edges, weights=weights)
    with np.errstate(divide="ignore"):
        free_energy = -np.log(density.T / density.max())
    free_energy[~np.isfinite(free_energy)] = np.nan
    image = axes.pcolormesh(edges, edges, free_energy, cmap="viridis", vmin=0.0, vmax=8.0, rasterized=True)
    axes.set_aspect("equal")
    axes.set_xticks(range(-180, 181, 90))
    axes.set_yticks(range(-180, 181, 90))
    return image
