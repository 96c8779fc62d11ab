"""Several autoregressive maps as one, whose conditional densities are the means of theirs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nflib.decoding import Sequential
from nflib.interfaces import Decoder
from nflib.transforms._roots import increasing_root
from nflib.transforms.causal_map import Autoregressive, NumberMap, NumberwiseAutoregressive
from nflib.transforms.normal import quantile_of_mean


class AveragedAutoregressive(NumberwiseAutoregressive):
    """The mean of autoregressive maps, number by number: given the numbers before, its density is the mean of theirs.

    A map takes each number u of a token, given the numbers before, to ``z_k = ndtri(F_k(u))``, F_k its conditional
    distribution function. Their mean is one more map, ``z = ndtri(mean_k F_k(u))``: exact, and autoregressive as they
    are. Its expected log-density is at least the mean of theirs. Maps that were trained apart err apart, and their
    errors are averaged at each number; in a mixture of their densities (`nflib.montecarlo.Mixture`) one map must be
    right from the first number to the last. One pass costs what the maps together do; `invert` finds each number by
    Newton's method.

    Args:
        parts: maps of the same tokens, in the same order, to independent N(0, 1) noise.
        decoding: how `inverse` solves (default: token by token).

    Raises:
        ValueError: no maps, parts that are no autoregressive maps, or maps of tokens of different sizes, or to other
            noise, as those of angles are.

    >>> from nflib.networks import CausalTransformer, transformer_layers
    >>> from nflib.transforms import TransformerAffineAutoregressive
    >>> networks = [CausalTransformer(2, 4, 32, transformer_layers(1, 32, head_dim=16)) for _ in range(3)]
    >>> average = AveragedAutoregressive([TransformerAffineAutoregressive(network) for network in networks])
    >>> z, logabsdet = average(torch.randn(5, 6, 2))
    >>> z.shape, logabsdet.shape
    (torch.Size([5, 6, 2]), torch.Size([5]))
    """

    def __init__(self, parts: Sequence[Autoregressive], decoding: Decoder | None = None):
        super().__init__()
        parts = list(parts)
        for part in parts:
            if not isinstance(part, Autoregressive):
                raise ValueError(f"maps to average must be autoregressive, but one is a {type(part).__name__}.")
            if not part.is_normal:
                raise ValueError("maps to average must be to normal noise, but one has angles, whose noise is uniform.")
        sizes = [part.token_size for part in parts]
        if len(set(sizes)) != 1:
            words = ", ".join(map(str, sizes)) or "no maps"
            raise ValueError(f"maps to average must be of tokens of one size, got {words}.")
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
    average = quantile_of_mean(noise)
    log_density = (log_slopes - 0.5 * noise.square()).logsumexp(0) - math.log(len(mapped))
    return average, log_density + 0.5 * average.square()


class _Caches(tuple[Any, ...]):
    """The cache of each map."""

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = self[0].dtype
        return dtype
