"""What the family tree of a particle system says about the errors of its estimates.

After resampling, particles with a common ancestor among the first draws are not independent; families of different
ancestors nearly are. Variances are therefore sums over families, in one run and without repeating it (Chan & Lai, Ann.
Statist. 41 (2013) 2877; Lee & Whiteley, Biometrika 105 (2018) 609). They are consistent as N grows, and say nothing
once few ancestors are left: watch `History.num_ancestors`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nflib.montecarlo.diagnostics import effective_sample_size, normalized_weights, skewness_widening

__all__ = ["family_sums", "log_normalizer_variance", "offspring_variance", "relative_variance"]


def family_sums(values: Tensor, ancestors: Tensor) -> Tensor:
    """Sums of `values` `(N, *shape)` over particles of equal ancestor, `(number of families, *shape)`."""
    families, member = torch.unique(ancestors, return_inverse=True)
    return values.new_zeros(len(families), *values.shape[1:]).index_add_(0, member, values)


def relative_variance(
    log_weights: Tensor, ancestors: Tensor, resampling_noise: float = 0.0, num_draws: int | None = None
) -> float:
    """Variance of the mean weight over its square, from weights and ancestors `(N,)`.

    With multinomial resampling r times, and `resampling_noise` r, it is Lee & Whiteley's estimator, unbiased for
    the variance of the normaliser: `1 - M / (M - 1) (N / (N - 1))^r (1 - sum_e S_e^2)` with S_e the normalised
    weight of family e, of M first draws (num_draws; default N). Other schemes spread offspring by less, and
    `resampling_noise` sums `offspring_variance` over their resamplings. Without resampling it is the sample variance
    of the weights. NaN where every weight is zero or N < 2.
    """
    count = len(log_weights)
    if count < 2 or effective_sample_size(log_weights) == 0.0:
        return float("nan")
    concentration = family_sums(normalized_weights(log_weights), ancestors).square().sum().item()
    correction = (1.0 - 1.0 / (num_draws or count)) ** -1.0 * (1.0 - 1.0 / count) ** -resampling_noise
    return 1.0 - correction * (1.0 - concentration)


def log_normalizer_variance(
    log_weights: Tensor,
    ancestors: Tensor,
    resampling_noise: float = 0.0,
    block_variance: float = 0.0,
    num_draws: int | None = None,
) -> float:
    """Squared standard error of the log of the mean weight: `relative_variance`, times the square of
    `skewness_widening` of the families' weights. Infinite where every weight is zero or N < 2.

    `block_variance` sums the relative variances of the mean weight just before each resampling.
    """
    variance = relative_variance(log_weights, ancestors, resampling_noise, num_draws)
    if math.isnan(variance):
        return math.inf
    # Families are few and noisy; no run is better than one whose kernel forgets everything between two resamplings.
    alone = torch.arange(len(log_weights), device=log_weights.device)
    floor = block_variance + relative_variance(log_weights, alone)
    families = torch.zeros(num_draws or len(log_weights), dtype=torch.float64, device=log_weights.device)
    found = family_sums(normalized_weights(log_weights), ancestors)
    families[: len(found)] = found
    return max(variance, floor) * skewness_widening(families) ** 2


def offspring_variance(weights: Tensor, scheme: str, num_samples: int | None = None) -> float:
    """Variance of the particles' numbers of offspring, summed, over num_samples (default N), the number that are
    resampled from weights `(N,)`; multinomial: 1."""
    if scheme == "multinomial":
        # Less sum W^2, which Lee & Whiteley's factor accounts for already.
        return 1.0
    count = num_samples or len(weights)
    expected = count * weights.to(torch.float64) / weights.to(torch.float64).sum()
    fraction = expected - expected.floor()
    if scheme == "residual":
        left = fraction.sum()
        return ((left - fraction.square().sum() / left) / count).item() if left > 0.5 else 0.0
    if scheme == "stratified":
        end = expected.cumsum(0)
        start = end - expected
        first, last = (start.ceil() - start).clamp(max=expected), (end - end.floor()).clamp(max=expected)
        inside = start.floor() == end.floor()
        variance = torch.where(inside, expected * (1.0 - expected), first * (1.0 - first) + last * (1.0 - last))
        return variance.sum().item() / count
    return (fraction * (1.0 - fraction)).sum().item() / count
