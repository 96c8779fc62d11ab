"""Distilling a flow map from a velocity field, on draws of the prior alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from nflib.continuous.maps import FlowMap
from nflib.continuous.objectives.flow_matching import squared_error
from nflib.continuous.objectives.mean_flow import Jumps, derivative_along, drawn_times
from nflib.continuous.objectives.parts import check_parts
from nflib.continuous.ode import ODEFlow
from nflib.continuous.times import Times, UniformTimes
from nflib.events import per_row

__all__ = ["Distill"]


@dataclass(frozen=True)
class Distill:
    """An objective that fits a `FlowMap` to another flow's velocity, without data (Tong et al. 2025, arXiv:2511.19428).

    Where a jump from r has come at t it should move with the velocity v of the teacher there, so that

        u(x, r, t) = v(X_{r -> t}(x), t) - (t - r) du/dt,

    whose right side, without a gradient, is what u is regressed on. Of the points x half are draws of the noise, at r =
    0 as in the paper, where one jump makes a sample; the others are where the map itself takes such draws, at r, so
    that it learns to go on from there, and back. The paper's second part, which corrects the map by a velocity learnt
    on its samples, is not included.

    Args:
        teacher: a trained flow with the noise of the map, without a context; it is taken to the map's device and to
            evaluation mode, and not trained further.
        num_samples: draws of noise in each training step and process, or in each part of a step under `accumulation`.
        times: the density of both r and t.
        loss: from differences ``(B, *event_shape)`` to ``(B,)``.

    Raises:
        ValueError: num_samples below 1, a teacher that is no such flow, a class in the place of a part.
    """

    teacher: ODEFlow | FlowMap
    num_samples: int = 256
    times: Times = field(default_factory=UniformTimes)
    loss: Callable[[Tensor], Tensor] = squared_error

    keys: ClassVar[tuple[str, ...]] = ()
    needs_flow: ClassVar[dict[str, str]] = {"average_velocity": "a FlowMap"}
    needs_data: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_parts(self)
        if self.num_samples < 1:
            raise ValueError(f"num_samples must be 1 or more, got {self.num_samples!r}.")
        self.teacher.eval()

    @torch.no_grad()
    def jumps(self, flow: FlowMap, batch: dict[str, Tensor], generator: torch.Generator) -> Jumps:
        """Jumps from points that the map itself reaches from its noise.

        Args:
            flow: that is trained.
            batch: not read.
            generator: of noise and times.
        """
        noise, _ = flow.noise_and_log_prob(self.num_samples, generator=generator)
        r, t = drawn_times(self.times, noise, generator, both_ways=True)
        r[::2] = 0
        return Jumps(flow.jump(noise, torch.zeros_like(r), r), r, t)

    def __call__(
        self, flow: FlowMap, batch: dict[str, Tensor], generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        return self.compared(flow, self.jumps(flow, batch, generator))

    def compared(self, flow: FlowMap, jumps: Jumps) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of jumps, a scalar, and what is logged of it."""
        x, r, t = jumps[:3]
        u, slope = derivative_along(lambda t: flow.average_velocity(x, r, t), (t,), (torch.ones_like(t),))
        left = per_row(t - r, x)
        with torch.no_grad():
            target = self.teacher.to(x.device).velocity(x + left * u, t) - left * slope
        loss = self.loss(u - target).mean()
        return loss, {"distillation": loss.detach()}
