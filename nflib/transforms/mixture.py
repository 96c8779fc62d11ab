"""Mixtures: a number is mapped by the distribution function of a mixture of normal components."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nflib.transforms._rational_quadratic import common_dtype, raw_parameters
from nflib.transforms._roots import increasing_root
from nflib.transforms.normal import lower_tail, normal_quantile
from nflib.transforms.univariate import Univariate, check_tail_bound

# Share of one more component, N(0, 1): the density is nowhere below that share of the base's.
MIN_PROBABILITY = 1e-3
MIN_SCALE = 1e-2  # of a component; the largest is its reciprocal


class NormalMixture(Univariate):
    """Maps a number by the distribution function F of a mixture of normals, ``z = ndtri(F(u))``, with linear tails.

    Numbers u ``(..., C)`` and parameters ``(..., C, 3 num_components)``: logits of the weights, raw means, raw
    log-scales. Returns z and the log-derivative of each number, both continuous in u; with z ~ N(0, 1), the density of
    u within ±tail_bound is the mixture's. One more component N(0, 1) of small weight keeps it above a share of the
    base's, and beyond ±tail_bound the map goes on with the slope that it has there. Parameters zero give the identity.
    `inverse` has no closed form: Newton's method, safeguarded by bisection, to rounding (its gradient is of first
    order).

    Args:
        num_components: beside the one of small weight, 2 or more.
        tail_bound: positive, in the unit of u; means lie within ±tail_bound.

    Raises:
        ValueError: settings out of range.

    >>> mixture = NormalMixture(num_components=3)
    >>> u, parameters = torch.linspace(-6, 6, 9), torch.randn(9, mixture.parameters_per_number)
    >>> z, log_derivative = mixture(u, parameters)
    >>> torch.allclose(mixture.inverse(z, parameters)[0], u, atol=1e-3)
    True
    """

    def __init__(self, num_components: int = 8, tail_bound: float = 5.0):
        super().__init__()
        if num_components < 2:
            raise ValueError(f"num_components must be 2 or more, got {num_components}.")
        check_tail_bound(tail_bound)
        self.num_components = num_components
        self.tail_bound = tail_bound
        self.parameters_per_number = 3 * num_components

    def forward(self, u: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        return self._evaluate(u, *self._components(u, parameters))

    def inverse(self, z: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        components = self._components(z, parameters)
        with torch.no_grad():
            u = self._solve(z.to(components[0].dtype), *components)
        found, log_derivative = self._evaluate(u, *components)
        # Newton's last step has the gradient of the solution.
        u = u + (z - found) * torch.exp(-log_derivative.detach())
        return u, -self._evaluate(u, *components)[1]

    def _components(self, points: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log-weights, means and log-scales, each ``(num_components + 1, ...)``."""
        logits, raw_means, raw_scales = raw_parameters(parameters, common_dtype(points, parameters)).chunk(3)
        # Equal components would have equal gradients, and stay equal: those that become narrower move apart.
        levels = torch.arange(self.num_components, dtype=logits.dtype, device=logits.device) + 0.5
        places = torch.special.ndtri(levels / self.num_components).view(-1, *[1] * (logits.dim() - 1))
        means = _bounded(raw_means - places * raw_scales, self.tail_bound)
        log_scales = _bounded(raw_scales, -math.log(MIN_SCALE))
        log_weights = logits.log_softmax(0) + math.log1p(-MIN_PROBABILITY)
        zero = torch.zeros_like(means[:1])
        return (
            torch.cat([log_weights, zero + math.log(MIN_PROBABILITY)]),
            torch.cat([means, zero]),
            torch.cat([log_scales, zero]),
        )

    def _evaluate(self, u: Tensor, log_weights: Tensor, means: Tensor, log_scales: Tensor) -> tuple[Tensor, Tensor]:
        u = u.to(means.dtype)
        body = u.clamp(-self.tail_bound, self.tail_bound)
        x = (body - means) * torch.exp(-log_scales)
        weights = log_weights.exp()
        # Each tail is summed by itself: small ones keep their relative precision.
        lower, upper = (weights * lower_tail(x)).sum(0), (weights * lower_tail(-x)).sum(0)
        z = normal_quantile(lower, upper)
        log_derivative = (log_weights - log_scales - 0.5 * x.square()).logsumexp(0) + 0.5 * z.square()
        return z + log_derivative.exp() * (u - body), log_derivative

    def _solve(self, z: Tensor, *components: Tensor) -> Tensor:
        low, high = torch.full_like(z, -self.tail_bound), torch.full_like(z, self.tail_bound)
        ends = [(end, *self._evaluate(end, *components)) for end in (low, high)]
        below, above = (end + (z - found) * torch.exp(-log_slope) for end, found, log_slope in ends)
        is_below, is_above = z < ends[0][1], z > ends[1][1]
        u = increasing_root(
            lambda points: self._evaluate(points, *components),
            *(z, low, high, z.clamp(-self.tail_bound, self.tail_bound)),
            tolerance=torch.finfo(z.dtype).eps * self.tail_bound,
            is_done=is_below | is_above,
        )
        return torch.where(is_below, below, torch.where(is_above, above, u))


def _bounded(raw: Tensor, bound: float) -> Tensor:
    """The raw number, softly kept within ±bound."""
    return bound * torch.tanh(raw / bound)
