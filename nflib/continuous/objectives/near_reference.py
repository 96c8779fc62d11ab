"""Staying near another flow while a velocity is fitted."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nflib.continuous.objectives.flow_matching import FlowMatching
from nflib.continuous.objectives.parts import check_parts
from nflib.continuous.ode import ODEFlow
from nflib.errors import check_object
from nflib.training.composed import OfAnother

__all__ = ["NearReference"]


@dataclass(frozen=True)
class NearReference(OfAnother):
    """Flow matching plus a term that keeps the velocity near that of a reference flow.

    The term is ``weight mean |v - v_reference|^2``, which bounds the Wasserstein distance between both flows. With
    "weights" ``exp(A / T)`` of a critic's advantages A beside the "inputs" it bends a flow towards what is rewarded, no
    farther from the reference than need be (the idea of AC-Flow, of whose text only the abstract was at hand).

    Args:
        objective: the `FlowMatching`.
        reference: the flow that is to be kept near, such as a copy of the one that training begins with; it is taken to
            evaluation mode and not trained.
        weight: of the second term, at the points of the first, where each row counts the same.

    Raises:
        ValueError: a negative weight, another objective, a reference that is no flow with a velocity.
    """

    objective: FlowMatching
    reference: ODEFlow
    weight: float = 1.0

    def __post_init__(self) -> None:
        check_object("objective", self.objective, "FlowMatching()", "drawn", "compared")
        check_parts(self)
        if self.weight < 0:
            raise ValueError(f"the weight of NearReference must be 0 or more, got {self.weight!r}.")
        self.reference.eval()

    def __call__(
        self, flow: ODEFlow, batch: dict[str, Tensor], generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        x, v, t, context = self.objective.drawn(flow, batch, generator)
        velocity = flow.velocity(x, t, context)
        loss, scalars = self.objective.compared(velocity - v, t, batch)
        with torch.no_grad():
            wanted = self.reference.to(x.device).velocity(x, t, context)
        distance = (velocity - wanted).square().mean()
        return loss + self.weight * distance, scalars | {"distance": distance.detach()}
