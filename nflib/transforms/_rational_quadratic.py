"""Monotone rational-quadratic splines: one piece between two knots, and the piecewise map of many.

A piece (Gregory & Delbourgo 1982; Durkan et al. 2019, arXiv 1906.04032) is written here in shares: theta of the width,
1 - theta, share of the height, and the slopes at its ends in units of its mean slope. All terms are then positive and
of order one: nothing cancels, overflows or leaves [0, 1], whatever the scale of the data.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

MIN_BIN = 1e-3  # share of the range
MIN_SLOPE = 1e-3
# Raw parameters beyond it, infinite ones too (float16 overflows), are taken as it: squares of slopes stay finite.
MAX_PARAMETER = 1e6


def share_of_height(theta: Tensor, rest: Tensor, first: Tensor, last: Tensor) -> Tensor:
    """Share of the height at the share theta of the width; rest = 1 - theta, first and last the relative slopes."""
    product = theta * rest
    return (theta.square() + first * product) / (theta.square() + rest.square() + (first + last) * product)


def log_relative_slope(theta: Tensor, rest: Tensor, first: Tensor, last: Tensor) -> Tensor:
    """Logarithm of the slope in units of the mean slope."""
    product = theta * rest
    ends = theta.square(), rest.square()
    denominator = ends[0] + ends[1] + (first + last) * product
    return ((last * ends[0] + 2 * product + first * ends[1]) / denominator.square()).log()


def share_of_width(rise: Tensor, rest: Tensor, first: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
    """theta and 1 - theta at the share `rise` of the height; rest = 1 - rise. The root of a quadratic equation."""
    difference = first * rest - last * rise
    root = (difference.square() + 4 * rise * rest).sqrt()
    rising = difference >= 0
    own = root + torch.where(rising, difference, -difference)
    theta, theta_rest = torch.where(rising, 2 * rise, own), torch.where(rising, own, 2 * rest)
    total = theta + theta_rest
    return theta / total, theta_rest / total


def common_dtype(points: Tensor, parameters: Tensor) -> torch.dtype:
    """The wider dtype of both, at least float32."""
    return torch.promote_types(torch.promote_types(points.dtype, parameters.dtype), torch.float32)


def raw_parameters(parameters: Tensor, dtype: torch.dtype) -> Tensor:
    """Parameters ``(..., P)`` as ``(P, ...)`` in `dtype`, no larger than `MAX_PARAMETER`.

    Bins come first from here on: reductions over few bins are several times faster along the first dimension.
    """
    return parameters.to(dtype).movedim(-1, 0).contiguous().clamp(-MAX_PARAMETER, MAX_PARAMETER)


def spline_knots(raw: Tensor, low: float, high: float) -> Tensor:
    """Knots ``(K + 1, ...)`` from `low` to `high` exactly, by raw bin sizes ``(K, ...)``; equal where all are 0."""
    num_bins = len(raw)
    shares = MIN_BIN + (1 - num_bins * MIN_BIN) * raw.softmax(0)
    inner = low + (high - low) * shares[:-1].cumsum(0)
    return torch.cat([torch.full_like(inner[:1], low), inner, torch.full_like(inner[:1], high)])


def spline_slopes(raw: Tensor) -> Tensor:
    """Positive slopes by raw numbers of any shape; one where these are zero."""
    return MIN_SLOPE + nn.functional.softplus(raw + math.log(math.expm1(1 - MIN_SLOPE)))


def spline(points: Tensor, knots_u: Tensor, knots_z: Tensor, slopes: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
    """The map (or its inverse) of points ``(...)`` within its range, and the log-derivative of what was asked for.

    knots_u, knots_z, slopes dz/du at the knots: ``(K + 1, ...)``.
    """
    index = ((knots_z if inverse else knots_u)[1:-1] <= points).sum(0, keepdim=True)
    corners = torch.cat([index, index + 1])
    left, right = knots_u.gather(0, corners)
    bottom, top = knots_z.gather(0, corners)
    first, last = slopes.gather(0, corners)
    width, height = right - left, top - bottom
    mean = height / width
    first, last = first / mean, last / mean
    if inverse:
        rise = ((points - bottom) / height).clamp(0, 1)
        theta, rest = share_of_width(rise, 1 - rise, first, last)
        result = torch.lerp(left, right, theta)
    else:
        theta = ((points - left) / width).clamp(0, 1)
        rest = 1 - theta
        result = torch.lerp(bottom, top, share_of_height(theta, rest, first, last))
    log_slope = mean.log() + log_relative_slope(theta, rest, first, last)
    return result, -log_slope if inverse else log_slope
