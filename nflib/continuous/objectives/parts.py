"""What objectives are made of, looked at when they are made, and the pairs of noise and data that many train on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nflib.continuous.couplings import Coupling, check_data
from nflib.errors import check_object
from nflib.flows.flow import Flow

__all__ = ["OfPairs", "check_parts"]

# Of each part an example and what it must be able to do.
PARTS = {
    "coupling": ("IndependentCoupling()", "__call__"),
    "times": ("UniformTimes()", "sample"),
    "loss": ("PseudoHuber()", "__call__"),
    "teacher": ("ODEFlow(MLPVelocity(2), 2)", "velocity"),
    "reference": ("ODEFlow(MLPVelocity(2), 2)", "velocity"),
}


def check_parts(objective: object) -> None:
    """Raise ValueError where a class or something else stands in the place of a part of an objective."""
    for name, part in PARTS.items():
        if hasattr(objective, name):
            check_object(name, getattr(objective, name), *part)


class OfPairs:
    """An objective, a dataclass, of the pairs of noise and data that a `coupling` makes."""

    coupling: Coupling

    def __post_init__(self) -> None:
        check_parts(self)

    @property
    def keys(self) -> tuple[str, ...]:
        """Names of the tensors of a batch that are read."""
        return ("inputs", "context", *getattr(self.coupling, "keys", ()))

    def paired(self, flow: Flow, batch: dict[str, Tensor], generator: torch.Generator) -> tuple[Tensor, Tensor, Any]:
        """The pairs of a batch, as `Coupling` has them; raises ValueError for data of another shape than the flow's."""
        check_data(flow, batch["inputs"])
        return self.coupling(flow, batch, generator)
