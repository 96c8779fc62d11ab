"""Independent Metropolis: the proposal itself offers new points, wherever the particle stands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from nflib.montecarlo.kernels.interface import Move, metropolis
from nflib.montecarlo.path import GeometricPath, Particles

__all__ = ["IndependentMetropolis"]


@dataclass(frozen=True)
class IndependentMetropolis:
    """Proposes fresh draws of q and accepts them with probability min(1, (w(x') / w(x))^b), w = p~ / q.

    Needs no gradient and has no step to adapt. Every step draws N points of the proposal.
    """

    step_size: ClassVar[None] = None
    draws_proposal: ClassVar[bool] = True
    target_acceptance: float = 1.0

    def init(self, particles: Particles, path: GeometricPath) -> Particles:
        return particles

    def step(
        self,
        particles: Particles,
        path: GeometricPath,
        inverse_temperature: float,
        step_size: float,
        generator: torch.Generator,
    ) -> tuple[Particles, Move]:
        proposed = path.draw(len(particles.x), generator)
        log_ratio = inverse_temperature * (proposed.log_ratio - particles.log_ratio)
        return metropolis(particles, proposed, torch.nan_to_num(log_ratio, nan=-torch.inf), generator)
