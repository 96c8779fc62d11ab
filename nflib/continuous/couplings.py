"""Couplings: which noise is paired with which data while a velocity is fitted."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from nflib.distributions import draw
from nflib.flows.flow import Flow

__all__ = ["Coupling", "Independent"]


class Coupling(Protocol):
    """Pairs noise and data: called with the flow that is trained, a batch as `fit` gives it, and a generator."""

    def __call__(self, flow: Flow, batch: dict[str, Tensor], generator: torch.Generator) -> tuple[Tensor, Tensor, Any]:
        """Noise x0 and data x1, ``(B, *event_shape)``, and the context of each pair (None for none)."""
        ...


class Independent:
    """Fresh noise of the flow's base for every sample."""

    def __call__(self, flow: Flow, batch: dict[str, Tensor], generator: torch.Generator) -> tuple[Tensor, Tensor, Any]:
        x1 = batch["inputs"]
        return noise_like(x1, flow, generator), x1, batch.get("context")


def noise_like(x1: Tensor, flow: Flow, generator: torch.Generator) -> Tensor:
    """One draw of the flow's base for each sample, in its dtype; of a base that does not read the context."""
    return draw(flow._distribution, len(x1), None, generator).to(x1)
