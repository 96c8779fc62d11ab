"""What a flow's samples are weighted to: the Boltzmann density over the space that the flow's own density is over."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from molecular.energy.reduced import ReducedEnergy
from molecular.molecule.molecule import Molecule


def energy_for(flow: object, molecule: Molecule, device: str | torch.device = "cpu") -> Callable[[Tensor], Tensor]:
    """The reduced energy whose Boltzmann density is over the same space as the flow's: its samples are weighted to it.

    Modulo rigid motion u itself; a flow whose density is over something else says so by its method `target_energy`, as
    `molecular.flows.conformations.ConformationFlow` has it. Raises ValueError for a flow that was given another
    molecule.
    """
    check = getattr(flow, "check", None)
    if check is not None:
        check(molecule)
    energy = ReducedEnergy(molecule, device)
    target_energy = getattr(flow, "target_energy", None)
    return energy if target_energy is None else target_energy(energy)
