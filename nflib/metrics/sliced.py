"""Sliced Wasserstein distance by Monte Carlo over directions, with control variates that cut its variance."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from nflib.errors import is_whole
from nflib.metrics.control_variates import VARIATES, Moments, controlled_terms
from nflib.metrics.one_dimensional import quantile_distances
from nflib.metrics.samples import as_pair, as_weights, power_of_two
from nflib.random import given_generator

__all__ = ["SlicedWasserstein", "projected_wasserstein", "random_directions", "sliced_wasserstein"]

# Projected numbers held at once, both samples together: about 32 MB, and a few such arrays are alive together.
_CHUNK = 4_000_000


@dataclass(frozen=True)
class SlicedWasserstein:
    """An estimate of the squared sliced Wasserstein distance SW_2^2, the mean of W_2^2 over directions.

    Tensors are float64.

    Attributes:
        squared: SW_2^2, unbiased over the draw of directions (and so negative at times, when it is near zero).
        standard_error: of `squared`, from the spread of its terms.
        coefficients: gamma of the control variates, `(k,)`; for "both" those of shift and of variances.
        num_directions: as asked for.
        control_variate: as asked for.
    """

    squared: Tensor
    standard_error: Tensor
    coefficients: Tensor
    num_directions: int
    control_variate: str | None

    @property
    def distance(self) -> Tensor:
        """SW_2, the root of `squared`; 0 where that is negative. The root of an unbiased estimate is not unbiased."""
        return self.squared.clamp(min=0.0).sqrt()


@torch.no_grad()
def sliced_wasserstein(
    x: Tensor,
    y: Tensor,
    x_weights: Tensor | None = None,
    y_weights: Tensor | None = None,
    *,
    num_directions: int = 1000,
    control_variate: str | None = "both",
    leave_one_out: bool = True,
    generator: torch.Generator | None = None,
    seed: int | None = None,
) -> SlicedWasserstein:
    """Estimate the squared sliced Wasserstein distance SW_2^2 between two sets of samples, by random directions.

        SW_2^2 = E_t[W_2^2(t'x, t'y)],  t uniform on the unit sphere
        estimate = mean_l [ W_l - gamma_l' (C_l - E C) ]

    W_l is exact along each direction, for the samples given; as a distance of what they were drawn from it is too large
    on average. The control variates C come from Gaussians fitted to the projections, with
    means m and variances s^2 (Nguyen & Ho, arXiv 2305.00402), and their means over the sphere are known:

        "lower"  C = (t'(m_x - m_y))^2                  E C = |m_x - m_y|^2 / d
        "upper"  C = (t'(m_x - m_y))^2 + s_x^2 + s_y^2  E C = (|m_x - m_y|^2 + tr S_x + tr S_y) / d
        "both"   both, with a coefficient each
        None     no control variate

    Args:
        x: samples, `(n, d)`.
        y: samples, `(m, d)`.
        x_weights: `(n,)`, not necessarily normalised; None means equal weights.
        y_weights: `(m,)`, likewise.
        num_directions: L, of random directions.
        control_variate: "lower", "upper", "both" or None, as above.
        leave_one_out: fit gamma_l to the other directions, which keeps the estimate unbiased (see
            `control_variates.controlled_terms`); False fits one gamma to all of them, as published, with a bias O(1/L).
        generator: of the directions; neither this nor a seed means torch's global generator.
        seed: of a new generator, in place of one; the same seed gives the same directions.

    Returns:
        The estimate with its standard error.

    Raises:
        ValueError: shapes that disagree, non-finite samples, bad weights, an unknown control variate, too few
            directions for its coefficients, or generator and seed together.

    >>> import torch
    >>> x = torch.randn(500, 3, generator=torch.Generator().manual_seed(0))
    >>> estimate = sliced_wasserstein(x, x + 1.0, num_directions=100, seed=0)  # a pure shift: "lower" explains all
    >>> round(estimate.squared.item(), 6), estimate.standard_error.item() < 1e-12
    (1.0, True)
    """
    if control_variate is not None and control_variate not in VARIATES:
        raise ValueError(
            f"sliced_wasserstein: unknown control_variate {control_variate!r}; give one of "
            f"{', '.join(map(repr, VARIATES))}, or None."
        )
    # A slope and a mean, a spare residual, and one direction left out.
    least = {None: 2, "both": 5}.get(control_variate, 4)
    if not is_whole(num_directions, least):
        raise ValueError(
            f"sliced_wasserstein: num_directions is {num_directions}; control_variate={control_variate!r} needs "
            f"{least} or more, and an integer."
        )
    generator = given_generator(generator, seed)
    x, y = as_pair("sliced_wasserstein", x, y)
    x_weights = as_weights("sliced_wasserstein", "x_weights", x_weights, len(x), x.device)
    y_weights = as_weights("sliced_wasserstein", "y_weights", y_weights, len(y), x.device)

    directions = random_directions(num_directions, x.shape[1], generator).to(x.device)
    # Control variates are squares of squares, which leave the range of numbers before their estimate does.
    scale = power_of_two(torch.maximum(x.abs().max(), y.abs().max()))
    values, moments = projected_wasserstein(x / scale, y / scale, directions, x_weights, y_weights)
    coefficients = values.new_zeros(0)
    if control_variate is not None:
        variates, means = VARIATES[control_variate](moments)
        values, coefficients = controlled_terms(values, variates, means, leave_one_out)
    return SlicedWasserstein(
        squared=values.mean() * scale * scale,
        standard_error=values.std() / math.sqrt(num_directions) * scale * scale,
        coefficients=coefficients,
        num_directions=num_directions,
        control_variate=control_variate,
    )


def random_directions(num_directions: int, dimension: int, generator: torch.Generator | None = None) -> Tensor:
    """Random unit vectors, uniform on the sphere.

    Args:
        num_directions: how many.
        dimension: of the space.
        generator: of the random numbers; None: torch's global one.

    Returns:
        `(num_directions, dimension)`, float64, on the generator's device.
    """
    device = None if generator is None else generator.device
    normal = torch.randn(num_directions, dimension, generator=generator, dtype=torch.float64, device=device)
    return torch.nn.functional.normalize(normal, dim=1)


def projected_wasserstein(
    x: Tensor, y: Tensor, directions: Tensor, x_weights: Tensor | None = None, y_weights: Tensor | None = None
) -> tuple[Tensor, Moments]:
    """W_2^2 along each of the directions `(L, d)`, `(L,)`, and the `Moments` of the projections; unchecked.

    Float64 points and normalised weights. Directions are taken a chunk at a time, so memory grows with
    (n + m) x chunk, not with L. O(L (n + m) (d + log(n + m))); no covariance matrix is formed.
    """
    dimension = x.shape[1]
    # An offset that both share would cost the means their precision; the median is not drawn off by a few far samples.
    offset = y.median(dim=0).values
    x, y = x - offset, y - offset
    x_mean, y_mean = _mean(x, x_weights), _mean(y, y_weights)
    shift = x_mean - y_mean
    values, variance = [], []
    for part in directions.split(max(1, _CHUNK // (len(x) + len(y)))):
        # Centred first: variances do not cancel, and W_2^2 = shift^2 + W_2^2 of the centred projections.
        x_along, y_along = part @ (x - x_mean).T, part @ (y - y_mean).T
        distances, widths = quantile_distances(x_along, y_along, x_weights, y_weights)
        values.append((distances.square() * widths).sum(dim=-1))
        variance.append(_mean(x_along.square().T, x_weights) + _mean(y_along.square().T, y_weights))
    squared_shift = (directions @ shift).square()
    moments = Moments(
        squared_shift=squared_shift,
        variance=torch.cat(variance),
        mean_squared_shift=shift.square().sum() / dimension,
        mean_variance=(
            _mean((x - x_mean).square().sum(dim=1), x_weights) + _mean((y - y_mean).square().sum(dim=1), y_weights)
        )
        / dimension,
    )
    return squared_shift + torch.cat(values), moments


def _mean(values: Tensor, weights: Tensor | None) -> Tensor:
    """Mean over the first dimension."""
    return values.mean(dim=0) if weights is None else weights @ values
