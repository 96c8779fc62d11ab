"""TwinFlow: a one-step generator that is set right by the difference of two velocities, of the data and of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from nflib.continuous.couplings import base_noise, noise_like
from nflib.continuous.maps import FlowMap
from nflib.continuous.objectives.flow_matching import squared_error
from nflib.continuous.objectives.mean_flow import MeanFlow
from nflib.continuous.objectives.parts import check_parts
from nflib.continuous.times import Times, UniformTimes
from nflib.errors import check_object
from nflib.training.composed import OfAnother

__all__ = ["TwinFlow", "twin_velocity"]


@dataclass(frozen=True)
class TwinFlow(OfAnother):
    """TwinFlow: an objective of flow maps plus two terms for one-step samples (Cheng et al. 2025, arXiv:2512.05150).

    The network has a second velocity, its twin ``w(x, t) = u(x, 2 - t, 2 - t)``: time runs on beyond the data, where
    both meet, back to noise (in the paper, which has the data at 0, to -1). The twin is fitted to the flow of the
    map's own samples ``y = z + u(z, 0, 1)``, by flow matching from fresh noise to y, held fixed. Between both

        v(x, t) - w(x, t) = c(t) (E[data | x_t = x] - E[sample | x_t = x]),    c > 0,

    which is zero everywhere only where the samples have the density of the data: held fixed, clipped, and at the same
    points x, it is the direction in which u(z, 0, 1) is moved, by ``weight |u - (u + v - w)|^2`` with no gradient in
    the bracket. There is no adversary, and no other network.

    Args:
        objective: what fits v to data, and u to v, such as `MeanFlow()`.
        weight: of the last term; 0.5 as in the paper's code.
        clip: how far each number of ``v - w`` may be from zero.
        times: the density of t.

    Raises:
        ValueError: a negative weight, a clip that is not positive, an objective without data, a class in the
            place of a part.

    >>> import tempfile
    >>> import torch
    >>> from nflib.continuous import MLPFlowMap
    >>> from nflib.training import TrainingConfig, fit
    >>> flow = FlowMap(MLPFlowMap(2, channels=32), (2,), num_steps=1)
    >>> config = TrainingConfig(batch_size=64, max_steps=20, progress_bar=False, tensorboard=False)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     fit(flow, torch.randn(256, 2), config=config, objective=TwinFlow(), output=folder).steps
    20
    """

    needs_flow: ClassVar[dict[str, str]] = {"average_velocity": "a FlowMap"}

    objective: Callable[..., tuple[Tensor, dict[str, Tensor]]] = field(default_factory=MeanFlow)
    weight: float = 0.5
    clip: float = 1.0
    times: Times = field(default_factory=UniformTimes)

    def __post_init__(self) -> None:
        check_object("objective", self.objective, "MeanFlow()")
        check_parts(self)
        if not (self.weight >= 0 and self.clip > 0):
            raise ValueError(f"TwinFlow needs a weight of 0 or more and a positive clip, got {self}.")
        if not self.needs_data:
            raise ValueError(f"TwinFlow compares samples with data, which {self.objective} does not have.")

    def __call__(
        self, flow: FlowMap, batch: dict[str, Tensor], generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        loss, scalars = self.objective(flow, batch, generator)
        x1, context = batch["inputs"], batch.get("context")
        noise = base_noise(x1, flow, context, generator)
        u = flow.average_velocity(noise, 0.0, 1.0, context)
        made = (noise + u).detach()
        t = self.times.sample(len(made), generator).to(made)
        x, velocity = flow.path.pair(noise_like(made, flow, context, generator), made, t)
        own = twin_velocity(flow, x, t, context)
        twin = squared_error(own - velocity).mean()
        with torch.no_grad():
            aim = u + (flow.velocity(x, t, context) - own).clamp(-self.clip, self.clip)
        rectification = squared_error(u - aim).mean()
        scalars = scalars | {"twin": twin.detach(), "rectification": rectification.detach()}
        return loss + twin + self.weight * rectification, scalars


def twin_velocity(flow: FlowMap, x: Tensor, t: Tensor, context: Any = None) -> Tensor:
    """The velocity at x ``(B, *event_shape)`` and t ``(B,)`` of the flow from noise to the map's own samples."""
    return flow._transform.average_velocity(x, 2 - t, 2 - t, flow._encoded(context, len(x)))
