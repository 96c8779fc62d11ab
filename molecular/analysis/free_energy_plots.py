"""Figures of free energies."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from molecular.analysis.free_energy import FreeEnergy
from molecular.analysis.plots import COLORS, DEEPEST, DOTS_PER_INCH, REFERENCE_COLOR

_CONTOURS = 8
# The axis of a profile ends this many kT above its lowest bin.
_HIGHEST = 12.0


def draw(surface: FreeEnergy, path: str | Path, *, title: str = "") -> None:
    """A PNG of a profile with its error band, or of a map with contours beside its errors."""
    (_draw_profile if len(surface.variables) == 1 else _draw_map)(surface, path, title)


def _draw_profile(surface: FreeEnergy, path: str | Path, title: str) -> None:
    (variable,), (edges,) = surface.variables, surface.edges
    figure = Figure(figsize=(6.0, 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    values = np.where(np.isfinite(surface.values), surface.values, np.nan)
    known = np.isfinite(surface.errors) & np.isfinite(values)
    low, high = (np.where(known, values + sign * np.where(known, surface.errors, 0.0), np.nan) for sign in (-1, 1))
    centres = (edges[1:] + edges[:-1]) / 2
    axes.fill_between(edges, _to_edges(low), _to_edges(high), step="post", color=COLORS[1], alpha=0.3, linewidth=0)
    # Bins without a known error are dots alone.
    axes.stairs(np.where(known, values, np.nan), edges, baseline=None, color=COLORS[1], linewidth=1.5)
    axes.plot(centres[~known], values[~known], ".", color=REFERENCE_COLOR, markersize=4, label="too few to tell errors")
    axes.set(xlabel=variable.label, ylabel=f"free energy / {surface.unit}", xlim=(edges[0], edges[-1]), title=title)
    highest = min(np.nanmax(values, initial=surface.scale), _HIGHEST * surface.scale)
    axes.set_ylim(-0.05 * highest, 1.1 * highest)
    if (~known & np.isfinite(values)).any():
        axes.legend(frameon=False, fontsize="small")
    if variable.period is not None and math.isclose(variable.period, 360.0):
        axes.set_xticks(range(-180, 181, 60))
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=DOTS_PER_INCH)


def _draw_map(surface: FreeEnergy, path: str | Path, title: str) -> None:
    figure = Figure(figsize=(10.5, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    x, y = surface.edges
    values = np.where(np.isfinite(surface.values), surface.values, np.nan).T
    errors = np.where(np.isfinite(surface.errors), surface.errors, np.nan).T
    # On the scale of other maps: so many kT above the lowest bin.
    highest = min(DEEPEST * surface.scale, np.nanmax(values, initial=surface.scale))
    pairs = ((values, "free energy", "viridis", highest), (errors, "standard error", "magma", None))
    for axes, (shown, label, colours, top) in zip(panels, pairs, strict=True):
        image = axes.pcolormesh(x, y, shown, cmap=colours, vmin=0.0, vmax=top, rasterized=True)
        figure.colorbar(image, ax=axes, label=f"{label} / {surface.unit}")
        axes.set_xlabel(surface.variables[0].label)
        axes.set_box_aspect(1)
    centres = [(edges[1:] + edges[:-1]) / 2 for edges in (x, y)]
    if min(values.shape) > 1 and np.isfinite(values).any():
        levels = np.linspace(0.0, highest, _CONTOURS + 1)[1:]
        panels[0].contour(*centres, np.ma.masked_invalid(values), levels=levels, colors="white", linewidths=0.5)
    panels[0].set_ylabel(surface.variables[1].label)
    if title:
        figure.suptitle(title)
    figure.savefig(path, dpi=DOTS_PER_INCH)


def _to_edges(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """One value an edge, the last one twice, as steps are drawn."""
    return np.append(values, values[-1])
