"""Fitting drift and score of a stochastic interpolant."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from nflib.continuous.couplings import Coupling, IndependentCoupling
from nflib.continuous.interpolants import InterpolantFlow
from nflib.continuous.objectives.parts import OfPairs
from nflib.continuous.times import Times, UniformTimes
from nflib.events import flattened
from nflib.random import normal_like

__all__ = ["InterpolantMatching"]


@dataclass(frozen=True)
class InterpolantMatching(OfPairs):
    """An objective that fits drift b and score s of an `InterpolantFlow` to its path (Albergo et al. 2023).

    (arXiv:2303.08797.) The loss is the mean of ``|b|^2 / 2 - (d x_t / dt) . b`` plus that of ``|s|^2 / 2 + z . s /
    gamma``, each over z and -z, so that what diverges at the ends cancels. The minima are ``b = E[d x_t / dt | x_t]``
    and ``s = -E[z | x_t] / gamma``, with the values ``-E|b|^2 / 2`` and ``-E|s|^2 / 2``.

    Args:
        coupling: which x0 is paired with which x1.
        times: the density of t.

    Raises:
        ValueError: a class in the place of a part; on training, data of another shape than the flow's events.
    """

    needs_flow: ClassVar[dict[str, str]] = {"path_score": "an InterpolantFlow"}

    coupling: Coupling = field(default_factory=IndependentCoupling)
    times: Times = field(default_factory=UniformTimes)

    def __call__(
        self, flow: InterpolantFlow, batch: dict[str, Tensor], generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        x0, x1, context = self.paired(flow, batch, generator)
        t = self.times.sample(len(x1), generator).to(x1)
        edge = torch.finfo(t.dtype).eps
        t = t.clamp(edge, 1 - edge)
        z = normal_like(x1, generator)
        gamma = flow.path.coefficients(t).like(x1).gamma
        drift = score = x1.new_zeros(())
        for latent in (z, -z):
            x, slope = flow.path.pair(x0, x1, t, latent)
            b, s = flow.velocity(x, t, context), flow.path_score(x, t, context)
            drift = drift + _mean_sum(0.5 * b.square() - slope * b) / 2
            score = score + _mean_sum(0.5 * s.square() + latent / gamma * s) / 2
        return drift + score, {"drift": drift.detach(), "score": score.detach()}


def _mean_sum(values: Tensor) -> Tensor:
    return flattened(values).sum(1).mean()
