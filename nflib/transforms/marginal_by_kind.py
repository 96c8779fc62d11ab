"""Marginal Gaussianisation of coordinates that come in kinds: the context says of which kind each number is."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nflib.transforms._intervals import clamped
from nflib.transforms._marginal_bins import Bins
from nflib.transforms._marginal_fit import check_fit, fit_coordinate
from nflib.transforms.inversion import ClosedForm
from nflib.transforms.marginal import GaussianizeMarginals, as_float64, working_dtype
from nflib.transforms.normal import lower_tail


class GaussianizeByKind(ClosedForm):
    """The maps of `GaussianizeMarginals`, one for each kind of number, for events of any shape and padding.

    The context says of which kind each number is. A new kind's map is the identity; `fit_kind` fits it, `copy_kind`
    copies that of another.

    Args:
        num_kinds: how many kinds there are.
        kinds: a function of the context that gives the kind of each number, ``(B, *event)`` int64, negative at padding,
            which becomes zero and carries no density.
        num_bins: pieces of each spline, 4 or more.

    Raises:
        ValueError: inputs have another shape than the kinds, or lie outside their interval.

    >>> transform = GaussianizeByKind(2, kinds=lambda context: context)
    >>> transform.fit_kind(0, 5 + torch.randn(1000))
    >>> kinds = torch.tensor([[0, 0, 1, -1]])  # the last number is padding
    >>> z, logabsdet = transform(torch.tensor([[5.0, 6.0, 0.5, 0.0]]), kinds)
    """

    uses_context = True
    knots_x: Tensor  # (num_kinds, num_bins + 1), data units
    knots_y: Tensor  # (num_kinds, num_bins + 1), latent units for real kinds, probability for intervals
    slopes: Tensor  # (num_kinds, num_bins + 1), dy/dx at the knots
    is_interval: Tensor  # (num_kinds,), bool

    def __init__(self, num_kinds: int, kinds: Callable[[Any], Tensor], num_bins: int = 24) -> None:
        super().__init__()
        self.kinds = kinds
        self.num_bins = num_bins
        identity = GaussianizeMarginals((1,), num_bins)
        for name in ("knots_x", "knots_y", "slopes"):
            self.register_buffer(name, getattr(identity, name).repeat(num_kinds, 1))
        self.register_buffer("is_interval", torch.zeros(num_kinds, dtype=torch.bool))

    def fit_kind(
        self,
        kind: int,
        data: Tensor,
        interval: tuple[float, float] | None = None,
        *,
        uniform_fraction: float = 0.01,
    ) -> None:
        """Fit the map of one kind.

        Args:
            kind: its number.
            data: values of this kind, ``(N,)``, 32 or more.
            interval: ``(a, b)`` where the values are bounded (default: real numbers).
            uniform_fraction: as for `GaussianizeMarginals.fit`.

        Raises:
            ValueError: no vector of data, no finite a < b, or data that `GaussianizeMarginals.fit` would not take.
        """
        if data.dim() != 1:
            raise ValueError(f"GaussianizeByKind.fit_kind: data has shape {tuple(data.shape)}; pass (N,).")
        check_fit("GaussianizeByKind.fit_kind", data[:, None], uniform_fraction)
        if interval is not None and not -math.inf < interval[0] < interval[1] < math.inf:
            raise ValueError(f"GaussianizeByKind.fit_kind: {interval} is no bounded interval; pass finite a < b.")
        values = np.sort(as_float64(data).numpy())
        name = f"GaussianizeByKind.fit_kind: kind {kind}"
        fitted = fit_coordinate(values, interval, self.num_bins, uniform_fraction, name, data.dtype)
        for buffer, row in zip((self.knots_x, self.knots_y, self.slopes), fitted, strict=True):
            buffer[kind] = torch.from_numpy(row)
        self.is_interval[kind] = interval is not None

    def copy_kind(self, source: int, target: int) -> None:
        """Give the kind `target` the map of the kind `source`."""
        for buffer in (self.knots_x, self.knots_y, self.slopes, self.is_interval):
            buffer[target] = buffer[source]

    def for_event(self, kinds: Tensor) -> GaussianizeMarginals:
        """The same maps for one event without padding, given the kinds of its numbers, an int64 tensor of its shape."""
        transform = GaussianizeMarginals(kinds.shape, self.num_bins).to(self.slopes.device)
        for name in ("knots_x", "knots_y", "slopes", "is_interval"):
            transform.register_buffer(name, getattr(self, name)[kinds.flatten()].clone())
        return transform

    def forward(self, inputs: Tensor, context: Any = None) -> tuple[Tensor, Tensor]:
        z, log_slope = self.forward_by_kind(inputs, self._kinds(inputs, context))
        return z, log_slope.flatten(1).sum(-1)

    def inverse(self, inputs: Tensor, context: Any = None) -> tuple[Tensor, Tensor]:
        x, log_slope = self.inverse_by_kind(inputs, self._kinds(inputs, context))
        return x, log_slope.flatten(1).sum(-1)

    def forward_by_kind(self, inputs: Tensor, kinds: Tensor) -> tuple[Tensor, Tensor]:
        """`forward` of numbers whose kinds, of the same shape, are given; with the logabsdet of each number."""
        kinds, exists = kinds.clamp_min(0), kinds >= 0
        x = inputs.to(working_dtype(inputs))
        knots = self.knots_x.to(x.dtype)
        low, high = knots[:, 0][kinds], knots[:, -1][kinds]
        x = torch.where(exists, x, 0.5 * (low + high))
        x = clamped("GaussianizeByKind", x, low, high, self.is_interval[kinds], inputs.dtype)
        z, log_slope = self._bins(knots, x, kinds).to_normal(x, high - low)
        return torch.where(exists, z, 0.0), torch.where(exists, log_slope, 0.0)

    def inverse_by_kind(self, inputs: Tensor, kinds: Tensor) -> tuple[Tensor, Tensor]:
        """`inverse` of numbers whose kinds, of the same shape, are given; with the logabsdet of each number."""
        exists = kinds >= 0
        kinds = kinds.clamp_min(0)
        z = torch.where(exists, inputs.to(working_dtype(inputs)), 0.0)
        y = torch.where(self.is_interval[kinds], lower_tail(z), z)
        x, log_slope = self._bins(self.knots_y.to(z.dtype), y, kinds).from_normal(z)
        return torch.where(exists, x, 0.0), torch.where(exists, -log_slope, 0.0)

    def _bins(self, knots: Tensor, points: Tensor, kinds: Tensor) -> Bins:
        """The piece of each point, found by its place among the knots of its kind."""
        index = (knots[:, 1:-1][kinds] < points.detach()[..., None]).sum(-1)
        # Only of the points: tables of all kinds would be larger than most batches.
        ends = [
            buffer.to(points.dtype)[kinds, index + end]
            for buffer in (self.knots_x, self.knots_y, self.slopes)
            for end in (0, 1)
        ]
        return Bins(torch.stack(ends, dim=-1), self.is_interval[kinds])

    def _kinds(self, inputs: Tensor, context: Any) -> Tensor:
        kinds = self.kinds(context)
        if kinds.shape != inputs.shape:
            raise ValueError(
                f"GaussianizeByKind: kinds of shape {tuple(kinds.shape)} do not fit inputs {tuple(inputs.shape)}."
            )
        return kinds
