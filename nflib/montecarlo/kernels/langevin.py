"""Langevin kernels: one step of the overdamped dynamics, weighted (ULA) or accepted and rejected (MALA)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from nflib.montecarlo.kernels.interface import GradientKernel, Move, metropolis, squared_norm
from nflib.montecarlo.path import GeometricPath, Particles
from nflib.random import normal_like

__all__ = ["MALA", "ULA"]


@dataclass(frozen=True)
class ULA(GradientKernel):
    """Unadjusted Langevin algorithm: steps `x' = x + s^2/2 grad log pi(x) + s noise` that carry their own weights.

    The particle is weighted by `pi(x') K(x' -> x) / (pi(x) K(x -> x'))`, the same kernel taken backwards (annealed
    importance sampling on the pair; Nilmeier et al., PNAS 108 (2011) E1009; Doucet et al. 2022), so estimates are
    unbiased at any step size s. The mean of min(1, that ratio) stands for the acceptance.

    Where the step would leave the support the particle stays, with its weight: the kernel K is then that step if it
    ends inside, and staying put otherwise. A particle weighted zero there instead would be missed by the backward
    kernel, which also leads outside, and the region near the wall would lose its mass.

    Args:
        step_size: s, a length in units of x, from which adaptation starts.
        target_acceptance: mean of min(1, that ratio) that adaptation of the step size aims at.

    Raises:
        ValueError: a step size that is not positive and finite.
    """

    step_size: float = 0.1
    target_acceptance: float = 0.9
    weights_moves: ClassVar[bool] = True

    def step(
        self,
        particles: Particles,
        path: GeometricPath,
        inverse_temperature: float,
        step_size: float,
        generator: torch.Generator,
    ) -> tuple[Particles, Move]:
        alive = particles.alive
        proposed, log_ratio = _langevin(particles, path, inverse_temperature, step_size, generator)
        moved = alive & proposed.alive
        ratio = torch.where(moved, log_ratio.clamp(max=0.0).exp(), 0.0)
        move = Move(
            acceptance=torch.where(alive, ratio, torch.nan),
            log_weights=torch.where(moved, log_ratio, 0.0),
            num_nonfinite=int((alive & ~proposed.alive).sum()),
        )
        return particles.replace(proposed, moved), move


@dataclass(frozen=True)
class MALA(GradientKernel):
    """Metropolis-adjusted Langevin algorithm (Roberts & Tweedie, Bernoulli 2 (1996) 341).

    It proposes the step of `ULA`, and accepts or rejects it.

    Args:
        step_size: standard deviation of the noise, a length in units of x, from which adaptation starts.
        target_acceptance: mean acceptance probability that adaptation of the step size aims at.

    Raises:
        ValueError: a step size that is not positive and finite.
    """

    step_size: float = 0.1
    target_acceptance: float = 0.574

    def step(
        self,
        particles: Particles,
        path: GeometricPath,
        inverse_temperature: float,
        step_size: float,
        generator: torch.Generator,
    ) -> tuple[Particles, Move]:
        proposed, log_ratio = _langevin(particles, path, inverse_temperature, step_size, generator)
        return metropolis(particles, proposed, log_ratio, generator)


def _langevin(
    particles: Particles,
    path: GeometricPath,
    inverse_temperature: float,
    step_size: float,
    generator: torch.Generator,
) -> tuple[Particles, Tensor]:
    """Proposals, and log of `pi(x') K(x' -> x) / (pi(x) K(x -> x'))`, `-inf` for dead ones, `(N,)` float64."""
    drift = 0.5 * step_size**2 * particles.gradient(inverse_temperature)
    x = particles.x + drift + step_size * normal_like(particles.x, generator)
    proposed = path.evaluate(x, particles.alive, gradient=True)
    # From the positions as they were rounded, not from the noise: the kernel's density is that of what was returned.
    forward = (proposed.x.double() - particles.x.double() - drift.double()) / step_size
    back_drift = 0.5 * step_size**2 * proposed.gradient(inverse_temperature).double()
    backward = (particles.x.double() - proposed.x.double() - back_drift) / step_size
    change = proposed.log_density(inverse_temperature) - particles.log_density(inverse_temperature)
    log_ratio = change + 0.5 * (squared_norm(forward) - squared_norm(backward))
    return proposed, torch.where(particles.alive & proposed.alive & ~log_ratio.isnan(), log_ratio, -torch.inf)
