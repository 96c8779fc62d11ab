"""Invertibility as an aim of training: jumps there and back should lead where they began."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from nflib.continuous.maps import FlowMap
from nflib.continuous.objectives.mean_flow import Jumps
from nflib.errors import check_object
from nflib.training.composed import OfAnother

__all__ = ["Invertible"]


class OfJumps(Protocol):
    """An objective that trains on jumps between points and times, such as `MeanFlow` and `Distill`."""

    def jumps(self, flow: FlowMap, batch: dict[str, Tensor], generator: torch.Generator) -> Jumps: ...

    def compared(self, flow: FlowMap, jumps: Jumps) -> tuple[Tensor, dict[str, Tensor]]: ...


@dataclass(frozen=True)
class Invertible(OfAnother):
    """An objective of flow maps plus a term that keeps them invertible (FALCON, arXiv:2512.09914).

    The term is ``weight mean |x - X_{t -> r}(X_{r -> t}(x))|^2``, of jumps there and back. By it maps of a few jumps
    stay one-to-one, so that their exact densities are good for importance weights.

    Args:
        objective: `MeanFlow` or `Distill`, whose jumps are taken there and back.
        weight: of the second term, a mean over the numbers of an event.

    Raises:
        ValueError: a negative weight, an objective without jumps.
    """

    objective: OfJumps
    weight: float = 1.0

    def __post_init__(self) -> None:
        check_object("objective", self.objective, "MeanFlow()", "jumps", "compared")
        if self.weight < 0:
            raise ValueError(f"the weight of Invertible must be 0 or more, got {self.weight!r}.")

    def __call__(
        self, flow: FlowMap, batch: dict[str, Tensor], generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        jumps = self.objective.jumps(flow, batch, generator)
        loss, scalars = self.objective.compared(flow, jumps)
        x, r, t, context = jumps[:4]
        error = (x - flow.jump(flow.jump(x, r, t, context), t, r, context)).square().mean()
        return loss + self.weight * error, scalars | {"there_and_back": error.detach()}
