"""Monotonic maps of single numbers: u ``(..., C)`` with parameters ``(..., C, parameters_per_number)``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from nflib.transforms._rational_quadratic import (
    MIN_BIN,
    MIN_SLOPE,
    common_dtype,
    raw_parameters,
    spline,
    spline_knots,
    spline_slopes,
)


class Univariate(nn.Module):
    """Base class of monotonic maps of single numbers, by parameters that a network gives for each.

    Numbers u and z and their log-derivatives are ``(..., C)``, parameters ``(..., C, parameters_per_number)``.

    Attributes:
        parameters_per_number: how many parameters the map of one number takes.
        features_per_number: how many numbers a network reads of each (`features`).
        is_normal: whether z is to be normal, not uniform on an interval or circle.
    """

    parameters_per_number: int
    features_per_number = 1
    is_normal = True

    def forward(self, u: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Map u to z; returns z and ``log dz/du`` of each number."""
        raise NotImplementedError

    def inverse(self, z: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Map z to u; returns u and ``log du/dz`` of each number."""
        raise NotImplementedError

    def features(self, u: Tensor) -> Tensor:
        """What networks read of numbers ``(..., C)``, continuous where these are: ``(..., C, features_per_number)``."""
        return u.unsqueeze(-1)

    def of_number(self, number: int) -> Univariate:
        """The map of one number of the last dimension, by as many of its parameters as it takes."""
        return self


class _Spline(Univariate):
    """Monotone pieces between -tail_bound and tail_bound, the identity outside; a subclass places the knots."""

    def __init__(self, num_bins: int = 8, tail_bound: float = 5.0):
        super().__init__()
        check_num_bins(num_bins)
        check_tail_bound(tail_bound)
        self.num_bins = num_bins
        self.tail_bound = tail_bound

    def forward(self, u: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        return self._map(u, parameters, inverse=False)

    def inverse(self, z: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        return self._map(z, parameters, inverse=True)

    def _map(self, points: Tensor, parameters: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        raw = raw_parameters(parameters, common_dtype(points, parameters))
        inside = points.abs() < self.tail_bound
        result, log_derivative = spline(torch.where(inside, points, 0.0), *self._knots(raw), inverse)
        return torch.where(inside, result, points), torch.where(inside, log_derivative, 0.0)

    def _knots(self, raw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Knots in u and in z and the slopes there, each ``(num_bins + 1, ...)``, by raw parameters ``(P, ...)``."""
        raise NotImplementedError

    def _edges(self, raw: Tensor) -> Tensor:
        return spline_knots(raw, -self.tail_bound, self.tail_bound)


class RationalQuadraticSpline(_Spline):
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
        super().__init__(num_bins, tail_bound)
        self.parameters_per_number = 3 * num_bins - 1

    def _knots(self, raw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        widths, heights, raw_slopes = raw.split([self.num_bins, self.num_bins, self.num_bins - 1])
        return self._edges(widths), self._edges(heights), _ends_of_one(spline_slopes(raw_slopes))


class QuadraticSpline(_Spline):
    """Monotonic quadratic spline with linear tails: slopes linear in each bin (Müller et al. 2019, arXiv 1808.03856).

    Numbers u ``(..., C)`` and parameters ``(..., C, 2 num_bins - 1)``: raw bin widths, and logarithms of the slopes at
    the inner knots up to a factor, which the range fixes. Returns z and the log-derivative of each number, continuous
    in u. Outside ±tail_bound it is the identity; with parameters zero it is the identity everywhere.

    Args:
        num_bins: pieces between -tail_bound and tail_bound.
        tail_bound: positive, in the unit of u.

    Raises:
        ValueError: settings out of range.

    >>> spline = QuadraticSpline(num_bins=2, tail_bound=1.0)
    >>> u, parameters = torch.tensor([-0.5, 0.0, 3.0]), torch.zeros(3, spline.parameters_per_number)
    >>> spline(u, parameters)[0]
    tensor([-0.5000,  0.0000,  3.0000])
    """

    def __init__(self, num_bins: int = 8, tail_bound: float = 5.0):
        super().__init__(num_bins, tail_bound)
        self.parameters_per_number = 2 * num_bins - 1

    def _knots(self, raw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        raw_widths, raw_slopes = raw.split([self.num_bins, self.num_bins - 1])
        knots_u = self._edges(raw_widths)
        widths = knots_u.diff(dim=0)
        # What a knot's slope adds to the rise from end to end, in units of that slope: half of the bins beside it.
        weights = (widths[:-1] + widths[1:]) / 2
        rises = weights.sum(0) * (raw_slopes + weights.log()).softmax(0)
        slopes = _ends_of_one(MIN_SLOPE + (1 - MIN_SLOPE) * rises / weights)
        inner = (widths * (slopes[:-1] + slopes[1:]) / 2)[:-1].cumsum(0) - self.tail_bound
        # A rational-quadratic piece is quadratic where the mean of its end slopes is its mean slope.
        return knots_u, torch.cat([knots_u[:1], inner, knots_u[-1:]]), slopes


def _ends_of_one(inner: Tensor) -> Tensor:
    """Slopes at all knots: the tails have slope one."""
    return torch.cat([torch.ones_like(inner[:1]), inner, torch.ones_like(inner[:1])])


class PerNumber(Univariate):
    """A map of its own for each number of the last dimension, such as a spline for lengths, a circular one for angles.

    All numbers have as many parameters and features as the one that needs most; surplus parameters are not read, and
    surplus features are zero.

    Args:
        univariates: a map for each number; numbers of the same kind are best given the same object, for speed.

    >>> from nflib.transforms import CircularRationalQuadraticSpline
    >>> spline = PerNumber([RationalQuadraticSpline(), CircularRationalQuadraticSpline()])
    >>> z, log_derivative = spline(torch.randn(5, 2), torch.zeros(5, 2, spline.parameters_per_number))
    """

    def __init__(self, univariates: Sequence[Univariate]):
        super().__init__()
        self.univariates = nn.ModuleList(dict.fromkeys(univariates))
        self._numbers = [[c for c, own in enumerate(univariates) if own is kind] for kind in self.univariates]
        listed = [number for numbers in self._numbers for number in numbers]
        self._places = [listed.index(number) for number in range(len(listed))]
        self.parameters_per_number = max(univariate.parameters_per_number for univariate in univariates)
        self.features_per_number = max(univariate.features_per_number for univariate in univariates)
        self.is_normal = all(univariate.is_normal for univariate in univariates)

    def forward(self, u: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        return self._joined([kind(u[..., own], raw) for kind, own, raw in self._kinds(parameters)])

    def inverse(self, z: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        return self._joined([kind.inverse(z[..., own], raw) for kind, own, raw in self._kinds(parameters)])

    def features(self, u: Tensor) -> Tensor:
        pieces = []
        for kind, own in zip(self.univariates, self._numbers, strict=True):
            features = kind.features(u[..., own])  # type: ignore[operator]
            pieces.append(nn.functional.pad(features, (0, self.features_per_number - features.shape[-1])))
        return torch.cat(pieces, dim=-2)[..., self._places, :]

    def of_number(self, number: int) -> Univariate:
        kind = next(kind for kind, own in zip(self.univariates, self._numbers, strict=True) if number in own)
        return cast(Univariate, kind)

    def _kinds(self, parameters: Tensor) -> list[tuple[Any, list[int], Tensor]]:
        """Each kind, the numbers that it maps, and their parameters."""
        return [
            (kind, own, parameters[..., own, : kind.parameters_per_number])
            for kind, own in zip(self.univariates, self._numbers, strict=True)
        ]

    def _joined(self, pieces: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        mapped, log_derivatives = (torch.cat(part, dim=-1)[..., self._places] for part in zip(*pieces, strict=True))
        return mapped, log_derivatives


def check_num_bins(num_bins: int) -> None:
    """ValueError for a number of bins that no rational-quadratic spline has."""
    if num_bins < 2 or num_bins * MIN_BIN >= 1:
        raise ValueError(f"num_bins must be between 2 and {int(1 / MIN_BIN) - 1}, got {num_bins}.")


def check_tail_bound(tail_bound: float) -> None:
    """ValueError for a bound beyond which no tails go on."""
    if not 0 < tail_bound < math.inf:
        raise ValueError(f"tail_bound must be a positive number, got {tail_bound!r}.")
