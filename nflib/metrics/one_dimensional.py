"""Wasserstein distances on the line, exactly, from the quantile functions."""

from __future__ import annotations

import torch
from torch import Tensor

from nflib.metrics.samples import as_weights, check_order, double

__all__ = ["wasserstein_1d"]


@torch.no_grad()
def wasserstein_1d(
    x: Tensor,
    y: Tensor,
    x_weights: Tensor | None = None,
    y_weights: Tensor | None = None,
    *,
    order: float = 2,
) -> Tensor:
    """W_p between samples `x (..., n)` and `y (..., m)` on the line, for every leading index: float64 `(...)`.

        W_p^p = int_0^1 |F_x^-1(u) - F_y^-1(u)|^p du

    The quantile functions are steps, so the integral is a sum over the merged steps and exact to rounding.
    Weights `(n,)` and `(m,)` need not be normalised and are shared by all leading indices; None means equal
    ones. A sample that is not finite and has positive weight makes the distance infinite.

    Raises ValueError for an order below 1, leading shapes that differ, no samples, or bad weights.

    >>> import torch
    >>> wasserstein_1d(torch.tensor([0.0, 1.0]), torch.tensor([3.0]), order=1)
    tensor(2.5000, dtype=torch.float64)
    """
    check_order("wasserstein_1d", order)
    if x.dim() == 0 or y.dim() == 0 or x.shape[:-1] != y.shape[:-1] or x.shape[-1] == 0 or y.shape[-1] == 0:
        raise ValueError(
            f"wasserstein_1d: x has shape {tuple(x.shape)} and y {tuple(y.shape)}; pass (..., n) and (..., m) with "
            "the same leading dimensions."
        )
    x, y = double(x), double(y)
    y = y.to(x.device)
    x_weights = as_weights("wasserstein_1d", "x_weights", x_weights, x.shape[-1], x.device)
    y_weights = as_weights("wasserstein_1d", "y_weights", y_weights, y.shape[-1], x.device)
    infinite = _has_infinite(x, x_weights) | _has_infinite(y, y_weights)
    x, y = (values.where(torch.isfinite(values), 0.0) for values in (x, y))
    power = wasserstein_1d_power(x, y, x_weights, y_weights, order)
    return torch.where(infinite, torch.inf, power ** (1.0 / order))


def wasserstein_1d_power(
    x: Tensor, y: Tensor, x_weights: Tensor | None, y_weights: Tensor | None, order: float
) -> Tensor:
    """W_p^p of finite float64 samples with normalised weights; unchecked, see `wasserstein_1d`."""
    n, m = x.shape[-1], y.shape[-1]
    x, x_order = x.sort(dim=-1)
    y, y_order = y.sort(dim=-1)
    if x_weights is None and y_weights is None and n == m:
        return (x - y).abs().pow(order).mean(dim=-1)
    if x_weights is None and y_weights is None:
        # One set of steps serves all leading indices.
        x_levels, y_levels = _levels(n, x), _levels(m, y)
    else:
        x_levels = _levels(n, x).expand_as(x) if x_weights is None else _cumulative(x_weights[x_order])
        y_levels = _levels(m, y).expand_as(y) if y_weights is None else _cumulative(y_weights[y_order])
    levels = torch.cat([x_levels, y_levels], dim=-1).sort(dim=-1).values
    widths = levels.diff(dim=-1, prepend=torch.zeros_like(levels[..., :1]))
    x_steps = torch.searchsorted(x_levels.contiguous(), levels).clamp_(max=n - 1)
    y_steps = torch.searchsorted(y_levels.contiguous(), levels).clamp_(max=m - 1)
    if x_steps.dim() < x.dim():
        return ((x[..., x_steps] - y[..., y_steps]).abs().pow(order) * widths).sum(dim=-1)
    return ((x.gather(-1, x_steps) - y.gather(-1, y_steps)).abs().pow(order) * widths).sum(dim=-1)


def _levels(count: int, like: Tensor) -> Tensor:
    return torch.arange(1, count + 1, dtype=torch.float64, device=like.device) / count


def _cumulative(weights: Tensor) -> Tensor:
    """Running totals along the last dimension, the last one exactly one."""
    totals = weights.cumsum(dim=-1)
    return totals / totals[..., -1:]


def _has_infinite(values: Tensor, weights: Tensor | None) -> Tensor:
    bad = ~torch.isfinite(values)
    return (bad if weights is None else bad & (weights > 0)).any(dim=-1)
