"""Maps of angles: circle to circle, smooth across the seam."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nflib.transforms._rational_quadratic import common_dtype, raw_parameters, spline, spline_knots, spline_slopes
from nflib.transforms.univariate import Univariate, check_num_bins


class CircularRationalQuadraticSpline(Univariate):
    """A monotone rational-quadratic map of a circle onto itself (Rezende et al. 2020, arXiv 2002.02428, section 2.1.1).

    Angles u ``(..., C)``, any representative, become z in [-period/2, period/2), ``(..., C)``. Parameters
    ``(..., C, 3 num_bins + 2)``: raw bin widths, raw bin heights, raw slopes at the knots, the angle of the first knot
    from -period/2, and a rotation of the whole map, both in radians of one turn. The slope is continuous everywhere,
    and with the knots free to turn and the map to rotate no angle is special. Parameters zero give the identity.

    With base angles uniform on the circle, the density of u is exp(log-derivative) / period.

    Args:
        num_bins: pieces of the circle.
        period: length of the circle, in the unit of u; 2 pi for radians.

    Raises:
        ValueError: settings out of range.

    >>> spline = CircularRationalQuadraticSpline(num_bins=4)
    >>> u, parameters = torch.linspace(-3, 3, 7), torch.randn(7, spline.parameters_per_number)
    >>> z, log_derivative = spline(u, parameters)
    >>> torch.allclose(spline.inverse(z, parameters)[0], u, atol=1e-3)
    True
    """

    features_per_number = 2
    is_normal = False

    def __init__(self, num_bins: int = 8, period: float = 2 * math.pi):
        super().__init__()
        check_num_bins(num_bins)
        if not 0 < period < math.inf:
            raise ValueError(f"period must be a positive number, got {period!r}.")
        self.num_bins = num_bins
        self.period = period
        self.parameters_per_number = 3 * num_bins + 2

    def forward(self, u: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        return self._map(u, parameters, inverse=False)

    def inverse(self, z: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        return self._map(z, parameters, inverse=True)

    def features(self, u: Tensor) -> Tensor:
        """Cosine and sine, scaled to unit variance of uniform angles."""
        angle = u * (2 * math.pi / self.period)
        return math.sqrt(2) * torch.stack([angle.cos(), angle.sin()], dim=-1)

    def _map(self, points: Tensor, parameters: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        raw = raw_parameters(parameters, common_dtype(points, parameters))
        widths, heights, raw_slopes, turns = raw.split([self.num_bins, self.num_bins, self.num_bins, 2])
        knots_u, knots_z = (spline_knots(sizes, 0.0, self.period) for sizes in (widths, heights))
        inner = spline_slopes(raw_slopes)
        slopes = torch.cat([inner, inner[:1]])
        first_u, rotation = wrapped(turns * (self.period / (2 * math.pi)), self.period)
        first_z = first_u + rotation
        start, stop = (first_z, first_u) if inverse else (first_u, first_z)
        half = self.period / 2
        offset = torch.remainder(points.to(raw.dtype) + half - start, self.period)
        result, log_derivative = spline(offset, knots_u, knots_z, slopes, inverse)
        return wrapped(result + stop - half, self.period), log_derivative


def wrapped(angle: Tensor, period: float) -> Tensor:
    """The representative in [-period/2, period/2), and untouched where it lies there already."""
    turned = angle - period * torch.floor(angle / period + 0.5)
    half = period / 2
    return torch.where(turned < half, turned, turned - period).clamp(min=-half)
