"""The contract: what maps, decoders and densities owe each other. Everything else in nflib leans on this file."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

__all__ = ["BlockReport", "CausalMap", "ConditionalDensity", "Decoder", "Inversion", "Proposal", "Target"]


@dataclass(frozen=True)
class BlockReport:
    """Statistics of one map, inverted once.

    windows: how many tokens each sweep computed, for every sample of the batch. residual: the largest
    ``|shift + scale z - u|`` left in any number of u; 0 where u solves the equations to rounding, None where the
    decoder does not say. warmup_sweeps: sweeps over all tokens in a lower precision before these.
    """

    batch_size: int
    num_tokens: int
    windows: tuple[int, ...]
    residual: float | None
    warmup_sweeps: int = 0

    @property
    def sweeps(self) -> int:
        return len(self.windows)

    @property
    def tokens_computed(self) -> int:
        return sum(self.windows)


class Inversion(NamedTuple):
    """What inverting a map gave.

    tokens: the solution. logabsdet: ``log|d tokens / d noise|``, ``(B,)`` in nats. residual: the largest error left in
    any number of the solution, 0 where it solves the equations to rounding; None (unknown) counts as inexact, and the
    density is then computed from the solution itself. statistics: a report of each map inverted, if there are any.
    """

    tokens: Tensor
    logabsdet: Tensor
    residual: float | None = None
    statistics: tuple[BlockReport, ...] = ()

    def then(self, following: Inversion) -> Inversion:
        """This one and that of another map, which took this one's solution further."""
        return Inversion(
            following.tokens,
            self.logabsdet + following.logabsdet,
            largest_residual([self.residual, following.residual]),
            self.statistics + following.statistics,
        )


def largest_residual(residuals: Iterable[float | None]) -> float | None:
    """The largest of some residuals, 0 of none; None where one is unknown."""
    residuals = list(residuals)
    known = [residual for residual in residuals if residual is not None]
    return largest(known) if len(known) == len(residuals) else None


def largest(numbers: Iterable[float]) -> float:
    """The largest number, 0 of none; a NaN, where there is one, does not vanish behind the others."""
    return max(numbers, key=lambda number: math.inf if math.isnan(number) else number, default=0.0)


class CausalMap(Protocol):
    """An invertible map of tokens u ``(B, T, C)`` whose t-th token is mapped given the tokens before it."""

    @property
    def token_size(self) -> int:
        """How many numbers a token has, C."""
        ...

    def encode_context(self, context: Any) -> Any:
        """What the context contributes to every step: computed once, however many steps follow."""
        ...

    def new_cache(self, batch_size: int, num_tokens: int, encoded_context: Any) -> Any:
        """An empty cache, for decoding `num_tokens` tokens; its `dtype` is that of the network's arithmetic."""
        ...

    def conditionals(
        self, tokens: Tensor, encoded_context: Any, cache: Any = None, start: int = 0, stop: int | None = None
    ) -> Any:
        """Parameters of the maps of the tokens ``start … stop`` (all of them by default), given those before each.

        tokens: ``(B, T, C)``, of which those before ``stop - 1`` are read. From start 1 on, a cache holds what came
        before ``start - 1``; it takes in what is new.
        """
        ...

    def to_noise(self, tokens: Tensor, conditionals: Any) -> tuple[Tensor, Tensor]:
        """The noise z of tokens, and logabsdet number by number; both ``(B, L, C)``, in float32 or better."""
        ...

    def from_noise(self, noise: Tensor, conditionals: Any) -> tuple[Tensor, Tensor]:
        """The tokens of noise, and logabsdet number by number: the inverse of `to_noise`."""
        ...


class Decoder(Protocol):
    """Solves ``noise = map(tokens)`` for the tokens ``(B, T, C)``.

    encoded_context: what ``map.encode_context`` made. prefix: the first tokens ``(B, P, C)``, where they are given;
    their noise is not read. A decoder may return the first two of an `Inversion` alone: its residual is then unknown.
    """

    def __call__(
        self, map: CausalMap, noise: Tensor, encoded_context: Any, prefix: Tensor | None = None
    ) -> Inversion | tuple[Tensor, Tensor]: ...


class ConditionalDensity(Protocol):
    """A density of events given a context (None where there is none): what every flow is.

    Contexts have a row for each input, or for each group of samples: ``(rows, num_samples, *event_shape)``.
    """

    def log_prob(self, inputs: Tensor, context: Any = None, batch_size: int | None = None) -> Tensor:
        """Log-densities ``(B,)``, in nats; at most batch_size inputs are computed at once."""
        ...

    def score(self, inputs: Tensor, context: Any = None, batch_size: int | None = None) -> Tensor:
        """``d log_prob(x) / dx``."""
        ...

    def sample(self, num_samples: int, context: Any = None, batch_size: int | None = None, **options: Any) -> Tensor:
        """Samples without a gradient; options: generator, seed, decoding."""
        ...

    def rsample(self, num_samples: int, context: Any = None, **options: Any) -> Tensor:
        """Samples with gradients to parameters and context."""
        ...

    def sample_and_log_prob(
        self, num_samples: int, context: Any = None, batch_size: int | None = None, **options: Any
    ) -> tuple[Tensor, Tensor]:
        """Samples and their log-densities."""
        ...


class Proposal(Protocol):
    """What is sampled from: a flow, `Flow.given` a context, or any distribution with these two methods."""

    def sample_and_log_prob(
        self, num_samples: int, *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Samples ``(num_samples, *event_shape)`` and the log-density of each, ``(num_samples,)``, in nats."""
        ...

    def log_prob(self, inputs: Tensor, /) -> Tensor:
        """Log-densities ``(n,)``, in nats, of ``(n, *event_shape)``."""
        ...


@runtime_checkable
class Target(Protocol):
    """What is wanted: a log-density that need not be normalised."""

    def log_prob(self, inputs: Tensor, /) -> Tensor:
        """Log-densities ``(n,)``, in nats, of ``(n, *event_shape)``."""
        ...
