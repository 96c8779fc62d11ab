"""Hamiltonian Monte Carlo."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from nflib.errors import is_whole
from nflib.events import per_row
from nflib.montecarlo.kernels.interface import GradientKernel, Move, metropolis, squared_norm
from nflib.montecarlo.path import GeometricPath, Particles
from nflib.random import normal_like

__all__ = ["HMC"]


@dataclass(frozen=True)
class HMC(GradientKernel):
    """Hamiltonian Monte Carlo with unit masses and a fixed number of leapfrog steps (Neal 2011, arXiv 1206.1901).

    Each particle's step is multiplied by `exp(jitter * normal)`: no trajectory closes on itself, and a wide jitter (1)
    serves targets with many length scales. A trajectory that meets a point without a finite density ends there and is
    rejected, as its reverse would be.

    Args:
        step_size: of a leapfrog step, a length in units of x, from which adaptation starts.
        num_leapfrog: leapfrog steps of a trajectory.
        jitter: standard deviation of the logarithm of a particle's step size; 0: all have the same.
        target_acceptance: mean acceptance probability that adaptation of the step size aims at.

    Raises:
        ValueError: a step size that is not positive and finite, num_leapfrog no integer of 1 or more, a jitter that is
            negative or not finite.
    """

    step_size: float = 0.1
    num_leapfrog: int = 8
    jitter: float = 0.2
    target_acceptance: float = 0.8

    def __post_init__(self) -> None:
        super().__post_init__()
        if not is_whole(self.num_leapfrog, 1) or not 0.0 <= self.jitter < math.inf:
            raise ValueError(
                f"HMC: num_leapfrog is {self.num_leapfrog} and jitter {self.jitter}; pass an integer, one "
                "or more, and a finite jitter of 0 or more."
            )

    def step(
        self,
        particles: Particles,
        path: GeometricPath,
        inverse_temperature: float,
        step_size: float,
        generator: torch.Generator,
    ) -> tuple[Particles, Move]:
        x = particles.x
        velocity = normal_like(x, generator)
        spread = (self.jitter * normal_like(x.new_empty(len(x)), generator)).exp()
        steps = step_size * per_row(spread, x)
        kinetic = 0.5 * squared_norm(velocity)
        proposed = particles
        for _ in range(self.num_leapfrog):
            velocity = velocity + 0.5 * steps * proposed.gradient(inverse_temperature)
            # A trajectory that has died is not evaluated again: `alive` can only shrink.
            proposed = path.evaluate(proposed.x + steps * velocity, proposed.alive, gradient=True)
            velocity = velocity + 0.5 * steps * proposed.gradient(inverse_temperature)
        change = proposed.log_density(inverse_temperature) - particles.log_density(inverse_temperature)
        log_ratio = change + kinetic - 0.5 * squared_norm(velocity)
        return metropolis(particles, proposed, torch.nan_to_num(log_ratio, nan=-torch.inf), generator)
