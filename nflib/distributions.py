"""Base densities, as nflows `Distribution`s that draw from a given generator."""

import math
from collections.abc import Sequence

import torch
from nflows.distributions import Distribution
from torch import Tensor


class StandardNormal(Distribution):
    """The standard normal on events of a given shape; log-densities in float32 or better, ``(B,)`` in nats."""

    location: Tensor

    def __init__(self, shape: Sequence[int]):
        super().__init__()
        self.shape = tuple(shape)
        # Says on which device, and in which dtype, to draw.
        self.register_buffer("location", torch.zeros(()), persistent=False)

    def _log_prob(self, inputs: Tensor, context: Tensor | None) -> Tensor:
        if tuple(inputs.shape[1:]) != self.shape:
            raise ValueError(
                f"expected inputs of shape (batch, {', '.join(map(str, self.shape))}), got {tuple(inputs.shape)}."
            )
        inputs = inputs.to(torch.promote_types(inputs.dtype, torch.float32))
        return -0.5 * (inputs.square().flatten(1).sum(-1) + math.prod(self.shape) * math.log(2 * math.pi))

    def _sample(self, num_samples: int, context: Tensor | None, generator: torch.Generator | None = None) -> Tensor:
        rows = (num_samples,) if context is None else (len(context), num_samples)
        return self.draw(rows, generator)

    def draw(self, rows: Sequence[int], generator: torch.Generator | None = None) -> Tensor:
        """Independent draws ``(*rows, *shape)``, from `generator` (on any device) or torch's global one.

        A generator of another device draws there, so that one seed can serve several devices.
        """
        device = self.location.device if generator is None else generator.device
        noise = torch.randn((*rows, *self.shape), generator=generator, dtype=self.location.dtype, device=device)
        return noise.to(self.location.device)
