"""Figures of ensembles."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from nflib.page import COLORS, DOTS_PER_INCH, REFERENCE_COLOR, drawing_style

BINS = 60
DEEPEST = 8.0  # kT above the minimum, the end of the colour scale


Panels = Mapping[str, tuple[NDArray, NDArray | None]]


@dataclass(frozen=True)
class Curve:
    """A histogram for `curves`.

    Args:
        heights: one a bin.
        beyond: share of the ensemble outside of the bins, 0 to 1.
    """

    heights: NDArray
    beyond: float = 0.0


def ramachandran(
    panels: dict[str, tuple[NDArray, NDArray | None]],
    path: str | Path,
    *,
    title: str = "",
    temperature: float = 300.0,
) -> None:
    """Draw Ramachandran maps side by side: free energies of (phi, psi).

    Colours are ``-log p`` in kT above each map's minimum, on one scale; bins that are empty or higher than the scale's
    end stay white.

    Args:
        panels: name -> (angles ``(N, 2)`` in radians, weights ``(N,)`` or None).
        path: of the PNG.
        title: above the maps.
        temperature: K, for the colour bar's label.
    """
    grid = {name: (angles[:, None], weights) for name, (angles, weights) in panels.items()}
    ramachandran_grid(grid, [("φ", "ψ")], path, title=title, temperature=temperature)


@drawing_style()
def ramachandran_grid(
    panels: Panels,
    torsions: Sequence[tuple[str, str]],
    path: str | Path,
    *,
    bins: int = BINS,
    zero: str | None = None,
    title: str = "",
    temperature: float = 300.0,
) -> None:
    """Draw Ramachandran maps, as `ramachandran` does, a row for each residue and a column for each ensemble.

    Args:
        panels: name -> (angles ``(N, residues, 2)`` in radians, weights ``(N,)`` or None).
        torsions: names of phi and psi of each residue.
        path: of the PNG.
        bins: of either angle.
        zero: the ensemble whose minima are the zeros of all maps; None: each map has its own.
        title: above the maps.
        temperature: K, for the colour bar's label.
    """
    figure, rows = _panels(len(torsions), len(panels))
    edges = np.linspace(-180.0, 180.0, bins + 1)
    image: Any = None
    for residue, (row, (phi, psi)) in enumerate(zip(rows, torsions, strict=True)):
        maps = {name: (np.degrees(angles[:, residue]), weights) for name, (angles, weights) in panels.items()}
        image = _free_energies(row, maps, (edges, edges), zero)
        for axes, name in zip(row, panels, strict=True):
            axes.set_aspect("equal")
            axes.set_xticks(range(-90, 91, 90))
            axes.set_yticks(range(-90, 91, 90))
            axes.set_title(name if residue == 0 else "")
            axes.set_xlabel(f"{phi} / degrees")
        row[0].set_ylabel(f"{psi} / degrees")
    _finish(figure, rows, image, path, title, temperature)


@drawing_style()
def plane(
    panels: Panels,
    path: str | Path,
    *,
    labels: tuple[str, str],
    bins: int = BINS,
    zero: str | None = None,
    title: str = "",
    temperature: float = 300.0,
) -> None:
    """Draw free-energy maps in any plane, side by side.

    Args:
        panels: name -> (points ``(N, 2)``, weights ``(N,)`` or None).
        path: of the PNG.
        labels: of the two axes.
        bins: of either axis.
        zero: the ensemble whose minimum is the zero of all maps; None: each map has its own.
        title: above the maps.
        temperature: K, for the colour bar's label.
    """
    points = np.concatenate([points for points, _ in panels.values()])
    low, high = points.min(axis=0), points.max(axis=0)
    margin = 0.03 * np.maximum(high - low, 1e-6)
    edges = tuple(np.linspace(low[k] - margin[k], high[k] + margin[k], bins + 1) for k in (0, 1))
    figure, rows = _panels(1, len(panels))
    image = _free_energies(rows[0], panels, (edges[0], edges[1]), zero)
    for axes, name in zip(rows[0], panels, strict=True):
        axes.set_title(name)
        axes.set_xlabel(labels[0])
        axes.set_box_aspect(1)
    rows[0][0].set_ylabel(labels[1])
    _finish(figure, rows, image, path, title, temperature)


@drawing_style()
def curves(
    panels: Sequence[tuple[NDArray, Mapping[str, Curve]]],
    path: str | Path,
    *,
    labels: Sequence[tuple[str, str]],
    reference: str,
    title: str = "",
) -> None:
    """Draw histograms of several ensembles over each other, and below them their differences from a reference.

    The share outside of the bins is told in the legend.

    Args:
        panels: side by side, each bin edges and name -> `Curve`; colours follow the order of the names.
        path: of the PNG.
        labels: of each panel's two axes.
        reference: the name of the histogram that is filled, from which the others differ.
        title: above the panels.
    """
    figure = Figure(figsize=(5.4 * len(panels) + 1.0, 5.0), layout="constrained")
    FigureCanvasAgg(figure)
    upper, lower = figure.subplots(2, len(panels), squeeze=False, sharex="col", height_ratios=[3, 1])
    for above, below, (edges, drawn), (across, up) in zip(upper, lower, panels, labels, strict=True):
        known = drawn[reference]
        above.stairs(known.heights, edges, fill=True, color=REFERENCE_COLOR, alpha=0.45, label=_told(reference, known))
        others = [(name, curve) for name, curve in drawn.items() if name != reference]
        for index, (name, curve) in enumerate(others):
            color = COLORS[index % len(COLORS)]
            above.stairs(curve.heights, edges, color=color, linewidth=1.5, label=_told(name, curve))
            below.stairs(curve.heights - known.heights, edges, baseline=None, color=color, linewidth=1.5)
        below.axhline(0.0, color=REFERENCE_COLOR, linewidth=0.8)
        above.set(ylabel=up, xlim=(edges[0], edges[-1]))
        above.set_ylim(bottom=0.0)
        below.set(xlabel=across, ylabel="less reference")
        for axes in (above, below):
            axes.spines[["top", "right"]].set_visible(False)
        above.legend(frameon=False, fontsize="small")
    figure.align_ylabels()
    if title:
        figure.suptitle(title)
    figure.savefig(path, dpi=DOTS_PER_INCH)


def _told(name: str, curve: Curve) -> str:
    percent = 100 * curve.beyond
    return name if percent < 0.05 else f"{name} ({percent:.{0 if percent >= 9.95 else 1}f} % outside)"


def _panels(rows: int, columns: int) -> tuple[Figure, Any]:
    # Of one size whatever their number, up to what fits a page.
    size = min(3.2, 16.0 / columns)
    figure = Figure(figsize=(size * columns + 1.2, (size + 0.3) * rows + 0.4), layout="compressed")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False, sharey="row")


def _finish(figure: Figure, rows: Any, image: Any, path: str | Path, title: str, temperature: float) -> None:
    if image is not None:
        label = f"free energy / kT at {temperature:g} K"
        figure.colorbar(image, ax=rows, label=label, shrink=0.9 if len(rows) == 1 else 0.5)
    if title:
        figure.suptitle(title, y=1.05)
    figure.savefig(path, dpi=DOTS_PER_INCH, bbox_inches="tight")


def _free_energies(row: Sequence[Axes], panels: Panels, edges: tuple[NDArray, NDArray], zero: str | None) -> Any:
    """One map an axes; the last image, for the colour bar."""
    densities = {}
    for name, (points, weights) in panels.items():
        counts, _, _ = np.histogram2d(points[:, 0], points[:, 1], bins=edges, weights=weights)
        densities[name] = counts.T / counts.sum()
    image: Any = None
    for axes, density in zip(row, densities.values(), strict=True):
        densest = (density if zero is None else densities[zero]).max()
        with np.errstate(divide="ignore", invalid="ignore"):
            free_energy = -np.log(density / densest)
        free_energy[free_energy > DEEPEST] = np.nan
        image = axes.pcolormesh(*edges, free_energy, cmap="viridis", vmin=0.0, vmax=DEEPEST, rasterized=True)
    return image
