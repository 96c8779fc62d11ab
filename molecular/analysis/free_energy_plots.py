"""Figures of free energies."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from molecular.analysis.free_energy import FreeEnergy
from molecular.analysis.observables import CollectiveVariable
from molecular.analysis.plots import DEEPEST
from nflib.page import COLORS, DOTS_PER_INCH, REFERENCE_COLOR, drawing_style

LINE = COLORS[1]
_CONTOURS = 8
# The axis of a profile ends this many kT above its lowest bin.
_HIGHEST = 12.0


@drawing_style()
def draw(surface: FreeEnergy, path: str | Path, *, title: str = "") -> None:
    """Draw a profile with its error band, or a map with contours beside its errors.

    Args:
        surface: the profile or map.
        path: of the PNG.
        title: above it.
    """
    _figure(_panels(surface), title).savefig(path, dpi=DOTS_PER_INCH)


@drawing_style()
def figures(surface: FreeEnergy) -> list[Figure]:
    """What `draw` shows, as matplotlib figures, one for each panel, for pages that show one below the other."""
    return [_figure([panel]) for panel in _panels(surface)]


def _panels(surface: FreeEnergy) -> list[Callable[[Figure, Axes], None]]:
    if len(surface.variables) == 1:
        return [partial(_profile, surface)]
    # On the scale of other maps: so many kT above the lowest bin.
    highest = min(DEEPEST * surface.scale, np.nanmax(_finite(surface.values), initial=surface.scale))
    return [
        partial(_map, surface, surface.values, "free energy", "viridis", highest),
        partial(_map, surface, surface.errors, "standard error", "magma", None),
    ]


def _figure(panels: list[Callable[[Figure, Axes], None]], title: str = "") -> Figure:
    figure = Figure(figsize=(5.4 * len(panels), 4.2), layout="compressed")  # maps are square
    FigureCanvasAgg(figure)
    for panel, axes in zip(panels, figure.subplots(1, len(panels), squeeze=False)[0], strict=True):
        panel(figure, axes)
    if title:
        figure.suptitle(title)
    return figure


def _profile(surface: FreeEnergy, _: Figure, axes: Axes) -> None:
    (variable,), (edges,) = surface.variables, surface.edges
    values = _finite(surface.values)
    known = np.isfinite(surface.errors) & np.isfinite(values)
    low, high = (np.where(known, values + sign * np.where(known, surface.errors, 0.0), np.nan) for sign in (-1, 1))
    centres = (edges[1:] + edges[:-1]) / 2
    # Both ends of each bin: steps drop a bin whose neighbour has no error.
    ends = np.repeat(edges, 2)[1:-1]
    axes.fill_between(ends, np.repeat(low, 2), np.repeat(high, 2), color=LINE, alpha=0.3, linewidth=0)
    # Bins without a known error are dots alone.
    axes.stairs(np.where(known, values, np.nan), edges, baseline=None, color=LINE, linewidth=1.5)
    axes.plot(centres[~known], values[~known], ".", color=REFERENCE_COLOR, markersize=4, label="too few to tell errors")
    axes.set(xlabel=variable.label, ylabel=f"free energy / {surface.unit}", xlim=(edges[0], edges[-1]))
    highest = min(np.nanmax(values, initial=surface.scale), _HIGHEST * surface.scale)
    axes.set_ylim(-0.05 * highest, 1.1 * highest)
    if (~known & np.isfinite(values)).any():
        axes.legend(frameon=False, fontsize="small")
    _mark_degrees(axes.xaxis, variable)
    axes.spines[["top", "right"]].set_visible(False)


def _map(
    surface: FreeEnergy,
    values: NDArray[np.float64],
    label: str,
    colours: str,
    highest: float | None,
    figure: Figure,
    axes: Axes,
) -> None:
    x, y = surface.edges
    shown = _finite(values).T
    image = axes.pcolormesh(x, y, shown, cmap=colours, vmin=0.0, vmax=highest, rasterized=True)
    figure.colorbar(image, ax=axes, label=f"{label} / {surface.unit}")
    axes.set(xlabel=surface.variables[0].label, ylabel=surface.variables[1].label)
    for axis, variable in zip((axes.xaxis, axes.yaxis), surface.variables, strict=True):
        _mark_degrees(axis, variable)
    axes.set_box_aspect(1)
    if highest is not None and min(shown.shape) > 1 and np.isfinite(shown).any():
        centres = [(edges[1:] + edges[:-1]) / 2 for edges in (x, y)]
        levels = np.linspace(0.0, highest, _CONTOURS + 1)[1:]
        axes.contour(*centres, np.ma.masked_invalid(shown), levels=levels, colors="white", linewidths=0.5)


def _mark_degrees(axis: Axis, variable: CollectiveVariable) -> None:
    if variable.period is not None and math.isclose(variable.period, 360.0):
        axis.set_major_locator(MaxNLocator(6, steps=[1, 1.5, 3, 6, 10]))


def _finite(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(np.isfinite(values), values, np.nan)
