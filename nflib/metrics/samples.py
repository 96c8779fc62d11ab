"""What every distance asks of its samples: finite float64 points, and weights that sum to one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nflib.dtypes import as_tensor


def double(values: Any) -> Tensor:
    """What is, or becomes, a tensor, in float64 without gradients; on the CPU where the device has none (mps)."""
    values = as_tensor(values).detach()
    return (values.cpu() if values.device.type == "mps" else values).to(torch.float64)


def power_of_two(values: Tensor) -> Tensor:
    """The largest power of two up to each of these (not negative) numbers, 1 for zero: division by it is exact."""
    scale = values / (2 * torch.frexp(values).mantissa)
    return torch.where(values > 0, scale, 1.0)


def check_order(function: str, order: float) -> None:
    """ValueError for an order below one."""
    if not order >= 1:
        raise ValueError(f"{function}: order is {order}; give a number of at least 1, usually 1 or 2.")


def as_points(function: str, name: str, points: Tensor) -> Tensor:
    """Finite float64 points `(n, d)`; `(n,)` becomes `(n, 1)`."""
    points = double(points)
    if points.dim() == 1:
        points = points[:, None]
    if points.dim() != 2 or points.numel() == 0:
        raise ValueError(f"{function}: {name} has shape {tuple(points.shape)}; pass samples `(n, d)` or `(n,)`.")
    bad = int((~torch.isfinite(points)).any(dim=1).sum())
    if bad:
        raise ValueError(f"{function}: {bad} of the {len(points)} samples in {name} are not finite; drop them first.")
    return points


def as_pair(function: str, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Both sets of points, of one dimension and on one device."""
    x, y = as_points(function, "x", x), as_points(function, "y", y)
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"{function}: x has {x.shape[1]} dimensions and y {y.shape[1]}; they must agree.")
    return x, y.to(x.device)


def as_weights(function: str, name: str, weights: Tensor | None, count: int, device: torch.device) -> Tensor | None:
    """Weights `(count,)` that sum to one, float64; None, which means equal weights, stays None."""
    if weights is None:
        return None
    weights = double(weights).to(device)
    if weights.shape != (count,):
        raise ValueError(f"{function}: {name} has shape {tuple(weights.shape)} for {count} samples; pass ({count},).")
    largest = weights.max()
    if not (weights >= 0).all() or not torch.isfinite(largest) or largest <= 0:
        raise ValueError(f"{function}: {name} must be finite, not negative, and not all zero.")
    weights = weights / largest  # their sum may be beyond the range
    return weights / weights.sum()
