"""Exchanges of atoms that leave a molecule's energy as it is."""

from __future__ import annotations

import torch
from torch import Tensor

from molecular.energy.compiled import compile_system
from molecular.energy.openmm_energy import OpenMMEnergy
from molecular.energy.potential import PotentialEnergy
from molecular.energy.unsupported import UnsupportedForce
from molecular.molecule.molecule import Molecule
from molecular.molecule.symmetry import half_turns, methyl_rotations, random_symmetry

# Improper torsions, whose atoms have an order, tell the two sides of half a turn apart by tenths of kT.
HALF_TURN_ENERGY = 0.5


class Symmetries:
    """Data augmentation by symmetries: random turns of methyl and ammonium groups, and `half_turns`, independently.

    Only those that the force field allows: a turn must not change the energy, up to HALF_TURN_ENERGY for half turns.

    Args:
        molecule: in its force field.
    """

    def __init__(self, molecule: Molecule):
        energy: PotentialEnergy
        try:
            energy = compile_system(molecule.system, torch.float64)
        except UnsupportedForce:  # OpenMM's other platforms are of single precision
            energy = OpenMMEnergy(molecule.system, "Reference", num_workers=1)
        start = torch.from_numpy(molecule.positions)[None]
        # Off the structure, which may be symmetric itself.
        start = start + 0.005 * torch.randn(start.shape, dtype=start.dtype, generator=torch.Generator().manual_seed(0))
        before = energy.energy(start)
        self.groups = []
        turns = half_turns(molecule.topology)
        for group in [*turns, *methyl_rotations(molecule.topology)]:
            turned = start.clone()
            turned[:, group[0]] = start[:, group[1]]
            bound = HALF_TURN_ENERGY * molecule.kT if len(group) == 2 else 1e-6
            if torch.allclose(energy.energy(turned), before, rtol=1e-9, atol=bound):
                self.groups.append(group)

    def __call__(self, positions: Tensor, generator: torch.Generator) -> Tensor:
        return random_symmetry(positions, self.groups, generator)
