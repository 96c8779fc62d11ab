"""Diagnostics of importance weights: effective sample size, normaliser, tail, and errors.

Every function takes unnormalised log-weights of shape `(N,)`, or deviations made of them; `-inf` is a weight of zero
and counts in `N`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "effective_sample_size",
    "error_inflation",
    "generalized_pareto_fit",
    "log_mean_weight",
    "normalized_weights",
    "pareto_k",
]

MIN_TAIL = 5
# Log-weights that differ by less are equal.
EQUAL = 1e-3
# The fitted tail is followed up to where a run of this size has one chance in twenty to go beyond.
BEYOND = 0.05
COLUMNS_AT_ONCE = 256


def normalized_weights(log_weights: Tensor) -> Tensor:
    """Normalised importance weights, which sum to one.

    Args:
        log_weights: unnormalised, `(N,)`, `-inf` for a weight of zero.

    Returns:
        `(N,)`, float64.

    Raises:
        ValueError: every weight is zero, one is NaN or infinite, or there are none.
    """
    log_weights = _as_log_weights("normalized_weights", log_weights)
    if not torch.isfinite(log_weights.max()):
        raise ValueError(
            "normalized_weights: no sample has a finite positive weight; check that the proposal covers the "
            "target and that energies are finite."
        )
    return torch.softmax(log_weights, dim=0)


def effective_sample_size(log_weights: Tensor) -> float:
    """Kish's effective sample size `(sum w)^2 / sum w^2`, a count between 1 and N; 0 where every weight is zero.

    Args:
        log_weights: unnormalised, `(N,)`, `-inf` for a weight of zero.

    Raises:
        ValueError: there are no weights, or one is NaN or infinite.

    >>> import torch
    >>> effective_sample_size(torch.tensor([0.0, 0.0, -torch.inf]))
    2.0
    """
    log_weights = _as_log_weights("effective_sample_size", log_weights)
    if log_weights.max() == -torch.inf:
        return 0.0
    return 1.0 / normalized_weights(log_weights).square().sum().item()


def log_mean_weight(log_weights: Tensor) -> float:
    """`log(sum w / N)`: unbiased before the logarithm for log(Z_target / Z_proposal)."""
    return torch.logsumexp(log_weights.to(torch.float64), dim=0).item() - math.log(len(log_weights))


def pareto_k(log_weights: Tensor) -> float:
    """Pareto k of importance weights: the shape of a generalised Pareto distribution fitted to the largest of them.

    (Vehtari et al. 2024, PSIS.) The tail is the `min(N / 5, 3 sqrt(N))` largest weights. Below 0.5 the weights have
    finite variance; above 0.7 estimates are unreliable at practical N.

    Args:
        log_weights: unnormalised, `(N,)`, `-inf` for a weight of zero.

    Returns:
        k; `inf` if fewer than five weights stand above the tail's threshold (a few samples carry everything, or N is
        small), NaN if the largest weights are all equal within a thousandth, where only the errors of a solver or of
        rounding make them differ (there is no tail).

    Raises:
        ValueError: there are no weights.
    """
    log_w = _as_log_weights("pareto_k", log_weights).detach().cpu().sort(descending=True).values
    size = tail_size(len(log_w))
    if size < MIN_TAIL or log_w[0] == -torch.inf:
        return math.inf
    log_w = log_w - log_w[0]
    if log_w[size] > -EQUAL:
        return math.nan
    # Weights may be equal, such as those of families of equal size: at least five must stand above the threshold.
    below = log_w[log_w < log_w[MIN_TAIL - 1]]
    threshold = torch.minimum(log_w[size], below[0]) if len(below) else log_w.new_tensor(-torch.inf)
    threshold = threshold.clamp(min=math.log(torch.finfo(torch.float64).tiny))
    # In units of the threshold (the shape has no scale), so that close weights keep their differences.
    tail = torch.expm1(log_w[log_w > threshold] - threshold).flip(0)
    return generalized_pareto_fit(tail)[0].item() if len(tail) >= MIN_TAIL else math.inf


def _as_log_weights(function: str, log_weights: Any) -> Tensor:
    """Log-weights `(N,)`, N > 0, as a tensor in float64."""
    log_weights = torch.as_tensor(log_weights, dtype=torch.float64)
    if log_weights.dim() != 1 or len(log_weights) == 0:
        raise ValueError(f"{function}: log_weights have shape {tuple(log_weights.shape)}; pass `(N,)`, N > 0.")
    return log_weights


def tail_size(count: int) -> int:
    """How many of the largest of `count` values are the tail."""
    return math.ceil(min(count / 5, 3 * math.sqrt(count)))


def generalized_pareto_fit(excesses: Tensor) -> tuple[Tensor, Tensor]:
    """Shape and scale of generalised Pareto distributions, from excesses over a threshold.

    Quasi-Bayesian estimator of Zhang & Stephens, Technometrics 51 (2009) 316; the shape is shrunk towards 0.5
    with the weight of ten observations as in PSIS. A positive shape k is a tail `x^(-1/k)`.

    Args:
        excesses: `(n, *shape)`, positive, ascending along the first dimension.

    Returns:
        Shape and scale, each of that shape.
    """
    count = len(excesses)
    grid_size = 30 + math.isqrt(count)
    quartile = excesses[int(count / 4 + 0.5) - 1]
    steps = (grid_size / (torch.arange(grid_size, dtype=excesses.dtype) + 0.5)).sqrt()
    theta = 1.0 / excesses[-1] + (1.0 - steps.reshape(-1, *[1] * quartile.dim())) / (3.0 * quartile)
    shapes = torch.log1p(-theta[:, None] * excesses).mean(dim=1)
    log_likelihood = count * ((-theta / shapes).log() - shapes - 1.0)
    theta = (theta * log_likelihood.softmax(dim=0)).sum(dim=0)
    shape = torch.log1p(-theta * excesses).mean(dim=0)
    return (count * shape + 10 * 0.5) / (count + 10), -shape / theta


def error_inflation(deviations: Tensor, *, fit_tails: bool) -> Tensor:
    """By how much the standard error `sqrt(sum d^2)` of a sum must grow where few terms make it; from 1 up.

    A sample that missed the large values has a wrong mean and too small a standard error at once. Two factors, chosen
    for coverage over repeated runs (benchmarks/coverage.py), make up for it:

    - Skewness, in the Edgeworth expansion of the studentised mean (Hall, The Bootstrap and Edgeworth Expansion, 1992):
      the truth lies z standard errors off as often as it would for normal values when these are multiplied by
      `1 + (2 z^2 + 1) / (6 z) |g|`, with `g = sum d^3 / (sum d^2)^(3/2)`: here z = 2, `1 + 3/4 |g|`.
    - The tails: the squares of the largest d are replaced by those that a generalised Pareto distribution fitted to
      them has on average, up to the value that one run in twenty exceeds, if that is more, and so are those of the
      smallest. Its shape is taken half a standard error, `(1 + k) / sqrt(tail size)`, above the estimate, which is low
      in the very runs that missed the tail, and at most 1.

    Args:
        deviations: `(N, *shape)`, each term's part of the deviation from the mean.
        fit_tails: take the second factor, too. Sums over families of resampled particles have no such tail: their
            sizes are small whole numbers.

    Returns:
        Factors of that shape, float64, on the CPU.
    """
    count, shape = len(deviations), deviations.shape[1:]
    d = deviations.detach().to("cpu", torch.float64).reshape(count, -1)
    d = d / d.abs().amax(dim=0).clamp(min=torch.finfo(torch.float64).tiny)
    total = d.square().sum(dim=0)
    factor = 1.0 + 0.75 * (d.pow(3).sum(dim=0) / total.pow(1.5)).abs()
    if fit_tails and tail_size(count) >= MIN_TAIL:
        parts = d.split(COLUMNS_AT_ONCE, dim=1)
        missed = torch.cat([_missed_squares(part) + _missed_squares(-part) for part in parts])
        factor = factor * (1.0 + missed / total).sqrt()
    return factor.nan_to_num(nan=1.0).clamp(min=1.0).reshape(shape)


def _missed_squares(deviations: Tensor) -> Tensor:
    """By how much the squares of the largest of `(N, C)` are fewer than those of a tail fitted to them, `(C,)`."""
    number = tail_size(len(deviations))
    largest = deviations.topk(number + 1, dim=0).values.flip(0)
    threshold, excesses = largest[0], largest[1:] - largest[0]
    shape, scale = generalized_pareto_fit(excesses)
    # Beyond 1 there is no mean: what is fitted there are values that are nearly equal, to rounding.
    shape = (shape + 0.5 * (1.0 + shape) / math.sqrt(number)).clamp(max=1.0)
    # Neither 0, 1/2 nor 1, where the closed forms below are limits.
    shape = torch.where(((2.0 * shape).round() - 2.0 * shape).abs() < 1e-4, shape + 1e-4, shape)
    # The excess of quantile 1 - v is scale / shape (v^-shape - 1): averages over v from BEYOND / number to 1.
    lowest = math.log(BEYOND / number)
    first, second = (
        -torch.expm1((1.0 - power) * lowest) / ((1.0 - power) * (1.0 - math.exp(lowest)))
        for power in (shape, 2.0 * shape)
    )
    mean = scale / shape * (first - 1.0)
    mean_square = (scale / shape).square() * (second - 2.0 * first + 1.0)
    tail = number * (threshold.square() + 2.0 * threshold * mean + mean_square)
    # A tail of equal values cannot be fitted, and none is missed.
    return (tail - largest[1:].square().sum(dim=0)).nan_to_num(nan=0.0, posinf=0.0).clamp(min=0.0)
