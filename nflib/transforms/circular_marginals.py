"""Angles, each mapped by a fixed function of the circle that makes its marginal uniform."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from nflib.dtypes import as_tensor
from nflib.events import check_event_shape
from nflib.transforms._marginal_fit import MAX_SLOPE_RATIO, check_fit, fit_coordinate
from nflib.transforms._rational_quadratic import spline
from nflib.transforms.circular import wrapped
from nflib.transforms.inversion import ClosedForm
from nflib.transforms.marginal import as_float64, working_dtype


class UniformizeCircles(ClosedForm):
    """Makes the marginal of each angle uniform on [-pi, pi]: each is mapped by its fitted distribution function.

    What `GaussianizeMarginals` does for intervals, but for circles: a monotone rational-quadratic spline for each of D
    angles ``(B, D)``, whose slopes at both ends are equal, so that densities are continuous all around. A new instance
    is the identity; get a useful one from `fit`, or from `load_state_dict` into `UniformizeCircles(D, num_bins)`.
    Angles beyond [-pi, pi] are turned back into it.

    Args:
        num_angles: D.
        num_bins: pieces of each spline, 4 or more.

    Raises:
        ValueError: an input has another event shape.

    >>> angles = torch.randn(1000, 2).clamp(-3, 3)
    >>> u, logabsdet = UniformizeCircles.fit(angles)(angles)
    >>> bool((u.std(0) - math.pi / math.sqrt(3)).abs().max() < 0.05)
    True
    """

    knots_x: Tensor  # (num_bins - 1, D), the inner knots, in radians
    knots_y: Tensor  # (num_bins - 1, D), their images
    slopes: Tensor  # (num_bins, D), dy/dx at -pi, which is also pi, and at the inner knots

    def __init__(self, num_angles: int, num_bins: int = 24) -> None:
        super().__init__()
        if num_bins < 4:
            raise ValueError(f"UniformizeCircles: num_bins is {num_bins}; use 4 or more.")
        self.event_shape = torch.Size([num_angles])
        knots = torch.linspace(-math.pi, math.pi, num_bins + 1)[1:-1, None].repeat(1, num_angles)
        self.register_buffer("knots_x", knots)
        self.register_buffer("knots_y", knots.clone())
        self.register_buffer("slopes", torch.ones(num_bins, num_angles))

    @classmethod
    def fit(cls, data: Tensor, *, num_bins: int = 24, uniform_fraction: float = 0.01) -> UniformizeCircles:
        """Fit the splines to the marginals of data.

        Args:
            data: angles ``(N, D)`` in [-pi, pi], best cut where they are least dense; 32 samples or more.
            num_bins: pieces of each spline, 4 or more.
            uniform_fraction: weight of the uniform distribution mixed into each, so that its density is positive where
                no data were seen.

        Raises:
            ValueError: data that are no vectors, or that `GaussianizeMarginals.fit` would not take either.
        """
        data = as_tensor(data)
        check_fit("UniformizeCircles.fit", data, uniform_fraction)
        if data.dim() != 2:
            raise ValueError(f"UniformizeCircles.fit: data has shape {tuple(data.shape)}; pass (N, D).")
        transform = cls(data.shape[1], num_bins)
        for number, column in enumerate(as_float64(data).numpy().T):
            interval, name = (-math.pi, math.pi), f"UniformizeCircles.fit: angle {number}"
            x, y, slopes = fit_coordinate(np.sort(column), interval, num_bins, uniform_fraction, name, data.dtype)
            slopes = 2 * math.pi * slopes
            y = 2 * math.pi * y - math.pi
            ends = np.diff(y)[[0, -1]] / np.diff(x)[[0, -1]]
            slopes[0] = min(math.sqrt(slopes[0] * slopes[-1]), MAX_SLOPE_RATIO * ends.min())
            for buffer, values in (
                (transform.knots_x, x[1:-1]),
                (transform.knots_y, y[1:-1]),
                (transform.slopes, slopes[:-1]),
            ):
                buffer[:, number] = torch.from_numpy(values)
        return transform.to(data.device)

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._map(inputs, inverse=False)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._map(inputs, inverse=True)

    def _map(self, inputs: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        check_event_shape(inputs, self.event_shape, "UniformizeCircles")
        points = inputs.to(working_dtype(inputs))
        points = torch.where(points.abs() > math.pi, wrapped(points, 2 * math.pi), points)
        inner_x, inner_y, slopes = (table.to(points.dtype) for table in (self.knots_x, self.knots_y, self.slopes))
        end = torch.full_like(slopes[:1], math.pi)
        tables = (torch.cat([-end, inner_x, end]), torch.cat([-end, inner_y, end]), torch.cat([slopes, slopes[:1]]))
        knots_x, knots_y, slopes = (table[:, None].expand(-1, *points.shape) for table in tables)
        result, log_derivative = spline(points, knots_x, knots_y, slopes, inverse)
        return result, log_derivative.sum(-1)
