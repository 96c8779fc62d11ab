"""Piecewise-linear distribution functions: densities constant in bins of equal probability under the base."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from nflib.transforms._rational_quadratic import common_dtype, raw_parameters
from nflib.transforms.normal import lower_tail, normal_quantile
from nflib.transforms.univariate import Univariate

# Shared equally by all bins, so that the density is positive and the map invertible.
MIN_PROBABILITY = 1e-3


class _Binned(Univariate):
    """`z = Q(F(P(u)))`: P the base's distribution function, Q its inverse, F piecewise linear on [0, 1].

    A point is measured from the nearer end of the range, by its tail probability there (at most 1/2), and F is
    summed from both ends: small tails keep their relative precision on either side.
    """

    def __init__(self, num_bins: int):
        super().__init__()
        if num_bins < 2:
            raise ValueError(f"num_bins must be 2 or more, got {num_bins}.")
        self.num_bins = num_bins
        self.parameters_per_number = num_bins

    def forward(self, u: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        return self._map(u, parameters, inverse=False)

    def inverse(self, z: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        return self._map(z, parameters, inverse=True)

    def _map(self, points: Tensor, parameters: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def _probabilities(self, parameters: Tensor, dtype: torch.dtype, mirror: Tensor) -> Tensor:
        """Probabilities of the bins ``(K, ...)``, the first one that at the end which the point is nearer to."""
        raw = raw_parameters(parameters, dtype)
        raw = torch.where(mirror, raw.flip(0), raw)
        return MIN_PROBABILITY / self.num_bins + (1 - MIN_PROBABILITY) * raw.softmax(0)

    def _cumulate(self, tail: Tensor, probabilities: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """F and 1 - F at the tail probability `tail`, and log F'."""
        position = tail * self.num_bins
        index = position.detach().long().clamp(0, self.num_bins - 1)
        before, own, after = _around(index, probabilities)
        share = (position - index).clamp(0, 1)
        return before + own * share, after + own * (1 - share), (own * self.num_bins).log()

    def _invert(self, tail: Tensor, probabilities: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """p and 1 - p where F(p) is `tail`, and log F'(p)."""
        edges = probabilities[:-1].cumsum(0)
        index = (edges <= tail).sum(0)
        before, own, _ = _around(index, probabilities)
        share = ((tail - before) / own).clamp(0, 1)
        others = self.num_bins - 1 - index
        return (index + share) / self.num_bins, (others + 1 - share) / self.num_bins, (own * self.num_bins).log()


def _around(index: Tensor, probabilities: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Probability below, within and above the bin `index`, each summed from its own end."""
    below = nn.functional.pad(probabilities[:-1].cumsum(0).movedim(0, -1), (1, 0)).movedim(-1, 0)
    above = nn.functional.pad(probabilities[1:].flip(0).cumsum(0).flip(0).movedim(0, -1), (0, 1)).movedim(-1, 0)
    before, own, after = (table.gather(0, index[None])[0] for table in (below, probabilities, above))
    return before, own, after


class BinnedUniform(_Binned):
    """Piecewise-linear map of [low, high] onto itself, of constant density in each of `num_bins` equal bins.

    Numbers u ``(..., C)`` and parameters ``(..., C, num_bins)``: logits of the bins' probabilities. Returns z and the
    log-derivative of each number (a step function of u). Outside the interval, and with equal parameters, it is the
    identity. With z uniform on the interval, the density of u is exp(log-derivative) / (high - low).

    Args:
        num_bins: 2 or more.
        low: lower end of the interval, finite, in the unit of u.
        high: upper end.

    Raises:
        ValueError: settings out of range.

    >>> binned = BinnedUniform(num_bins=4, low=0.0, high=1.0)
    >>> logits = torch.tensor([0.7, 0.1, 0.1, 0.1]).log()
    >>> binned(torch.tensor(0.25), logits)[0]  # the probability of the first quarter
    tensor(0.6995)
    """

    is_normal = False

    def __init__(self, num_bins: int = 16, low: float = -1.0, high: float = 1.0):
        super().__init__(num_bins)
        if not -math.inf < low < high < math.inf:
            raise ValueError(f"({low!r}, {high!r}) is no bounded interval; give finite low < high.")
        self.low, self.high = low, high

    def _map(self, points: Tensor, parameters: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        span = self.high - self.low
        points = points.to(common_dtype(points, parameters))
        inside = (points > self.low) & (points < self.high)
        within = torch.where(inside, points, self.low)
        mirror = within > self.low + span / 2
        probabilities = self._probabilities(parameters, points.dtype, mirror)
        tail = torch.where(mirror, self.high - within, within - self.low) / span
        near, far, log_slope = (self._invert if inverse else self._cumulate)(tail, probabilities)
        lower, upper = torch.where(mirror, far, near), torch.where(mirror, near, far)
        result = torch.where(lower < upper, self.low + span * lower, self.high - span * upper)
        result = torch.where(inside, result, points)
        return result, torch.where(inside, -log_slope if inverse else log_slope, 0.0)


class BinnedNormal(_Binned):
    """Maps a number so that its density, relative to N(0, 1), is constant in `num_bins` bins of equal probability.

    Numbers u ``(..., C)`` and parameters ``(..., C, num_bins)``: logits of the bins' probabilities. Returns

        z = ndtri(F(ndtr(u))),   dz/du = F'(ndtr(u)) φ(u) / φ(z)

    and its logarithm: with z ~ N(0, 1), the density of u is F' φ(u), a step function in each bin times N(0, 1).
    Equal parameters give the identity. Tails are precise in float32 however far out: F is linear in the outermost bins.

    Args:
        num_bins: 2 or more.

    Raises:
        ValueError: settings out of range.

    >>> binned = BinnedNormal(num_bins=4)
    >>> logits = torch.tensor([0.7, 0.1, 0.1, 0.1]).log().expand(2, -1)
    >>> z, log_derivative = binned(torch.tensor([-40.0, 0.0]), logits)
    >>> torch.allclose(binned.inverse(z, logits)[0], torch.tensor([-40.0, 0.0]), atol=1e-5)
    True
    """

    def __init__(self, num_bins: int = 64):
        super().__init__(num_bins)

    def _map(self, points: Tensor, parameters: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        points = points.to(common_dtype(points, parameters))
        mirror = points > 0
        probabilities = self._probabilities(parameters, points.dtype, mirror)
        distance = torch.where(mirror, points, -points)  # abs() has no gradient at zero
        # Beyond it, tail probabilities leave the range of the dtype.
        reach = 30.0 if probabilities.dtype == torch.float64 else 10.0
        body = distance.clamp(max=reach)
        near, far, log_slope = (self._invert if inverse else self._cumulate)(lower_tail(-body), probabilities)
        result = -normal_quantile(near, far)  # measured outwards, as `distance`
        log_slope = (-log_slope if inverse else log_slope) + 0.5 * (result - body) * (result + body)
        log_scale = (probabilities[0] * self.num_bins).log()
        tail, tail_log_slope = _scaled_tail(distance.clamp(min=reach), -log_scale if inverse else log_scale)
        outside = distance > reach
        result = torch.where(outside, tail, result)
        return torch.where(mirror, result, -result), torch.where(outside, tail_log_slope, log_slope)


def _scaled_tail(x: Tensor, log_scale: Tensor) -> tuple[Tensor, Tensor]:
    """y with ndtr(-y) = scale · ndtr(-x), and log dy/dx, for large x.

    With ndtr(-x) = φ(x) R(x), R the Mills ratio: y² = x² - 2 log scale - 2 log(R(x) / R(y)), which contracts by about
    1/x², and dy/dx = scale · φ(x) / φ(y) = R(y) / R(x).
    """
    mills = _log_mills(x)
    y = x
    for _ in range(6):
        y = x * (1 - 2 * (log_scale + mills - _log_mills(y)) / x.square()).sqrt()
    return y, _log_mills(y) - mills


def _log_mills(x: Tensor) -> Tensor:
    """log(ndtr(-x) / φ(x)), without its constant."""
    return torch.special.erfcx(x.clamp(max=1e15) * math.sqrt(0.5)).log()
