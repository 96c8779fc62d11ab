"""Monotonic maps of single numbers: u ``(..., C)`` with parameters ``(..., C, parameters_per_number)``."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from nflib.transforms._rational_quadratic import (
    MIN_BIN,
    common_dtype,
    raw_parameters,
    spline,
    spline_knots,
    spline_slopes,
)


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
    parameters zero it is the identity everywhere. Parameters may be extreme, even infinite.

    Args:
        num_bins: pieces between -tail_bound and tail_bound.
        tail_bound: positive, in the unit of u.

    Raises:
        ValueError: settings out of range.

    >>> spline = RationalQuadraticSpline(num_bins=4)
    >>> u, parameters = torch.linspace(-6, 6, 9), torch.randn(9, spline.parameters_per_number)
    >>> z, log_derivative = spline(u, parameters)
    >>> torch.allclose(spline.inverse(z, parameters)[0], u, atol=1e-3)
    True
    """

    def __init__(self, num_bins: int = 8, tail_bound: float = 5.0):
        super().__init__()
        check_num_bins(num_bins)
        if not 0 < tail_bound < math.inf:
            raise ValueError(f"tail_bound must be a positive number, got {tail_bound!r}.")
        self.num_bins = num_bins
        self.tail_bound = tail_bound
        self.parameters_per_number = 3 * num_bins - 1

    def forward(self, u: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        return self._map(u, parameters, inverse=False)

    def inverse(self, z: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        return self._map(z, parameters, inverse=True)

    def _map(self, points: Tensor, parameters: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        raw = raw_parameters(parameters, common_dtype(points, parameters))
        widths, heights, raw_slopes = raw.split([self.num_bins, self.num_bins, self.num_bins - 1])
        knots_u, knots_z = (spline_knots(sizes, -self.tail_bound, self.tail_bound) for sizes in (widths, heights))
        inner = spline_slopes(raw_slopes)
        slopes = torch.cat([torch.ones_like(inner[:1]), inner, torch.ones_like(inner[:1])])
        inside = points.abs() < self.tail_bound
        result, log_derivative = spline(torch.where(inside, points, 0.0), knots_u, knots_z, slopes, inverse)
        return torch.where(inside, result, points), torch.where(inside, log_derivative, 0.0)


def check_num_bins(num_bins: int) -> None:
    """ValueError for a number of bins that no rational-quadratic spline has."""
    if num_bins < 2 or num_bins * MIN_BIN >= 1:
        raise ValueError(f"num_bins must be between 2 and {int(1 / MIN_BIN) - 1}, got {num_bins}.")
