"""Densities of the times at which a velocity is fitted."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

__all__ = ["Times", "Uniform"]


class Times(Protocol):
    """A density on [0, 1]."""

    def sample(self, num_samples: int, generator: torch.Generator | None = None) -> Tensor:
        """Times ``(num_samples,)``, drawn on the generator's device."""
        ...

    def log_prob(self, t: Tensor) -> Tensor:
        """Log-densities of times, of their shape; ``-inf`` outside [0, 1]."""
        ...


class Uniform:
    """All times alike."""

    def sample(self, num_samples: int, generator: torch.Generator | None = None) -> Tensor:
        return torch.rand(num_samples, generator=generator, device=None if generator is None else generator.device)

    def log_prob(self, t: Tensor) -> Tensor:
        return torch.where((t >= 0) & (t <= 1), 0.0, -torch.inf).to(t.dtype)
