"""Representations kept apart from each other."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from nflib.errors import check_object
from nflib.training.composed import OfAnother
from nflib.training.objectives import Objective

__all__ = ["Dispersive"]


@dataclass(frozen=True)
class Dispersive(OfAnother):
    """An objective plus a dispersive loss, which keeps a layer's outputs h apart from each other.

    It is ``weight log mean_ij exp(-|h_i - h_j|^2 / temperature)`` (Wang & He 2025, arXiv:2506.09027; for flow maps,
    DM1, arXiv:2510.07865): zero where all rows of a batch have the same h, and lower the farther apart they are.
    Distances are means over the numbers of h.

    Args:
        objective: what is regularised, such as `MeanFlow()`.
        layer: name of a module of the flow, as `named_modules` has it; its first call in a step counts, of `MeanFlow`
            that on pairs with t = r.
        weight: of the dispersive loss, positive.
        temperature: of the distances, positive.

    Raises:
        ValueError: numbers that are not positive, a class for the objective; on training, a layer of another name, or
            one that is not called.
    """

    objective: Objective
    layer: str
    weight: float = 0.5
    temperature: float = 0.5

    whole_batch: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_object("objective", self.objective, "MeanFlow()")
        if not (self.weight > 0 and self.temperature > 0):
            raise ValueError(f"Dispersive needs a positive weight and temperature, got {self}.")

    def __call__(
        self, flow: nn.Module, batch: dict[str, Tensor], generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        layers = dict(flow.named_modules())
        if self.layer not in layers:
            raise ValueError(f"the flow has no layer {self.layer!r}; it has {', '.join(sorted(layers))}.")
        outputs: list[Tensor] = []
        handle = layers[self.layer].register_forward_hook(lambda *call: outputs.append(call[-1]))
        try:
            loss, scalars = self.objective(flow, batch, generator)
        finally:
            handle.remove()
        if not outputs:
            raise ValueError(f"the layer {self.layer!r} took no part in the objective; name another one.")
        term = log_mean_kernel(outputs[0], self.temperature)
        return loss + self.weight * term, scalars | {"dispersion": term.detach()}


def log_mean_kernel(h: Tensor, temperature: float) -> Tensor:
    """``log mean_ij exp(-|h_i - h_j|^2 / temperature)``, distances as means over the numbers of a row."""
    flat = h.flatten(1)
    flat = flat - flat.detach().mean(0)  # of rows far from zero, small distances would be lost in rounding
    # Not by torch.cdist, whose derivative is not finite where two rows are equal.
    norms = flat.square().sum(1)
    squares = (norms[:, None] + norms[None] - 2 * flat @ flat.T).clamp(min=0) / flat.shape[1]
    return torch.logsumexp(-squares.flatten() / temperature, 0) - 2 * math.log(len(flat))
