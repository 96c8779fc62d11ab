"""Fitting the refiner of slopes that are carried from one step to the next."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from nflib.continuous.couplings import Coupling, IndependentCoupling
from nflib.continuous.fields import evaluated, in_single_precision
from nflib.continuous.maps import FlowMap
from nflib.continuous.objectives.flow_matching import squared_error
from nflib.continuous.objectives.parts import OfPairs
from nflib.continuous.times import Times, UniformTimes
from nflib.events import per_row

__all__ = ["RefinerMatching"]


@dataclass(frozen=True)
class RefinerMatching(OfPairs):
    """An objective that fits the refiner of a `FlowMap` of `RefinedSteps` to its field, which is held fixed.

    From a point x_t between noise and data a step of length h along the field's slope v leads to ``y = x_t + h v``;
    there ``v + refiner(y, t + h, v)`` is to be the field's own slope (FlowTurbo, Zhao et al. 2024, arXiv:2409.18128).

    Args:
        coupling: which noise is paired with which data.
        times: the density of t, on what max_step leaves of 0 … 1.
        max_step: h is uniform between zero and this length; no step should be longer afterwards.
        both_ways: whether every other step leads back in time, as densities want it; else all lead on.
        loss: from differences ``(B, *event_shape)`` to ``(B,)``.

    Raises:
        ValueError: max_step outside 0 … 1; on training, a flow that is not of `RefinedSteps`;
            otherwise as for `FlowMatching`.

    >>> import tempfile
    >>> import torch
    >>> from nflib.continuous import MLPVelocity, RefinedSteps
    >>> from nflib.training import TrainingConfig, fit
    >>> field, refiner = MLPVelocity(2, channels=32), MLPVelocity(2, channels=8, num_layers=1, context_size=2)
    >>> flow = FlowMap(RefinedSteps(field.requires_grad_(False), refiner), (2,), num_steps=3)
    >>> config = TrainingConfig(batch_size=64, max_steps=20, progress_bar=False, tensorboard=False)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     fit(flow, torch.randn(256, 2), config=config, objective=RefinerMatching(), output=folder).steps
    20
    """

    needs_flow: ClassVar[dict[str, str]] = {"average_velocity": "a FlowMap of RefinedSteps"}

    coupling: Coupling = field(default_factory=IndependentCoupling)
    times: Times = field(default_factory=UniformTimes)
    max_step: float = 0.12
    both_ways: bool = True
    loss: Callable[[Tensor], Tensor] = squared_error

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.max_step < 1:
            raise ValueError(f"max_step is a length of time between 0 and 1, got {self.max_step!r}.")

    def __call__(
        self, flow: FlowMap, batch: dict[str, Tensor], generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        steps: Any = flow._transform.velocity
        if not hasattr(steps, "refined"):
            raise ValueError(f"RefinerMatching fits a FlowMap of RefinedSteps, and this one is of {steps!r}.")
        x0, x1, context = self.paired(flow, batch, generator)
        context = flow._encoded(context, len(x1))
        h = self.max_step * UniformTimes().sample(len(x1), generator).to(x1)
        t = (1 - h) * self.times.sample(len(x1), generator).to(x1)
        if self.both_ways:
            t[::2], h[::2] = t[::2] + h[::2], -h[::2]
        velocity = in_single_precision(steps.field)
        if isinstance(steps.field, nn.Module):
            steps.field.eval()  # which the whole flow's training mode would give dropout
        with torch.no_grad():
            x = flow.path.interpolate(x0, x1, t)
            slope = evaluated(velocity, x, t, context)
            x, t = x + per_row(h, x) * slope, t + h
            target = evaluated(velocity, x, t, context)
        loss = self.loss(steps.refined(x, t, slope, context) - target).mean()
        return loss, {"refiner": loss.detach()}
