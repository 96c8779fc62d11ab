"""Symmetric flow matching: one velocity for both directions between a pair."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from nflib.continuous.couplings import check_data
from nflib.continuous.objectives.flow_matching import squared_error
from nflib.continuous.objectives.parts import check_parts
from nflib.continuous.ode import ODEFlow
from nflib.continuous.times import Times, UniformTimes
from nflib.random import normal_like

__all__ = ["SymmetricMatching"]


@dataclass(frozen=True)
class SymmetricMatching:
    """The objective of symmetric flow matching: one velocity by which noise becomes x while y becomes noise.

    (SymmFlow, MedSymmFlow.) Events are pairs x and y side by side, ``(B, size + rest)``: at t = 0 noise and y, at t = 1
    x and noise, in straight lines. ``flow.decode([noise, y])`` then draws an x for y, and ``flow.encode([x, noise])`` a
    y for x. Either is right in its own distribution, but not given the other: a deterministic flow from (noise, y)
    fixes how x depends on y. Of standard normal x and y of correlation r they have the correlation ``sin(int_0^1 r / (2
    sqrt(q^2 - (t (1 - t) r)^2)) dt)``, ``q = t^2 + (1 - t)^2``, which is 0.79 r for small r. For exact conditionals fit
    a flow with y as context.

    Args:
        size: how many numbers x has.
        times: the density of t.

    Raises:
        ValueError: a class in the place of times; on training, events that are no vectors, have no numbers left for y,
            or another shape than the flow's.
    """

    size: int
    times: Times = field(default_factory=UniformTimes)

    keys: ClassVar[tuple[str, ...]] = ("inputs", "context")
    needs_flow: ClassVar[dict[str, str]] = {"velocity": "an ODEFlow or a FlowMap"}

    def __post_init__(self) -> None:
        check_parts(self)

    def __call__(
        self, flow: ODEFlow, batch: dict[str, Tensor], generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        data = batch["inputs"]
        if data.dim() != 2 or not 0 < self.size < data.shape[1]:
            raise ValueError(
                f"SymmetricMatching takes vectors of x ({self.size} numbers) and y, got the shape {tuple(data.shape)}."
            )
        check_data(flow, data)
        noise = normal_like(data, generator)
        start = torch.cat([noise[:, : self.size], data[:, self.size :]], dim=1)
        stop = torch.cat([data[:, : self.size], noise[:, self.size :]], dim=1)
        t = self.times.sample(len(data), generator).to(data)
        v = flow.velocity(torch.lerp(start, stop, t[:, None]), t, batch.get("context"))
        loss = squared_error(v - (stop - start)).mean()
        return loss, {"symmetric_matching": loss.detach()}
