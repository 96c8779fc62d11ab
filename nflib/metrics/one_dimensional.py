"""Wasserstein distances on the line, exactly, from the quantile functions."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nflib.metrics.samples import as_weights, check_order, double

__all__ = ["wasserstein_1d"]

# Cumulative weights are known to their rounding; narrower steps between those of x and of y are nothing but that.
NARROWEST = 4 * torch.finfo(torch.float64).eps


@torch.no_grad()
def wasserstein_1d(
    x: Tensor,
    y: Tensor,
    x_weights: Tensor | None = None,
    y_weights: Tensor | None = None,
    *,
    order: float = 2,
) -> Tensor:
    """The Wasserstein distance W_p between weighted samples on the line, exactly, for every leading index.

        W_p^p = int_0^1 |F_x^-1(u) - F_y^-1(u)|^p du,   W_inf = max_u |F_x^-1(u) - F_y^-1(u)|

    The quantile functions are steps, so the integral is a sum over the merged steps and exact to rounding. A sample
    that is not finite and has positive weight makes the distance infinite.

    Args:
        x: samples, `(..., n)`.
        y: samples, `(..., m)`, of the same leading shape.
        x_weights: `(n,)`, not necessarily normalised, for all leading indices; None means equal weights. Shares below
            1e-15 are lost in the rounding of weights and left out.
        y_weights: `(m,)`, likewise.
        order: p, a number from 1 up, or `math.inf`.

    Returns:
        `(...)`, float64, in the unit of the samples.

    Raises:
        ValueError: an order below 1, leading shapes that differ, no samples, or bad weights.

    >>> import torch
    >>> wasserstein_1d(torch.tensor([0.0, 1.0]), torch.tensor([3.0]), order=1)
    tensor(2.5000, dtype=torch.float64)
    >>> wasserstein_1d(torch.tensor([0.0, 1.0]), torch.tensor([3.0]), order=math.inf)
    tensor(3., dtype=torch.float64)
    """
    check_order("wasserstein_1d", order)
    x, y = double(x), double(y)
    if x.dim() == 0 or y.dim() == 0 or x.shape[:-1] != y.shape[:-1] or x.shape[-1] == 0 or y.shape[-1] == 0:
        raise ValueError(
            f"wasserstein_1d: x has shape {tuple(x.shape)} and y {tuple(y.shape)}; pass (..., n) and (..., m) with "
            "the same leading dimensions."
        )
    y = y.to(x.device)
    x_weights = as_weights("wasserstein_1d", "x_weights", x_weights, x.shape[-1], x.device)
    y_weights = as_weights("wasserstein_1d", "y_weights", y_weights, y.shape[-1], x.device)
    infinite = _has_infinite(x, x_weights) | _has_infinite(y, y_weights)
    x, y = (values.where(torch.isfinite(values), 0.0) for values in (x, y))
    distances, widths = quantile_distances(x, y, x_weights, y_weights)
    return torch.where(infinite, torch.inf, wasserstein_of_quantiles(distances, widths, order))


def wasserstein_of_quantiles(distances: Tensor, widths: Tensor, order: float) -> Tensor:
    """(sum distances^order · widths)^(1 / order) along the last dimension, at any scale; the maximum for order inf."""
    distances = distances.where(widths > 0, 0.0)
    largest = distances.amax(dim=-1)
    if order == math.inf:
        return largest
    scale = largest.where(largest > 0, 1.0)
    return scale * ((distances / scale[..., None]).pow(order) * widths).sum(dim=-1) ** (1.0 / order)


def quantile_distances(
    x: Tensor, y: Tensor, x_weights: Tensor | None, y_weights: Tensor | None
) -> tuple[Tensor, Tensor]:
    """|F_x^-1 - F_y^-1| and the widths of the merged steps, along the last dimension; see `wasserstein_1d`.

    Samples must be finite and float64, and weights normalised: nothing is checked.
    """
    n, m = x.shape[-1], y.shape[-1]
    x, x_order = x.sort(dim=-1)
    y, y_order = y.sort(dim=-1)
    if x_weights is None and y_weights is None and n == m:
        return (x - y).abs(), x.new_tensor(1.0 / n)
    if x_weights is None and y_weights is None:
        # One set of steps serves all leading indices; equal levels of both are equal numbers.
        x_levels, y_levels, narrowest = _levels(n, x), _levels(m, y), 0.0
    else:
        x_levels = _levels(n, x).expand_as(x) if x_weights is None else _cumulative(x_weights[x_order])
        y_levels = _levels(m, y).expand_as(y) if y_weights is None else _cumulative(y_weights[y_order])
        narrowest = NARROWEST
    levels = torch.cat([x_levels, y_levels], dim=-1).sort(dim=-1).values
    widths = levels.diff(dim=-1, prepend=torch.zeros_like(levels[..., :1]))
    widths = widths.where(widths > narrowest, 0.0)
    x_steps = torch.searchsorted(x_levels.contiguous(), levels).clamp_(max=n - 1)
    y_steps = torch.searchsorted(y_levels.contiguous(), levels).clamp_(max=m - 1)
    if x_steps.dim() < x.dim():
        return (x[..., x_steps] - y[..., y_steps]).abs(), widths
    return (x.gather(-1, x_steps) - y.gather(-1, y_steps)).abs(), widths


def _levels(count: int, like: Tensor) -> Tensor:
    return torch.arange(1, count + 1, dtype=torch.float64, device=like.device) / count


def _cumulative(weights: Tensor) -> Tensor:
    """Running shares along the last dimension, each to its rounding however many there are; the last is one."""
    totals = weights.cumsum(dim=-1)
    # What the sums have lost on the way, in whichever order they were taken.
    lost = weights - totals.diff(dim=-1, prepend=torch.zeros_like(totals[..., :1]))
    totals = totals + lost.cumsum(dim=-1)
    return totals / totals[..., -1:]


def _has_infinite(values: Tensor, weights: Tensor | None) -> Tensor:
    bad = ~torch.isfinite(values)
    return (bad if weights is None else bad & (weights > 0)).any(dim=-1)
