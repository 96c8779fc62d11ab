"""Elementwise transforms fitted once from data: standardisation and marginal Gaussianisation.

Both are ordinary nflows transforms whose parameters are buffers: saved with the model, not trained. Fitting
runs in float64, float32 is stored, and evaluation runs in the dtype of the inputs (at least float32).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from nflib.dtypes import as_tensor
from nflib.events import check_event_shape, flattened
from nflib.transforms._intervals import clamped
from nflib.transforms._marginal_bins import Bins, corner_table
from nflib.transforms._marginal_fit import LARGEST, MIN_SAMPLES, SMALLEST, check_fit, fit_coordinate, flat_intervals
from nflib.transforms.inversion import ClosedForm
from nflib.transforms.normal import lower_tail

__all__ = ["GaussianizeMarginals", "Standardize"]


class Standardize(ClosedForm):
    """Standardises each number, ``z = (x - mean) / std``; the log-determinant is ``-sum log std`` for every sample.

    Args:
        mean: in data units; broadcast with std to the event shape.
        std: standard deviation, positive. Inputs have shape ``(batch, *event_shape)``.

    Raises:
        ValueError: a standard deviation is zero, negative or not finite (names the coordinate), or the event
            shape of an input differs.

    >>> data = 5 + 2 * torch.randn(1000, 3)
    >>> z, logabsdet = Standardize.fit(data)(data)
    >>> torch.allclose(z.std(0), torch.ones(3), atol=1e-4)
    True
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        mean, std = torch.broadcast_tensors(as_tensor(mean), as_tensor(std))
        mean, std = mean.detach().to(torch.float32).clone(), std.detach().to(torch.float32).clone()
        bad = ~(std > 0) | ~torch.isfinite(std) | ~torch.isfinite(mean)
        if bad.any():
            raise ValueError(
                f"Standardize: coordinate {_first_index(bad)} has no positive finite standard deviation or "
                "no finite mean in float32; drop the coordinate, rescale it, or pass a positive std for it."
            )
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    @classmethod
    def fit(cls, data: Tensor, event_dims: int | Sequence[int] | None = None) -> Standardize:
        """Fit mean and standard deviation to data, in float64.

        Args:
            data: ``(N, *event_shape)``, N two or more.
            event_dims: the dimensions of `data` that keep their own statistics (default: all but the first); the others
                are averaged over and broadcast: -1 shares one mean and std per channel among all tokens.

        Raises:
            ValueError: fewer than two data, a coordinate that is constant or not finite, or one whose scale or spread
                float32 cannot hold.
        """
        data = as_tensor(data)
        all_dims = range(1, data.dim())
        if event_dims is None:
            kept = set(all_dims)
        else:
            dims = [event_dims] if isinstance(event_dims, int) else list(event_dims)
            kept = {dim % data.dim() for dim in dims}
        reduced = [dim for dim in range(data.dim()) if dim not in kept]
        if 0 in kept or data.shape[0] < 2:
            raise ValueError("Standardize.fit: data needs a first dimension of two or more samples to average over.")
        values = as_float64(data)
        variance, mean = torch.var_mean(values, dim=reduced, correction=1, keepdim=True)
        shape = data.shape[1:]
        mean, std = mean[0].expand(shape), variance[0].sqrt().expand(shape)
        # Kept in float32: what the buffers cannot hold is a mistake here, where it can still be mended.
        bad = (std > 0) & ((std < SMALLEST) | (std > LARGEST) | (mean.abs() > LARGEST))
        if bad.any():
            raise ValueError(
                f"Standardize.fit: coordinate {_first_index(bad)} is of scale {std[bad][0].item():g}, beyond the range "
                f"of float32; rescale it to between {SMALLEST:.0e} and {LARGEST:.0e}."
            )
        bad = (std > 0) & (std < torch.finfo(torch.float32).eps * mean.abs())
        if bad.any():
            raise ValueError(
                f"Standardize.fit: the spread of coordinate {_first_index(bad)} is below the float32 precision of its "
                "values; subtract its mean first."
            )
        return cls(mean, std).to(data.device)

    def _log_scale(self, inputs: Tensor) -> Tensor:
        check_event_shape(inputs, self.std.shape, "Standardize")
        total = self.std.to(torch.float64).log().sum() if inputs.device.type != "mps" else self.std.log().sum()
        return total.to(working_dtype(inputs)).expand(inputs.shape[0])

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        dtype, log_scale = working_dtype(inputs), self._log_scale(inputs)
        return (inputs.to(dtype) - self.mean.to(dtype)) / self.std.to(dtype), -log_scale

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        dtype, log_scale = working_dtype(inputs), self._log_scale(inputs)
        return inputs.to(dtype) * self.std.to(dtype) + self.mean.to(dtype), log_scale


class GaussianizeMarginals(ClosedForm):
    """A strictly increasing C1 map per coordinate that makes each marginal close to N(0, 1).

    Real coordinates: a monotone rational-quadratic spline (Gregory & Delbourgo 1982; Durkan et al. 2019)
    through smoothed quantiles, continued by straight lines of the same slope. Interval coordinates `[a, b]`:
    a rational-quadratic cumulative distribution of positive density, `u: [a, b] -> [0, 1]`, then
    `z = ndtri(u)`. The tails `u` and `1 - u` are evaluated from their own ends, so nothing cancels near `a`
    or `b`; points closer to an end than a sixteenth of the working precision times `b - a` are evaluated at
    that distance.

    Inputs have shape `(batch, *event_shape)`. A new instance is the identity; get a useful one from `fit`, or
    from `load_state_dict` into `GaussianizeMarginals(event_shape, num_bins)`.

    Args:
        event_shape: the shape of an event.
        num_bins: pieces of each spline, 4 or more.

    Raises:
        ValueError: an input lies outside its interval (names the coordinate), or has another event shape.

    Example:
        >>> angles = torch.randn(1000, 3).clamp(-3, 3)
        >>> transform = GaussianizeMarginals.fit(angles, intervals={(2,): (-math.pi, math.pi)})
        >>> z, logabsdet = transform(angles)
    """

    min_samples: ClassVar[int] = MIN_SAMPLES
    """The fewest data that `fit` takes."""

    knots_x: Tensor  # (D, num_bins + 1), data units
    knots_y: Tensor  # (D, num_bins + 1), latent units for real coordinates, probability for intervals
    slopes: Tensor  # (D, num_bins + 1), dy/dx at the knots
    is_interval: Tensor  # (D,), bool

    def __init__(self, event_shape: Sequence[int], num_bins: int = 24) -> None:
        super().__init__()
        if num_bins < 4:
            raise ValueError(f"GaussianizeMarginals: num_bins is {num_bins}; use 4 or more.")
        self.event_shape = torch.Size(event_shape)
        self.num_bins = num_bins
        size = self.event_shape.numel()
        knots = torch.linspace(-3.0, 3.0, num_bins + 1).expand(size, -1)
        self.register_buffer("knots_x", knots.clone())
        self.register_buffer("knots_y", knots.clone())
        self.register_buffer("slopes", torch.ones_like(knots))
        self.register_buffer("is_interval", torch.zeros(size, dtype=torch.bool))

    @classmethod
    def fit(
        cls,
        data: Tensor,
        intervals: Mapping[int | tuple[int, ...], tuple[float, float]] | Tensor | None = None,
        *,
        bounds: tuple[float, float] = (-math.pi, math.pi),
        num_bins: int = 24,
        uniform_fraction: float = 0.01,
    ) -> GaussianizeMarginals:
        """Fit the splines to the marginals of data.

        Args:
            data: ``(N, *event_shape)``, 32 samples or more.
            intervals: which coordinates are bounded (default: none). A mapping from an index into the event shape (an
                int where the event has one dimension) to `(a, b)`; or a bool mask of the event shape, all with
                `bounds`.
            bounds: `(a, b)` of all coordinates that a mask marks.
            num_bins: pieces of each spline, 4 or more.
            uniform_fraction: weight of the uniform distribution mixed into the distribution of each interval,
                so that its density is positive where no data were seen.

        Raises:
            ValueError: too few or non-finite data, a constant coordinate, one whose scale or spread float32 cannot
                hold, or data outside an interval.
        """
        data = as_tensor(data)
        check_fit("GaussianizeMarginals.fit", data, uniform_fraction)
        transform = cls(data.shape[1:], num_bins)
        columns = as_float64(data).reshape(data.shape[0], -1).numpy().T
        flat_bounds = flat_intervals(intervals, transform.event_shape, bounds)
        for coordinate, column in enumerate(columns):
            index = tuple(int(i) for i in np.unravel_index(coordinate, transform.event_shape))
            interval = flat_bounds.get(coordinate)
            name = f"GaussianizeMarginals.fit: coordinate {index}"
            values = fit_coordinate(np.sort(column), interval, num_bins, uniform_fraction, name, data.dtype)
            for buffer, value in zip((transform.knots_x, transform.knots_y, transform.slopes), values, strict=True):
                buffer[coordinate] = torch.from_numpy(value)
            transform.is_interval[coordinate] = interval is not None
        return transform.to(data.device)

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        check_event_shape(inputs, self.event_shape, "GaussianizeMarginals")
        dtype = working_dtype(inputs)
        knots = self.knots_x.to(dtype)
        low, high, bounded = (
            values.reshape(self.event_shape) for values in (knots[:, 0], knots[:, -1], self.is_interval)
        )
        x = clamped("GaussianizeMarginals", inputs.to(dtype), low, high, bounded, inputs.dtype)
        x = flattened(x)
        bins = Bins(*self._corners(_search(knots, x), dtype))
        z, log_slope = bins.to_normal(x, knots[:, -1] - knots[:, 0])
        return z.reshape(inputs.shape), log_slope.sum(-1)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        check_event_shape(inputs, self.event_shape, "GaussianizeMarginals")
        dtype = working_dtype(inputs)
        z = flattened(inputs).to(dtype)
        interval = self.is_interval
        # erfc keeps the relative precision of a small tail, ndtr does not.
        index = _search(self.knots_y.to(dtype), torch.where(interval, lower_tail(z), z))
        x, log_slope = Bins(*self._corners(index, dtype)).from_normal(z)
        return x.reshape(inputs.shape), -log_slope.sum(-1)

    def _corners(self, index: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """What `Bins` takes of each point's bin."""
        table = corner_table(self.knots_x.to(dtype), self.knots_y.to(dtype), self.slopes.to(dtype))
        offset = torch.arange(len(self.is_interval), device=index.device) * self.num_bins
        return table[index + offset], self.is_interval


def _search(knots: Tensor, points: Tensor) -> Tensor:
    """Bin of each of `points` `(N, D)` among `knots` `(D, K + 1)`; the outer bins extend to infinity."""
    inner = knots[:, 1:-1].contiguous()
    return torch.searchsorted(inner, points.detach().t().contiguous()).t()


def working_dtype(inputs: Tensor) -> torch.dtype:
    return torch.promote_types(inputs.dtype, torch.float32)


def as_float64(data: Tensor) -> Tensor:
    """Data to fit to, on the CPU: not every device has float64."""
    return data.detach().cpu().to(torch.float64)


def _first_index(mask: Tensor) -> tuple[int, ...]:
    return tuple(int(i) for i in mask.nonzero()[0])
