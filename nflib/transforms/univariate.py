"""Monotonic maps of single numbers: u ``(..., C)`` with parameters ``(..., C, parameters_per_number)``."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

MIN_BIN = 1e-3
MIN_DERIVATIVE = 1e-3


class Univariate(nn.Module):
    """``forward(u, parameters) -> (z, log-derivatives)`` and `inverse`, both number by number, shapes ``(..., C)``."""

    parameters_per_number: int

    def forward(self, u: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def inverse(self, z: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError


class RationalQuadraticSpline(Univariate):
    """Monotonic rational-quadratic spline with linear tails (Durkan et al. 2019, arXiv 1906.04032, eqs. 4 to 8).

    Numbers u ``(..., C)`` and parameters ``(..., C, 3 num_bins - 1)``: raw bin widths, raw bin heights, raw slopes at
    the inner knots. Returns z and the log-derivative of each number. Outside ±tail_bound it is the identity; with
    parameters zero it is the identity everywhere. Raises ValueError for settings out of range.
    """

    def __init__(self, num_bins: int = 8, tail_bound: float = 5.0):
        super().__init__()
        if num_bins < 2 or num_bins * MIN_BIN >= 1:
            raise ValueError(f"num_bins must be between 2 and {int(1 / MIN_BIN) - 1}, got {num_bins}.")
        if not 0 < tail_bound < math.inf:
            raise ValueError(f"tail_bound must be a positive number, got {tail_bound!r}.")
        self.num_bins = num_bins
        self.tail_bound = tail_bound
        self.parameters_per_number = 3 * num_bins - 1

    def forward(self, u: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        knots, slopes = self._knots(parameters)
        inside = u.abs() < self.tail_bound
        u_in = torch.where(inside, u, 0.0)
        left, width, bottom, height, slope_left, slope_right = _bin_of(u_in, knots, slopes, axis=0)
        mean = height / width
        theta = (u_in - left) / width
        z = bottom + height * _rise(theta, mean, slope_left, slope_right)
        logabsdet = _log_slope(theta, mean, slope_left, slope_right)
        return torch.where(inside, z, u), torch.where(inside, logabsdet, 0.0)

    def inverse(self, z: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        knots, slopes = self._knots(parameters)
        inside = z.abs() < self.tail_bound
        z_in = torch.where(inside, z, 0.0)
        left, width, bottom, height, slope_left, slope_right = _bin_of(z_in, knots, slopes, axis=1)
        mean = height / width
        rise = (z_in - bottom) / height
        curvature = slope_left + slope_right - 2 * mean
        a = mean - slope_left + rise * curvature
        b = slope_left - rise * curvature
        c = -mean * rise
        theta = 2 * c / (-b - (b.square() - 4 * a * c).clamp(min=0).sqrt())
        logabsdet = _log_slope(theta, mean, slope_left, slope_right)
        return torch.where(inside, left + theta * width, z), torch.where(inside, -logabsdet, 0.0)

    def _knots(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Knots ``(..., C, 2, num_bins + 1)`` in u and z, and slopes ``(..., C, num_bins + 1)``."""
        bins, raw_slopes = _at_least_float32(parameters).split([2 * self.num_bins, self.num_bins - 1], dim=-1)
        shares = bins.unflatten(-1, (2, self.num_bins)).softmax(-1)
        shares = MIN_BIN + (1 - self.num_bins * MIN_BIN) * shares
        knots = nn.functional.pad(shares.cumsum(-1), (1, 0)) * (2 * self.tail_bound) - self.tail_bound
        unit = math.log(math.expm1(1 - MIN_DERIVATIVE))
        slopes = MIN_DERIVATIVE + nn.functional.softplus(raw_slopes + unit)
        return knots, nn.functional.pad(slopes, (1, 1), value=1.0)


def _bin_of(x: Tensor, knots: Tensor, slopes: Tensor, axis: int) -> tuple[Tensor, ...]:
    """Corner, size and end slopes of the bin that holds x on the given axis (0: u, 1: z), each of x's shape."""
    index = (knots[..., axis, 1:-1] <= x[..., None]).sum(-1, keepdim=True)
    both = torch.cat([index, index + 1], dim=-1)
    table = torch.cat([knots, slopes[..., None, :]], dim=-2)
    picked = table.gather(-1, both[..., None, :].expand(*table.shape[:-1], 2))
    start, stop = picked[..., 0], picked[..., 1]
    left, bottom, slope_left = start.unbind(-1)
    right, top, slope_right = stop.unbind(-1)
    return left, right - left, bottom, top - bottom, slope_left, slope_right


def _rise(theta: Tensor, mean: Tensor, slope_left: Tensor, slope_right: Tensor) -> Tensor:
    """Share of the bin's height reached at the share theta of its width (eq. 4)."""
    mixed = theta * (1 - theta)
    return (mean * theta.square() + slope_left * mixed) / (mean + (slope_left + slope_right - 2 * mean) * mixed)


def _log_slope(theta: Tensor, mean: Tensor, slope_left: Tensor, slope_right: Tensor) -> Tensor:
    """Logarithm of the derivative (eq. 5)."""
    mixed = theta * (1 - theta)
    numerator = slope_right * theta.square() + 2 * mean * mixed + slope_left * (1 - theta).square()
    denominator = mean + (slope_left + slope_right - 2 * mean) * mixed
    return 2 * mean.log() + numerator.log() - 2 * denominator.log()


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
