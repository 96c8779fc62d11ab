"""What a set of log-weights says about an importance sample: effective size, normaliser, tail of the weights.

Every function takes unnormalised log-weights of shape `(N,)`; `-inf` is a weight of zero and counts in `N`.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "effective_sample_size",
    "generalized_pareto_shape",
    "log_mean_weight",
    "log_mean_weight_standard_error",
    "normalized_weights",
    "pareto_k",
    "skewness_widening",
]

MIN_TAIL = 5


def normalized_weights(log_weights: Tensor) -> Tensor:
    """Weights that sum to one, float64 `(N,)`. Raises ValueError where every weight is zero."""
    log_weights = log_weights.to(torch.float64)
    if not torch.isfinite(log_weights.max()):
        raise ValueError(
            "normalized_weights: no sample has a finite positive weight; check that the proposal covers the "
            "target and that energies are finite."
        )
    return torch.softmax(log_weights, dim=0)


def effective_sample_size(log_weights: Tensor) -> float:
    """Kish's effective sample size `(sum w)^2 / sum w^2`, between 1 and N; 0 where every weight is zero."""
    if log_weights.max() == -torch.inf:
        return 0.0
    return 1.0 / normalized_weights(log_weights).square().sum().item()


def log_mean_weight(log_weights: Tensor) -> float:
    """`log(sum w / N)`: unbiased before the logarithm for log(Z_target / Z_proposal)."""
    return torch.logsumexp(log_weights.to(torch.float64), dim=0).item() - math.log(len(log_weights))


def log_mean_weight_standard_error(log_weights: Tensor) -> float:
    """Standard error of `log_mean_weight`; inf if N < 2.

    That of the delta method, std(w) / (mean(w) sqrt(N)), times `skewness_widening`.
    """
    count = len(log_weights)
    if count < 2 or log_weights.max() == -torch.inf:
        return math.inf
    variance = max(count / effective_sample_size(log_weights) - 1.0, 0.0) / (count - 1)
    return math.sqrt(variance) * skewness_widening(normalized_weights(log_weights))


def skewness_widening(values: Tensor) -> float:
    """By how much a standard error of the mean of `values` `(N,)` must grow where they are skewed to the right; from 1.

    A sample that missed the large values has too small a mean and too small a standard error at once. By the Edgeworth
    expansion of the studentised mean (Hall, The Bootstrap and Edgeworth Expansion, 1992) the truth lies z
    standard errors above it as often as it would for normal values when these are multiplied by
    `1 + (2 z^2 + 1) / (6 z) g`, with g the skewness over sqrt(N), `sum d^3 / (sum d^2)^(3/2)` of the deviations d: here
    z = 2, `1 + 3/4 g`. g falls like 1 / sqrt(N) and is one where a single value takes everything.
    """
    deviations = values - values.mean()
    scale = deviations.abs().max()
    if not scale > 0.0:
        return 1.0
    deviations = deviations / scale
    skewness = deviations.pow(3).sum() / deviations.square().sum().pow(1.5)
    return 1.0 + 0.75 * max(skewness.item(), 0.0)


def pareto_k(log_weights: Tensor) -> float:
    """Shape k of the generalised Pareto distribution of the largest weights (Vehtari et al. 2024, PSIS).

    The tail is the `min(N / 5, 3 sqrt(N))` largest weights. Below 0.5 the weights have finite variance;
    above 0.7 estimates are unreliable at practical N. `inf` if fewer than five weights stand above the
    tail's threshold (a few samples carry everything, or N is small), NaN if the largest weights are all
    equal (there is no tail).
    """
    log_w = log_weights.detach().to("cpu", torch.float64).numpy()
    tail_size = math.ceil(min(len(log_w) / 5, 3 * math.sqrt(len(log_w))))
    if tail_size < MIN_TAIL or log_w.max() == -np.inf:
        return math.inf
    largest = np.partition(log_w, len(log_w) - tail_size - 1)[-tail_size - 1 :] - log_w.max()
    threshold = max(largest.min(), math.log(np.finfo(np.float64).tiny))
    if threshold == 0.0:
        return math.nan
    # In units of the threshold (the shape has no scale), so that close weights keep their differences.
    tail = np.sort(np.expm1(largest[largest > threshold] - threshold))
    return generalized_pareto_shape(tail) if len(tail) >= MIN_TAIL else math.inf


def generalized_pareto_shape(excesses: np.ndarray) -> float:
    """Shape of a generalised Pareto distribution from sorted positive excesses over a threshold.

    Quasi-Bayesian estimator of Zhang & Stephens, Technometrics 51 (2009) 316, shrunk towards 0.5
    with the weight of ten observations as in PSIS. A positive shape k is a tail `x^(-1/k)`.
    """
    count = len(excesses)
    grid_size = 30 + math.isqrt(count)
    quartile = excesses[int(count / 4 + 0.5) - 1]
    steps = np.sqrt(grid_size / (np.arange(grid_size) + 0.5))
    theta = 1.0 / excesses[-1] + (1.0 - steps) / (3.0 * quartile)
    shapes = np.log1p(-theta[:, None] * excesses).mean(axis=1)
    log_likelihood = count * (np.log(-theta / shapes) - shapes - 1.0)
    posterior = np.exp(log_likelihood - log_likelihood.max())
    theta_mean = (theta * posterior).sum() / posterior.sum()
    shape = np.log1p(-theta_mean * excesses).mean()
    return float((count * shape + 10 * 0.5) / (count + 10))
