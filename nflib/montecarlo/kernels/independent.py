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
    """Independent Metropolis: new draws x' of the proposal q, accepted with probability min(1, (w(x') / w(x))^b).

    Here w = p~ / q, and b is the inverse temperature. It needs no gradient and has no step size to adapt. Every step
    draws as many points of the proposal as there are particles.
    """

    step_size: ClassVar[None] = None
    target_acceptance: ClassVar[float] = 1.0  # which nothing aims at
    draws_proposal: ClassVar[bool] = True

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
