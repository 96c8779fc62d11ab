"""Steps on slopes that a small network carries on from one evaluation of a field."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from nflib.continuous.fields import Velocity, context_shape_of, evaluated, in_single_precision, takes_context
from nflib.errors import at_least
from nflib.events import per_row

__all__ = ["RefinedSteps"]


class RefinedSteps(nn.Module):
    """An average velocity from r to t by num_steps steps that evaluate a field only once, at the beginning.

    Steps are those of `PseudoCorrector`, Heun's method with slopes used twice, but of the slopes only the first is the
    field's; each further one is the last slope and what a small refiner adds to it, ``v_k = v_{k-1} + refiner(x_k, t_k,
    v_{k-1})`` (FlowTurbo, Zhao et al. 2024, arXiv:2409.18128). As a run of steps depends on nothing but where it
    begins, a `FlowMap` of it, whose num_steps is the number of runs, has an exact density as every flow map has. The
    refiner is fitted by `RefinerMatching`.

    Args:
        field: v, a velocity that is already fitted.
        refiner: a module or function ``(x, t, v, context)``, without the context where there is none; a step should
            not be longer than those on which it was fitted.
        num_steps: equal steps of a run from r to t.

    Raises:
        ValueError: a num_steps that is not a positive integer.

    >>> import torch
    >>> from nflib.continuous import FlowMap, MLPVelocity
    >>> refiner = MLPVelocity(2, channels=16, num_layers=1, context_size=2)  # the last slope is its context
    >>> flow = FlowMap(RefinedSteps(MLPVelocity(2), refiner, num_steps=4), (2,), num_steps=3)  # 12 steps
    >>> x, log_prob = flow.sample_and_log_prob(5, seed=0)
    >>> torch.allclose(log_prob, flow.log_prob(x), atol=1e-5)
    True
    """

    def __init__(self, field: Velocity, refiner: Callable[..., Tensor], num_steps: int = 4):
        super().__init__()
        self.field, self.refiner = field, refiner
        self.num_steps = at_least(1, "num_steps", num_steps)
        self.uses_context = takes_context(field)
        self.context_shape = context_shape_of(field)

    def forward(self, x: Tensor, r: Tensor, t: Tensor, context: Any = None) -> Tensor:
        length = (t - r) / self.num_steps
        h = per_row(length, x)
        slope = evaluated(self.field, x, r, context)
        state, total = x, torch.zeros_like(x)
        for k in range(1, self.num_steps + 1):
            ahead = self.refined(state + h * slope, r + k * length, slope, context)
            mean = 0.5 * (slope + ahead)
            state, total, slope = state + h * mean, total + mean, ahead
        return total / self.num_steps

    def refined(self, x: Tensor, t: Tensor, slope: Tensor, context: Any = None) -> Tensor:
        """The slope at a point, refined from that of the step before.

        Args:
            x: the point, ``(B, *event_shape)``.
            t: its time, ``(B,)``.
            slope: of the step before, of x's shape.
            context: a row for each x, or None.
        """
        return slope + evaluated(in_single_precision(self.refiner), x, t, slope, context)
