"""The interfaces of maps, decoders and densities, on which everything else in nflib rests."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

__all__ = ["BlockReport", "CausalMap", "ConditionalDensity", "Decoder", "Inversion", "Proposal", "Target"]

Attributes = TypeVar("Attributes", bound=NamedTuple)


def stated(attributes: type[Attributes], thing: object) -> Attributes:
    """What an object says of itself by attributes that it need not have.

    Args:
        attributes: a `NamedTuple` of their names, all with what counts where the object does not have them.
        thing: a kernel or an objective, of whosever making.
    """
    return attributes._make(getattr(thing, name, default) for name, default in attributes._field_defaults.items())


@dataclass(frozen=True)
class BlockReport:
    """Statistics of one map, inverted once.

    Attributes:
        batch_size: samples that were decoded at once.
        num_tokens: tokens of a sample.
        windows: how many tokens each sweep computed, for every sample of the batch.
        residual: the largest error ``|f(z; u) - u|`` left in any number of u (of an affine map
            ``|shift + scale z - u|``); 0 where u solves the equations to rounding, None where the decoder does not say.
        warmup_sweeps: sweeps over all tokens in a lower precision before these.
    """

    batch_size: int
    num_tokens: int
    windows: tuple[int, ...]
    residual: float | None
    warmup_sweeps: int = 0

    @property
    def sweeps(self) -> int:
        """How many sweeps were made in full precision."""
        return len(self.windows)

    @property
    def tokens_computed(self) -> int:
        """Tokens that all these sweeps computed, for every sample."""
        return sum(self.windows)


class Inversion(NamedTuple):
    """The result of inverting a map.

    Attributes:
        tokens: the solution.
        logabsdet: ``log|det d tokens / d noise|``, ``(B,)`` in nats.
        residual: the largest error left in any number of the solution, 0 where it solves the equations to rounding;
            None (unknown) counts as inexact, and the density is then computed from the solution itself.
        statistics: a report of each map inverted, if there are any.
    """

    tokens: Tensor
    logabsdet: Tensor
    residual: float | None = None
    statistics: tuple[BlockReport, ...] = ()

    @classmethod
    def of(cls, result: Any) -> Inversion:
        """What a decoder or an inverse returned: of a pair the residual is unknown.

        Raises:
            ValueError: it is no pair of tokens and logabsdet, nor an `Inversion`.
        """
        if not isinstance(result, tuple) or not 2 <= len(result) <= 4:
            raise ValueError(
                f"an inversion is a pair of tokens and logabsdet, or an nflib.interfaces.Inversion, not a "
                f"{type(result).__name__}; return both."
            )
        return cls(*result)

    def then(self, following: Inversion) -> Inversion:
        """This inversion followed by that of another map, which started from this one's solution."""
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
    """What decoders need of a map: an invertible map of tokens u ``(B, T, C)``, each mapped given those before it."""

    @property
    def token_size(self) -> int:
        """How many numbers a token has, C."""
        ...

    def encode_context(self, context: Any) -> Any:
        """Encode the context, once, for all calls of `conditionals` that follow."""
        ...

    def new_cache(self, batch_size: int, num_tokens: int, encoded_context: Any) -> Any:
        """An empty cache for decoding; its `dtype` is that of the network's arithmetic.

        Args:
            batch_size: samples decoded at once.
            num_tokens: tokens to decode.
            encoded_context: what `encode_context` made.
        """
        ...

    def conditionals(
        self, tokens: Tensor, encoded_context: Any, cache: Any = None, start: int = 0, stop: int | None = None
    ) -> Any:
        """Parameters of the maps of the tokens ``start … stop - 1``, each computed from the tokens before it.

        Args:
            tokens: ``(B, T, C)``, of which those before ``stop - 1`` are read.
            encoded_context: what `encode_context` made.
            cache: from start 1 on it holds what came before ``start - 1``, and takes in what is new (default: none,
                which needs start 0).
            start: the first token.
            stop: one beyond the last token (default: T).
        """
        ...

    def to_noise(self, tokens: Tensor, conditionals: Any) -> tuple[Tensor, Tensor]:
        """Map tokens ``(B, L, C)`` to noise z by the parameters that `conditionals` gave.

        Returns:
            The noise, and the logabsdet of each number; both ``(B, L, C)``, in float32 or better.
        """
        ...

    def from_noise(self, noise: Tensor, conditionals: Any) -> tuple[Tensor, Tensor]:
        """Map noise to tokens, the inverse of `to_noise`; returns the tokens and the logabsdet of each number."""
        ...


class Decoder(Protocol):
    """Solves ``noise = map(tokens)`` for the tokens: any function or object that is called with these arguments.

    Args:
        map: the map to invert.
        noise: ``(B, T, C)``.
        encoded_context: what ``map.encode_context`` made.
        prefix: the first tokens ``(B, P, C)``, where they are given; their noise is not read.

    Returns:
        An `Inversion`; or its tokens and logabsdet alone, and then its residual is unknown.

    >>> def decoder(map, noise, encoded_context, prefix=None):
    ...     u = noise
    ...     for _ in range(noise.shape[1]):  # each sweep makes one more token exact
    ...         u, logabsdet = map.from_noise(noise, map.conditionals(u, encoded_context))
    ...     return u, logabsdet.flatten(1).sum(-1)
    >>> from nflib.flows import TARFlow
    >>> flow = TARFlow(event_shape=(6,), channels=32, num_blocks=2, head_dim=16)
    >>> x, log_prob = flow.sample_and_log_prob(5, seed=0, decoding=decoder)
    >>> torch.allclose(log_prob, flow.log_prob(x), atol=1e-4)
    True
    """

    def __call__(
        self, map: CausalMap, noise: Tensor, encoded_context: Any, prefix: Tensor | None = None
    ) -> Inversion | tuple[Tensor, Tensor]: ...


class ConditionalDensity(Protocol):
    """A density of events, possibly given a context: the methods that all flows have. `Flow` describes them in full.

    A context has a row for each input of `log_prob` and `score`; with one, samples have the shape
    ``(rows, num_samples, *event_shape)``.
    """

    def log_prob(self, inputs: Tensor, context: Any = None, batch_size: int | None = None) -> Tensor:
        """Log-densities ``(B,)``, in nats; at most batch_size inputs are computed at once."""
        ...

    def score(self, inputs: Tensor, context: Any = None, batch_size: int | None = None) -> Tensor:
        """The score, ``d log_prob(x) / dx``, of the inputs' shape."""
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
    """What Monte Carlo draws from: a flow, a flow `given` a context, or any object with these two methods."""

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
    """What Monte Carlo samples: any object with a log-density, which need not be normalised."""

    def log_prob(self, inputs: Tensor, /) -> Tensor:
        """Log-densities ``(n,)``, in nats, of ``(n, *event_shape)``."""
        ...
