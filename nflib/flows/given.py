"""A flow with its context bound: a distribution as torch and Monte Carlo know it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from nflib.contexts import repeated
from nflib.interfaces import ConditionalDensity, Decoder


class GivenFlow(Distribution):
    """The density of a flow for one context, with ``batch_shape ()``; made by `Flow.given`, on the flow's weights."""

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012, as torch has it
    has_rsample = True

    def __init__(self, flow: ConditionalDensity, context: Any, event_shape: Sequence[int]):
        super().__init__(torch.Size(), torch.Size(event_shape), validate_args=False)
        self.flow = flow
        self.context = context

    @property
    def stochastic_density(self) -> bool:
        """As `Flow.stochastic_density`."""
        return bool(getattr(self.flow, "stochastic_density", False))

    @property
    def support(self) -> constraints.Constraint:
        return constraints.independent(constraints.real, len(self.event_shape))

    def log_prob(self, value: Tensor, batch_size: int | None = None) -> Tensor:
        """Log-densities, in nats, of values ``(*sample_shape, *event_shape)``: of the sample shape."""
        rows = self._rows(value)
        return self.flow.log_prob(rows, repeated(self.context, len(rows)), batch_size).view(self._sample_shape(value))

    def score(self, value: Tensor, batch_size: int | None = None) -> Tensor:
        """``d log_prob(x) / dx``, of the shape of the values."""
        rows = self._rows(value)
        return self.flow.score(rows, repeated(self.context, len(rows)), batch_size).view(value.shape)

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = (), **options: Any) -> Tensor:
        """Samples ``(*sample_shape, *event_shape)``; options: batch_size, generator, seed, decoding (`Flow.sample`)."""
        return self._shaped(self.flow.sample(self._count(sample_shape), self.context, **options), sample_shape)

    def rsample(self, sample_shape: Sequence[int] = (), **options: Any) -> Tensor:
        """Samples that carry gradients; options: generator, seed, decoding (`Flow.rsample`)."""
        return self._shaped(self.flow.rsample(self._count(sample_shape), self.context, **options), sample_shape)

    @torch.no_grad()
    def sample_and_log_prob(
        self,
        num_samples: int,
        *,
        batch_size: int | None = None,
        generator: torch.Generator | None = None,
        seed: int | None = None,
        decoding: Decoder | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Samples ``(num_samples, *event_shape)`` and the log-density of each, ``(num_samples,)``, in nats."""
        samples, log_prob = self.flow.sample_and_log_prob(
            num_samples, self.context, batch_size, generator=generator, seed=seed, decoding=decoding
        )
        return (samples, log_prob) if self.context is None else (samples[0], log_prob[0])

    def _rows(self, value: Tensor) -> Tensor:
        shape = self._sample_shape(value)
        return value.reshape(shape.numel(), *self.event_shape)

    def _sample_shape(self, value: Tensor) -> torch.Size:
        number = value.dim() - len(self.event_shape)
        if number < 0 or value.shape[number:] != self.event_shape:
            raise ValueError(
                f"expected values of shape (…, {', '.join(map(str, self.event_shape))}), got {tuple(value.shape)}."
            )
        return value.shape[:number]

    def _count(self, sample_shape: Sequence[int]) -> int:
        return torch.Size(sample_shape).numel()

    def _shaped(self, samples: Tensor, sample_shape: Sequence[int]) -> Tensor:
        samples = samples if self.context is None else samples[0]
        return samples.view(*sample_shape, *self.event_shape)
