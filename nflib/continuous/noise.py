"""The noise that a flow along a path starts from, and how wide it is."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from nflows.distributions import Distribution
from torch import nn

from nflib.continuous.fields import context_shape_of
from nflib.continuous.paths import Path
from nflib.continuous.steps import StepwiseTransform
from nflib.distributions import ScaledNoise, StandardNormal
from nflib.errors import check_object
from nflib.events import as_shape
from nflib.flows.flow import Flow

__all__ = ["PathFlow", "noise_width", "said_shape"]


def noise_width(path: Path, start: float) -> float:
    """How wide the noise of a path is at its start."""
    check_object("path", path, "LinearPath()", "coefficients", "pair")
    return float(path.coefficients(torch.tensor([start], dtype=torch.float64)).alpha)


def said_shape(flow: Flow) -> tuple[int, ...] | None:
    """The shape of the flow's events, None where its base does not say it, or not without a context."""
    try:
        return flow.event_shape
    except ValueError:
        return None


class PathFlow(Flow):
    """What `ODEFlow` and `FlowMap` share: a flow along a path, from noise as wide as the path has it."""

    def __init__(
        self,
        transform: StepwiseTransform,
        event_shape: Sequence[int] | int,
        path: Path,
        distribution: Distribution | torch.distributions.Distribution | None,
        embedding_net: nn.Module | None,
        context_shape: Sequence[int | None] | None,
    ):
        given, width = as_shape(event_shape), transform.noise_width
        if distribution is None:
            noise = StandardNormal(given)
            distribution = noise if width == 1 else ScaledNoise(noise, [width])
        if context_shape is None and embedding_net is None:  # which would read another
            context_shape = context_shape_of(transform.velocity)
        super().__init__(transform, distribution, embedding_net, context_shape=context_shape)
        own = said_shape(self)
        if own not in (None, given):
            raise ValueError(
                f"{type(self).__name__}: event_shape is {given}, and the distribution of the noise has events of shape "
                f"{own}; make them the same."
            )
        self.path, self.noise_width = path, width
