"""Several autoregressive maps as one, whose conditional densities are the means of theirs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nflib.decoding import Sequential
from nflib.inference import is_traced
from nflib.interfaces import Decoder
from nflib.transforms._marginal_bins import LOG_SQRT_2PI, lower_tail
from nflib.transforms._roots import increasing_root
from nflib.transforms.causal_map import Autoregressive, NumberMap, NumberwiseAutoregressive


class AveragedAutoregressive(NumberwiseAutoregressive):
    """The mean of autoregressive maps, number by number: given the numbers before, its density is the mean of theirs.

    A map takes each number u of a token, given the numbers before, to ``z_k = ndtri(F_k(u))``, F_k its conditional
    distribution function. Their mean is one more map, ``z = ndtri(mean_k F_k(u))``: exact, and autoregressive as they
    are. Where maps that were trained apart err apart, their errors are averaged at each number, which is worth more
    than the mixture of their densities (`nflib.montecarlo.Mixture`), in which one map must be right from the first
    number to the last. One pass costs what the maps together do; `invert` finds each number by Newton's method.

    Args:
        parts: maps of equal tokens to independent N(0, 1) noise, none of which reads the number at its own place.
        decoding: how `inverse` solves (default: token by token).

    Raises:
        ValueError: no maps, or maps of tokens of different sizes.

    >>> from nflib.networks.transformer import CausalTransformer, transformer_layers
    >>> from nflib.transforms import TransformerAffineAutoregressive
    >>> networks = [CausalTransformer(2, 4, 32, transformer_layers(1, 32, head_dim=16)) for _ in range(3)]
    >>> average = AveragedAutoregressive([TransformerAffineAutoregressive(network) for network in networks])
    >>> z, logabsdet = average(torch.randn(5, 6, 2))
    >>> z.shape, logabsdet.shape
    (torch.Size([5, 6, 2]), torch.Size([5]))
    """

    def __init__(self, parts: Sequence[Autoregressive], decoding: Decoder | None = None):
        super().__init__()
        if len({part.token_size for part in parts}) != 1:
            sizes = ", ".join(str(part.token_size) for part in parts)
            raise ValueError(f"maps to average must be of tokens of one size, got {sizes or 'no maps'}.")
        self.parts: Any = nn.ModuleList(parts)
        self.decoding = decoding or Sequential()

    @property
    def token_size(self) -> int:
        size: int = self.parts[0].token_size
        return size

    @property
    def uses_context(self) -> bool:
        return any(part.uses_context for part in self.parts)

    def encode_context(self, context: Any) -> list[Any]:
        return [part.encode_context(context) for part in self.parts]

    def new_cache(self, batch_size: int, num_tokens: int, encoded_context: list[Any]) -> _Caches:
        pairs = zip(self.parts, encoded_context, strict=True)
        return _Caches(part.new_cache(batch_size, num_tokens, encoded) for part, encoded in pairs)

    def conditionals(
        self,
        tokens: Tensor,
        encoded_context: list[Any],
        cache: _Caches | None = None,
        start: int = 0,
        stop: int | None = None,
    ) -> list[Any]:
        caches = [None] * len(self.parts) if cache is None else cache
        triples = zip(self.parts, encoded_context, caches, strict=True)
        return [part.conditionals(tokens, encoded, own, start, stop) for part, encoded, own in triples]

    def to_noise(self, tokens: Tensor, conditionals: list[Any]) -> tuple[Tensor, Tensor]:
        return _mean([part.to_noise(tokens, own) for part, own in zip(self.parts, conditionals, strict=True)])

    def number_map(self, number: int, tokens: Tensor, conditionals: list[Any]) -> NumberMap:
        maps = [part.number_map(number, tokens, own) for part, own in zip(self.parts, conditionals, strict=True)]

        def to_noise(u: Tensor) -> tuple[Tensor, Tensor]:
            return _mean([own.to_noise(u) for own in maps])

        def from_noise(z: Tensor) -> Tensor:
            alone = torch.stack([own.from_noise(z) for own in maps])
            low, high = alone.amin(0), alone.amax(0)  # the average is between them
            tolerance = torch.finfo(z.dtype).eps * torch.maximum(low.abs(), high.abs()).clamp_min(1.0)
            return increasing_root(to_noise, z, low, high, alone.mean(0), tolerance)

        return NumberMap(to_noise, from_noise)


def _mean(mapped: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """The noise that belongs to the mean of distribution functions, and its log-derivative, by those of each."""
    noise, log_slopes = (torch.stack(outputs) for outputs in zip(*mapped, strict=True))
    average = normal_quantile(lower_tail(noise).mean(0), lower_tail(-noise).mean(0), noise)
    log_density = (log_slopes - 0.5 * noise.square()).logsumexp(0) - math.log(len(mapped))
    return average, log_density + 0.5 * average.square()


def normal_quantile(lower: Tensor, upper: Tensor, noise: Tensor | None = None) -> Tensor:
    """The normal number below which lies a probability, precise in both tails.

    Args:
        lower: the probability, precise where it is small, and positive.
        upper: one minus it, precise where that is small, and positive.
        noise: ``(K, ...)``, where the probability is the mean of the normal distribution function at these numbers: it
            may then be too small for its dtype, even zero.
    """
    is_lower = lower < upper
    # Not minimum(), whose gradient vanishes where both are equal.
    tail = torch.where(is_lower, lower, upper)
    if noise is None:
        score = torch.special.ndtri(tail)
        return torch.where(is_lower, score, -score)
    is_far = tail < 1e8 * torch.finfo(tail.dtype).tiny
    score = torch.special.ndtri(torch.where(is_far, 0.5, tail))
    if is_traced() or bool(is_far.any()):
        score = torch.where(is_far, _far_quantile(torch.where(is_lower, noise, -noise).clamp_max(-5.0)), score)
    return torch.where(is_lower, score, -score)


def _far_quantile(noise: Tensor) -> Tensor:
    """`normal_quantile` far below zero, from the logarithm of the mean."""
    log_mean = torch.special.log_ndtr(noise).logsumexp(0) - math.log(len(noise))
    score = noise.detach().amax(0)
    for _ in range(4):
        log_tail = torch.special.log_ndtr(score)
        # Newton's last step has the gradient of the solution.
        step = (log_mean - log_tail) * (log_tail + 0.5 * score.square() + LOG_SQRT_2PI).exp()
        last, score = score, (score + step).detach()
    return last + step


class _Caches(tuple[Any, ...]):
    """The cache of each map."""

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = self[0].dtype
        return dtype
