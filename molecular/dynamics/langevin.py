"""One Langevin step for a batch of replicas, each at its own temperature."""

import math
from typing import Protocol

import torch
from torch import Tensor

from molecular.molecule.constants import MOLAR_GAS_CONSTANT
from nflib.random import normal_like
from nflib.threads import one_thread


class EnergyAndForce(Protocol):
    """A potential energy evaluated for a batch of conformations."""

    def energy_and_force(self, x: Tensor, /) -> tuple[Tensor, Tensor]:
        """Energies (B,) in kJ/mol and forces (B, n, 3) in kJ/mol/nm of positions (B, n, 3) in nm."""
        ...


class Integrator(Protocol):
    """Langevin dynamics of a batch of replicas, each at its own temperature; see `Langevin`."""

    def run(
        self, energy: EnergyAndForce, x: Tensor, v: Tensor, force: Tensor, num_steps: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Advance positions and velocities in place.

        Args:
            energy: energies and forces of batches.
            x: positions (B, n, 3), nm.
            v: velocities (B, n, 3), nm/ps, as they are stored.
            force: at ``x``, (B, n, 3), kJ/mol/nm.
            num_steps: 1 or more.
            generator: of the noise.

        Returns:
            Energies (B,) in kJ/mol and forces (B, n, 3) in kJ/mol/nm at the end.
        """
        ...

    def to_full_step(self, v: Tensor, force: Tensor) -> Tensor:
        """Velocities at the instant of the positions, from the stored ones."""
        ...

    def to_stored(self, v: Tensor, force: Tensor) -> Tensor:
        """The inverse of `to_full_step`."""
        ...


def maxwell_velocities(masses: Tensor, temperatures: Tensor, generator: torch.Generator) -> Tensor:
    """Velocities (B, n, 3) in nm/ps from the Maxwell distribution.

    Args:
        masses: (n,) amu.
        temperatures: (B,) K.
        generator: of the random numbers.
    """
    scale = torch.sqrt(MOLAR_GAS_CONSTANT * temperatures[:, None] / masses)[..., None].expand(-1, -1, 3)
    return scale * normal_like(scale, generator)


class Langevin:
    """Langevin dynamics by the BAOAB integrator, the closing half kick of a step merged with the next one's opening.

    A step is: full kick, half drift, friction and noise, half drift, force (one evaluation). Positions are
    the same as those of BAOAB, whose configurational error is of fourth order in the time step at high
    friction and zero for a harmonic potential (Leimkuhler and Matthews, J. Chem. Phys. 138, 174102, 2013).
    Velocities are those half a kick before the end of the step: their variance is kT/m without time-step
    error when the force is harmonic, which makes them the right ones for measuring a temperature.

    Args:
        masses: (n,) amu.
        temperatures: (B,) K, one a replica.
        timestep: ps.
        friction: 1/ps.
    """

    def __init__(self, masses: Tensor, temperatures: Tensor, timestep: float, friction: float) -> None:
        self.half_step = 0.5 * timestep
        self.kick_per_force = (timestep / masses)[:, None]
        self.damping = math.exp(-friction * timestep)
        strength = math.sqrt(-math.expm1(-2.0 * friction * timestep))
        self.noise = strength * torch.sqrt(MOLAR_GAS_CONSTANT * temperatures[:, None] / masses)[..., None]

    def run(
        self,
        energy: EnergyAndForce,
        x: Tensor,
        v: Tensor,
        force: Tensor,
        num_steps: int,
        generator: torch.Generator,
    ) -> tuple[Tensor, Tensor]:
        """Advance ``x``, ``v`` in place by ``num_steps >= 1``; return energies (B,) and forces at the end."""
        noise = torch.empty_like(v)
        potential = x.new_empty(len(x))
        for _ in range(num_steps):
            with one_thread():  # not the energy, which spreads its work over threads by itself
                v.addcmul_(force, self.kick_per_force)
                x.add_(v, alpha=self.half_step)
                torch.randn(v.shape, generator=generator, out=noise)
                v.mul_(self.damping).addcmul_(noise, self.noise)
                x.add_(v, alpha=self.half_step)
            potential, force = energy.energy_and_force(x)
        return potential, force

    def to_full_step(self, v: Tensor, force: Tensor) -> Tensor:
        """Velocities at the end of the step (after the closing half kick) from the stored ones."""
        return torch.addcmul(v, force, self.kick_per_force, value=0.5)

    def to_stored(self, v: Tensor, force: Tensor) -> Tensor:
        """The inverse of `to_full_step`."""
        return torch.addcmul(v, force, self.kick_per_force, value=-0.5)
