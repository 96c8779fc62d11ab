"""Base densities, as nflows `Distribution`s that draw from a given generator."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from nflows.distributions import Distribution
from torch import Tensor, nn


class NormalNoise(Distribution):
    """A base of independent standard normal numbers, some of which may be padding.

    A subclass says of which shape an event is (`event_shape`), and which tokens exist (`existence`: a mask ``(B, T)``,
    or None for all).
    """

    location: Tensor

    def __init__(self) -> None:
        super().__init__()
        # Says on which device, and in which dtype, to draw.
        self.register_buffer("location", torch.zeros(()), persistent=False)

    def event_shape(self, context: Any) -> tuple[int, ...]:
        raise NotImplementedError

    def existence(self, context: Any) -> Tensor | None:
        return None

    def _log_prob(self, inputs: Tensor, context: Any) -> Tensor:
        shape = self.event_shape(context)
        if tuple(inputs.shape[1:]) != shape:
            raise ValueError(
                f"expected inputs of shape (batch, {', '.join(map(str, shape))}), got {tuple(inputs.shape)}."
            )
        inputs = inputs.to(torch.promote_types(inputs.dtype, torch.float32))
        exists = self.existence(context)
        if exists is None:
            dimensions: float | Tensor = math.prod(shape)
        else:
            inputs = inputs.masked_fill(~exists.unsqueeze(-1), 0.0)
            dimensions = exists.sum(-1).to(inputs.dtype) * shape[-1]
        return -0.5 * (inputs.square().flatten(1).sum(-1) + dimensions * math.log(2 * math.pi))

    def _sample(self, num_samples: int, context: Any) -> Tensor:
        return self.draw(num_samples, context)

    def draw(self, num_samples: int, context: Any = None, generator: torch.Generator | None = None) -> Tensor:
        """Draws ``(num_samples, *event)``, or ``(len(context), num_samples, *event)``; padding is zero.

        From `generator` (on any device; it draws there, so that one seed can serve several) or torch's global one.
        """
        rows = (num_samples,) if context is None else (len(context), num_samples)
        device = self.location.device if generator is None else generator.device
        shape = (*rows, *self.event_shape(context))
        noise = torch.randn(shape, generator=generator, dtype=self.location.dtype, device=device)
        noise = noise.to(self.location.device)
        exists = self.existence(context)
        return noise if exists is None else noise.masked_fill(~exists[:, None, :, None], 0.0)


class StandardNormal(NormalNoise):
    """The standard normal on events of a given shape; log-densities in float32 or better, ``(B,)`` in nats."""

    def __init__(self, shape: Sequence[int]):
        super().__init__()
        self.shape = tuple(shape)

    def event_shape(self, context: Any) -> tuple[int, ...]:
        return self.shape


class PaddedNormal(NormalNoise):
    """The standard normal on as many tokens of `token_size` numbers as each sample has: the context says how many.

    existing: a module that makes the mask ``(B, T)`` of tokens that are no padding from the context. Padding carries
    no density. Raises ValueError without a context.
    """

    def __init__(self, token_size: int, existing: nn.Module):
        super().__init__()
        self.token_size = token_size
        self.existing = existing

    def existence(self, context: Any) -> Tensor:
        if context is None:
            raise ValueError("the number of tokens comes from the context; pass the flow a context.")
        return self.existing(context)

    def event_shape(self, context: Any) -> tuple[int, ...]:
        return (self.existence(context).shape[1], self.token_size)
