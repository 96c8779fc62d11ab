"""The normal distribution function and its inverse, precise in both tails."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nflib.inference import is_traced

LOG_SQRT_2PI = 0.5 * math.log(2.0 * math.pi)


def lower_tail(z: Tensor) -> Tensor:
    """The normal distribution function, precise in its lower tail."""
    return 0.5 * torch.erfc(z * -math.sqrt(0.5))


def normal_quantile(lower: Tensor, upper: Tensor) -> Tensor:
    """The number below which a normal one lies with a given probability.

    Args:
        lower: the probability, positive, precise where it is small.
        upper: one minus it, positive, precise where that is small.
    """
    is_lower = lower < upper
    # Not minimum(), whose gradient vanishes where both are equal.
    score = torch.special.ndtri(torch.where(is_lower, lower, upper))
    return torch.where(is_lower, score, -score)


def quantile_of_mean(noise: Tensor) -> Tensor:
    """The number whose normal distribution function is the mean of those of noise ``(K, ...)``, however small.

    Where that mean is too small for its dtype, the gradient is of first order.
    """
    lower, upper = lower_tail(noise).mean(0), lower_tail(-noise).mean(0)
    is_far = torch.minimum(lower, upper).detach() < 1e8 * torch.finfo(noise.dtype).tiny
    score = normal_quantile(torch.where(is_far, 0.5, lower), torch.where(is_far, 0.5, upper))
    if not is_traced() and not bool(is_far.any()):
        return score
    is_lower = lower < upper
    far = _far_quantile(torch.where(is_lower, noise, -noise).clamp_max(-5.0))
    return torch.where(is_far, torch.where(is_lower, far, -far), score)


def _far_quantile(noise: Tensor) -> Tensor:
    """`quantile_of_mean` far below zero, from the logarithm of the mean."""
    log_mean = torch.special.log_ndtr(noise).logsumexp(0) - math.log(len(noise))
    score = noise.detach().amax(0)
    for _ in range(4):
        log_tail = torch.special.log_ndtr(score)
        # Newton's last step has the gradient of the solution.
        step = (log_mean - log_tail) * (log_tail + 0.5 * score.square() + LOG_SQRT_2PI).exp()
        last, score = score, (score + step).detach()
    return last + step
