"""Fits of the monotone splines of `GaussianizeMarginals` and its relatives, one coordinate at a time, in float64."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from scipy.special import ndtr, ndtri
from torch import Tensor

from nflib.transforms._intervals import closed, rounded_outward

MIN_SAMPLES = 32
CURVE_POINTS = 4001
SMOOTHING_NODES = 9  # quantiles averaged per knot
MIN_WIDTH_FRACTION = 1e-3  # no bin is narrower than this fraction of the mean width: ties in the data stay invertible
MAX_SLOPE_RATIO = 4.0  # slope at a knot over the mean slope of a neighbouring bin: no deep dip of the density inside
MIN_TAIL_COUNT = 10.0  # data points beyond the outermost quantile knot
MIN_BINS_FOR_ENDS = 8  # with fewer, the outermost quantiles are wanted where they are
# Scales that float32 holds with their reciprocals and fractions in full precision, subnormal numbers flushed to zero.
SMALLEST = float(np.finfo(np.float32).tiny / np.finfo(np.float32).eps)
LARGEST = 1 / SMALLEST


def check_fit(name: str, data: Tensor, uniform_fraction: float) -> None:
    """Raise ValueError for too few data ``(N, *event_shape)``, or a share that is none."""
    if data.dim() < 2 or data.shape[0] < MIN_SAMPLES:
        raise ValueError(f"{name}: data has shape {tuple(data.shape)}; pass (N, *event_shape) with N >= {MIN_SAMPLES}.")
    if not 0.0 < uniform_fraction < 1.0:
        raise ValueError(f"{name}: uniform_fraction is {uniform_fraction}; use one in (0, 1).")


def fit_coordinate(
    values: np.ndarray,
    interval: tuple[float, float] | None,
    num_bins: int,
    uniform_fraction: float,
    name: str,
    dtype: torch.dtype,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Knots and slopes of one coordinate from its sorted data, float64.

    name: what messages call it, and the fit. dtype: in which the data were given.
    """
    if not np.isfinite(values).all():
        raise ValueError(f"{name} has non-finite data; remove those samples.")
    if values[0] == values[-1]:
        raise ValueError(f"{name} is constant; leave it out of the event.")
    count = len(values)
    levels = (np.arange(count) + 0.5) / count
    if interval is None:
        x, y = (_widened(knots) for knots in _smoothed_knots(levels, values, num_bins + 1))
    else:
        low, high = interval
        ends = rounded_outward(low, high)
        rounded = torch.tensor([float(end) for end in ends], dtype=torch.float64)
        lowest, highest = closed(rounded[0], rounded[1], dtype)
        if values[0] < lowest.item() or values[-1] > highest.item():
            raise ValueError(f"{name} has data outside [{low:g}, {high:g}]; wrap or drop such values first.")
        values = values.clip(low, high)
        levels = (1 - uniform_fraction) * levels + uniform_fraction * (values - low) / (high - low)
        levels, values = np.r_[0.0, levels, 1.0], np.r_[low, values, high]
        inner, z = _smoothed_knots(levels, values, num_bins - 1)
        probabilities = ndtr(_widened(z))
        if num_bins >= MIN_BINS_FOR_ENDS:
            _end_where_data_end(inner, probabilities, values, uniform_fraction)
        x, y = _widened(np.r_[low, inner, high]), np.r_[0.0, probabilities, 1.0]
        x[0], x[-1] = ends
    scale = x[-1] - x[0]
    if scale == 0:
        raise ValueError(f"{name} has nearly all values equal; leave it out of the event.")
    if not SMALLEST <= scale <= LARGEST or np.abs(x).max() > LARGEST:
        raise ValueError(
            f"{name} is of scale {scale:g}, beyond the range of float32; rescale it to between {SMALLEST:.0e} and "
            f"{LARGEST:.0e}."
        )
    x, y = x.astype(np.float32), y.astype(np.float32)
    if not ((np.diff(x) > 0).all() and (np.diff(y) > 0).all()):
        raise ValueError(f"{name} has a spread below the float32 precision of its values; subtract its mean first.")
    mean_slopes = np.diff(y.astype(np.float64)) / np.diff(x.astype(np.float64))
    return x, y, _knot_slopes(mean_slopes, np.diff(x.astype(np.float64))).astype(np.float32)


def _end_where_data_end(knots: np.ndarray, probabilities: np.ndarray, values: np.ndarray, uniform: float) -> None:
    """Moves an interval's first and last inner knot outwards to where the data end, if they leave that end empty.

    That is as far beyond the outermost value as the knot was within it; what is beyond is uniform alone. Otherwise the
    share of the data beyond the knot, MIN_TAIL_COUNT over their number, would be spread over all that is empty.
    values: sorted, between the interval's ends. uniform: the share of the uniform distribution.
    """
    low, high = values[0], values[-1]
    first, last = 2 * values[1] - knots[0], 2 * values[-2] - knots[-1]
    if low < first < knots[0]:
        knots[0], probabilities[0] = first, uniform * (first - low) / (high - low)
    if knots[-1] < last < high:
        knots[-1], probabilities[-1] = last, 1 - uniform * (high - last) / (high - low)


def _smoothed_knots(levels: np.ndarray, values: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """`count` points (x, z) on the curve of quantile against normal score, averaged over one knot spacing.

    The knots are equidistant in the sum of x and z, each in units of its range: modes and the gaps between
    them both get their share. Averaging along the curve is exact for Gaussian data.
    """
    z_max = -ndtri(np.clip(MIN_TAIL_COUNT / len(levels), ndtr(-3.0), 0.25))
    z = np.linspace(-z_max - 1.0, z_max + 1.0, CURVE_POINTS)
    x = np.interp(ndtr(z), levels, values)
    low, high = np.interp([-z_max, z_max], z, x)
    if low == high:  # nearly all the data tie
        low, high = x[0], x[-1] if x[-1] > x[0] else x[0] + max(1.0, abs(x[0]))
    position = z / (2 * z_max) + (x - low) / (high - low)
    knots = np.linspace(-0.5, 1.5, count)
    offsets = (knots[1] - knots[0]) * ((np.arange(SMOOTHING_NODES) + 0.5) / SMOOTHING_NODES - 0.5)
    nodes = knots[:, None] + offsets
    return np.interp(nodes, position, x).mean(axis=1), np.interp(nodes, position, z).mean(axis=1)


def _widened(x: np.ndarray) -> np.ndarray:
    """The same range with a small share of equal widths mixed in, so that no bin is empty."""
    return (1 - MIN_WIDTH_FRACTION) * x + MIN_WIDTH_FRACTION * np.linspace(x[0], x[-1], len(x))


def _knot_slopes(mean_slopes: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """Positive slopes at the knots: weighted geometric means of the two bins (Delbourgo & Gregory 1985)."""
    log_slopes = np.log(mean_slopes)
    share = widths[1:] / (widths[:-1] + widths[1:])
    inner = share * log_slopes[:-1] + (1 - share) * log_slopes[1:]
    cap = np.minimum(log_slopes[:-1], log_slopes[1:]) + math.log(MAX_SLOPE_RATIO)
    return np.exp(np.r_[log_slopes[0], np.minimum(inner, cap), log_slopes[-1]])


def flat_intervals(
    intervals: Mapping[int | tuple[int, ...], tuple[float, float]] | Tensor | None,
    event_shape: torch.Size,
    bounds: tuple[float, float],
) -> dict[int, tuple[float, float]]:
    """Bounds by flat coordinate."""
    if intervals is None:
        return {}
    if isinstance(intervals, Tensor):
        if intervals.dtype != torch.bool or intervals.shape != event_shape:
            raise ValueError(
                f"GaussianizeMarginals.fit: the interval mask must be a bool tensor of the event "
                f"shape {tuple(event_shape)}."
            )
        result = {int(i): bounds for i in intervals.flatten().nonzero().flatten()}
    else:
        result = {}
        for index, pair in intervals.items():
            multi = (index,) if isinstance(index, int) else tuple(index)
            try:
                result[int(np.ravel_multi_index(multi, event_shape))] = pair
            except ValueError as error:
                raise ValueError(
                    f"GaussianizeMarginals.fit: {index} is no index into event shape {tuple(event_shape)}."
                ) from error
    for low, high in result.values():
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ValueError(f"GaussianizeMarginals.fit: ({low}, {high}) is no bounded interval; pass finite a < b.")
    return result
