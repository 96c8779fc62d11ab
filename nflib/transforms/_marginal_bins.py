"""Rational-quadratic pieces of `GaussianizeMarginals` and `GaussianizeByKind`, once it is known which one holds a
point."""

from __future__ import annotations

import torch
from torch import Tensor

from nflib.transforms._rational_quadratic import log_relative_slope, share_of_height, share_of_width
from nflib.transforms.normal import LOG_SQRT_2PI, lower_tail


def corner_table(x: Tensor, y: Tensor, slopes: Tensor) -> Tensor:
    """The pieces between knots (D, K + 1): rows ``d * K + k``, (D * K, 6), of both x, both y and both slopes."""
    columns = (x[:, :-1], x[:, 1:], y[:, :-1], y[:, 1:], slopes[:, :-1], slopes[:, 1:])
    return torch.stack(columns, dim=-1).flatten(0, 1)


class Bins:
    """Rational-quadratic pieces for a batch of points, measured from the nearer end of the whole range.

    `mirror` marks pieces of the upper half, measured downwards from their upper knot; a negative distance (or
    rise) is then always the straight tail beyond the outermost knot.
    corners: (..., 6), rows of a `corner_table`; is_interval: which points are of interval coordinates.
    """

    def __init__(self, corners: Tensor, is_interval: Tensor) -> None:
        self.x0, self.x1, self.y0, self.y1, lower, upper = corners.unbind(-1)
        self.is_interval = is_interval
        self.mirror = self.y0 + self.y1 > is_interval.to(corners.dtype)
        self.width = self.x1 - self.x0
        self.height = self.y1 - self.y0
        self.mean_slope = self.height / self.width
        self.near = torch.where(self.mirror, upper, lower) / self.mean_slope
        self.far = torch.where(self.mirror, lower, upper) / self.mean_slope

    def to_normal(self, x: Tensor, span: Tensor) -> tuple[Tensor, Tensor]:
        """z of points x, and log dz/dx; span: the length of each point's interval."""
        distance = torch.where(self.mirror, self.x1 - x, x - self.x0)
        # A point on the very end of an interval has no finite z: evaluate it a rounding error inside.
        margin = torch.finfo(x.dtype).eps / 16 * span
        distance = torch.where(self.is_interval, torch.maximum(distance, margin), distance)
        rise, log_slope = self.rise(distance)
        real = torch.where(self.mirror, self.y1 - rise, self.y0 + rise)
        tail = torch.where(self.mirror, 1 - self.y1, self.y0) + rise
        probit = torch.special.ndtri(torch.where(self.is_interval, tail, 0.5))
        probit = torch.where(self.mirror, -probit, probit)
        z = torch.where(self.is_interval, probit, real)
        return z, log_slope + self._log_normal_slope(z)

    def from_normal(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """x of points z, and log dz/dx there."""
        tail = lower_tail(torch.where(self.mirror, -z, z))
        tail_rise = tail - torch.where(self.mirror, 1 - self.y1, self.y0)
        real_rise = torch.where(self.mirror, self.y1 - z, z - self.y0)
        distance = self.distance(torch.where(self.is_interval, tail_rise.clamp(min=0.0), real_rise))
        _, log_slope = self.rise(distance)
        x = torch.where(self.mirror, self.x1 - distance, self.x0 + distance)
        return x, log_slope + self._log_normal_slope(z)

    def _log_normal_slope(self, z: Tensor) -> Tensor:
        return torch.where(self.is_interval, 0.5 * z.square() + LOG_SQRT_2PI, 0.0)

    def rise(self, distance: Tensor) -> tuple[Tensor, Tensor]:
        """Change of y over `distance` from the near knot, and the log of the slope there."""
        theta = (distance / self.width).clamp(0.0, 1.0)
        inside = self.height * share_of_height(theta, 1 - theta, self.near, self.far)
        log_slope = log_relative_slope(theta, 1 - theta, self.near, self.far)
        beyond = distance < 0
        log_slope = self.mean_slope.log() + torch.where(beyond, self.near.log(), log_slope)
        return torch.where(beyond, self.near * self.mean_slope * distance, inside), log_slope

    def distance(self, rise: Tensor) -> Tensor:
        """The inverse of `rise`."""
        share = (rise / self.height).clamp(0.0, 1.0)
        theta, _ = share_of_width(share, 1 - share, self.near, self.far)
        return torch.where(rise < 0, rise / (self.near * self.mean_slope), self.width * theta)
