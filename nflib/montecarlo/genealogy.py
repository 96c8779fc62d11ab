"""What the family tree of a particle system says about the errors of its estimates.

After resampling, particles with a common ancestor among the first draws are not independent; families of different
ancestors nearly are. Variances are therefore sums over families, in one run and without repeating it (Chan & Lai, Ann.
Statist. 41 (2013) 2877; Lee & Whiteley, Biometrika 105 (2018) 609). They are consistent as N grows, and say nothing
once few ancestors are left. Samples without a common history are each a family of their own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nflib.events import per_row
from nflib.montecarlo.diagnostics import error_inflation, normalized_weights, pareto_k
from nflib.montecarlo.resampling import expected_copies

__all__ = [
    "Resamplings",
    "family_sums",
    "log_normalizer_variance",
    "mean_error",
    "offspring_variance",
    "relative_variance",
]

# Independent draws inside an event, and outside, below which the error of its probability is not told; five equal
# weights are five, whatever rounding says.
MIN_EFFECTIVE_COUNT = 5.0 * (1.0 - 1e-9)


@dataclass(frozen=True)
class Resamplings:
    """What is remembered of the resamplings of a run, for the errors of later estimates.

    Attributes:
        offspring_variance: `offspring_variance`, summed over all resamplings.
        block_variance: the relative variance of the mean weight just before each, likewise.
        pareto_k: the largest of the weights just before each, which a resampling hides.
        num_draws: draws of the proposal before the first; None: as many as samples.
    """

    offspring_variance: float = 0.0
    block_variance: float = 0.0
    pareto_k: float = -math.inf
    num_draws: int | None = None

    def after(self, log_weights: Tensor, scheme: str, num_samples: int) -> Resamplings:
        """These with one more resampling.

        Args:
            log_weights: before it, `(N,)`, some of them finite.
            scheme: of `nflib.montecarlo.resample`.
            num_samples: how many were resampled.
        """
        weights = normalized_weights(log_weights)
        return replace(
            self,
            offspring_variance=self.offspring_variance + offspring_variance(weights, scheme, num_samples),
            block_variance=self.block_variance + relative_variance(log_weights),
            pareto_k=max(self.pareto_k, pareto_k(log_weights)),  # a NaN, of equal weights, is not larger
        )


NONE = Resamplings()


def family_sums(values: Tensor, ancestors: Tensor | None) -> Tensor:
    """Sums of `values` `(N, *shape)` over particles of equal ancestor, `(number of families, *shape)`."""
    if ancestors is None:
        return values
    families, member = torch.unique(ancestors, return_inverse=True)
    return values.new_zeros(len(families), *values.shape[1:]).index_add_(0, member, values)


def relative_variance(log_weights: Tensor, ancestors: Tensor | None = None, resamplings: Resamplings = NONE) -> float:
    """Variance of the mean weight over its square, from weights and ancestors `(N,)`.

    With multinomial resampling r times, and an offspring variance of r, it is Lee & Whiteley's estimator, unbiased for
    the variance of the normaliser: `1 - M / (M - 1) (N / (N - 1))^r (1 - sum_e S_e^2)` with S_e the normalised
    weight of family e, of M first draws. Other schemes spread offspring by less. Without resampling it is the sample
    variance of the weights. There must be two weights or more, some of them positive.
    """
    count = len(log_weights)
    concentration = family_sums(normalized_weights(log_weights), ancestors).square().sum().item()
    draws = resamplings.num_draws or count
    correction = (1.0 - 1.0 / draws) ** -1.0 * (1.0 - 1.0 / count) ** -resamplings.offspring_variance
    return 1.0 - correction * (1.0 - concentration)


def log_normalizer_variance(
    log_weights: Tensor, ancestors: Tensor | None = None, resamplings: Resamplings = NONE
) -> float:
    """Squared standard error of the log of the mean weight, of the arguments of `relative_variance`.

    It is `relative_variance`, times the square of `error_inflation` of the families' weights.
    """
    variance = relative_variance(log_weights, ancestors, resamplings)
    # Families are few and noisy; no run is better than one whose kernel forgets everything between two resamplings.
    floor = resamplings.block_variance + relative_variance(log_weights)
    families = family_sums(normalized_weights(log_weights), ancestors)
    deviations = families - 1.0 / (resamplings.num_draws or len(log_weights))
    inflation = error_inflation(deviations, fit_tails=len(families) == len(log_weights)).item()
    return max(variance, floor, 0.0) * inflation**2


def mean_error(
    weights: Tensor, values: Tensor, ancestors: Tensor | None, num_samples: int, *, is_event: bool = False
) -> Tensor:
    """Standard error of the mean ``sum w f``, as `WeightedSamples.expectation` explains it.

    Args:
        weights: w, normalised, `(n,)`, of the samples of positive weight.
        values: f, `(n, *shape)`, float64.
        ancestors: of these samples, `(n,)`; None: all are independent.
        num_samples: how many there are with those of weight zero, two or more.
        is_event: whether values are 0 or 1, and an error is infinite where too few draws are inside, or outside.
    """
    weights = per_row(weights, values)
    alone = weights * (values - (weights * values).sum(0))
    families = family_sums(alone, ancestors)
    variance = torch.maximum(alone.square().sum(0), families.square().sum(0)) * num_samples / (num_samples - 1)
    inflation = error_inflation(families, fit_tails=len(families) == len(alone))
    error = variance.sqrt() * inflation.to(values.device)
    for side in (values, 1.0 - values) if is_event else ():
        parts = family_sums(weights * side, ancestors)
        enough = parts.sum(0).square() > MIN_EFFECTIVE_COUNT * parts.square().sum(0)
        error = torch.where(enough, error, torch.inf)
    return error


def offspring_variance(weights: Tensor, scheme: str, num_samples: int | None = None) -> float:
    """Variance of the particles' numbers of offspring in a resampling, summed, over num_samples; multinomial: 1.

    Args:
        weights: `(N,)`, normalised or not.
        scheme: of `nflib.montecarlo.resample`.
        num_samples: how many are resampled (default N).
    """
    if scheme == "multinomial":
        # Less sum W^2, which Lee & Whiteley's factor accounts for already.
        return 1.0
    count = num_samples or len(weights)
    expected, whole = expected_copies(weights, count)
    fraction = (expected - whole).clamp(min=0.0)
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
