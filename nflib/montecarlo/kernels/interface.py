"""The interface of Markov kernels, and what the kernels here share."""

from __future__ import annotations

import math
from typing import ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from nflib.events import flattened
from nflib.montecarlo.path import GeometricPath, Particles

__all__ = ["GradientKernel", "Kernel", "Move", "Traits", "metropolis"]


class Move(NamedTuple):
    """What one step of a kernel did to each particle."""

    acceptance: Tensor
    """Probability of acceptance, `(N,)`, float64; zero for a proposal that is not finite, NaN for a dead particle."""
    log_weights: Tensor | None
    """What the step adds to the log-weights, `(N,)`; None for a kernel that leaves its density invariant."""
    num_nonfinite: int
    """Proposals with a position or density that is not finite: all are rejected."""


class Traits(NamedTuple):
    """What a `Kernel` says of itself, and what counts where it does not; read by `nflib.interfaces.stated`."""

    step_size: float | None = None
    target_acceptance: float | None = None
    needs_gradient: bool = False
    draws_proposal: bool = False
    weights_moves: bool = False


class Kernel(Protocol):
    """A Markov kernel: moves particles so that, with the weights of the move if any, they still represent a density.

    The density is that of a `GeometricPath` at an inverse temperature. A kernel keeps no state of its own. `step_size`
    is a length in units of x, the size of a single step's noise, so that kernels share its meaning; a kernel without
    one says None, or nothing. `target_acceptance` is the mean acceptance probability that adaptation of the step size
    aims at.

    Further attributes count as False where a kernel has none: `needs_gradient` (`init` is then given particles that
    have gradients, which saves an evaluation each), `draws_proposal` (it draws from the proposal, and cannot move where
    there is none), `weights_moves` (its moves have `log_weights`).
    """

    @property
    def step_size(self) -> float | None: ...

    @property
    def target_acceptance(self) -> float: ...

    def init(self, particles: Particles, path: GeometricPath) -> Particles:
        """The particles as the first step of the kernel needs them, such as with gradients.

        Args:
            particles: N points with their densities.
            path: the densities from proposal to target.
        """
        ...

    def step(
        self,
        particles: Particles,
        path: GeometricPath,
        inverse_temperature: float,
        step_size: float,
        generator: torch.Generator,
    ) -> tuple[Particles, Move]:
        """Move every particle once. Dead particles stay where they are, and cost no evaluation.

        Args:
            particles: from `init`, or from the step before.
            path: the densities from proposal to target; evaluates new points.
            inverse_temperature: at which density of the path, above 0 up to 1 (the target).
            step_size: a length in units of x; not read by a kernel without one.
            generator: of all random numbers.

        Returns:
            The particles after the step, and what it did to each.
        """
        ...


class GradientKernel:
    """What kernels that step along a gradient share. Raises ValueError for a step_size that is no positive length."""

    step_size: float
    needs_gradient: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0.0 < self.step_size < math.inf:
            raise ValueError(
                f"{type(self).__name__}: step_size is {self.step_size}; pass a positive, finite length in units of x."
            )

    def init(self, particles: Particles, path: GeometricPath) -> Particles:
        return path.with_gradients(particles)


def squared_norm(x: Tensor) -> Tensor:
    """Sum of squares over the event, `(N,)`, in float64."""
    return flattened(x.to(torch.float64)).square().sum(dim=1)


def metropolis(
    particles: Particles, proposed: Particles, log_ratio: Tensor, generator: torch.Generator
) -> tuple[Particles, Move]:
    """Metropolis-Hastings: accept each proposal with probability min(1, exp(log_ratio)), and never one that is dead.

    Args:
        particles: where they are.
        proposed: where each may go.
        log_ratio: log of the Metropolis-Hastings ratio, `(N,)`, float64.
        generator: of the N uniform numbers.
    """
    alive = particles.alive
    possible = alive & proposed.alive
    acceptance = torch.where(possible, log_ratio.clamp(max=0.0).exp(), 0.0)
    uniform = torch.rand(len(acceptance), generator=generator, dtype=torch.float64, device=generator.device)
    accepted = possible & (uniform.to(acceptance.device) < acceptance)
    move = Move(torch.where(alive, acceptance, torch.nan), None, int((alive & ~proposed.alive).sum()))
    return particles.replace(proposed, accepted), move
