"""What a flow's samples are weighted to: the Boltzmann density over the space that the flow's own density is over."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from molecular.energy.reduced import ReducedEnergy
from molecular.molecule.molecule import Molecule


def energy_for(flow: object, molecule: Molecule, device: str | torch.device = "cpu") -> Callable[[Tensor], Tensor]:
    """The reduced energy whose Boltzmann density is over the same space as the flow's: its samples are weighted to it.

    Modulo rigid motion u itself; a flow whose density also places the molecule adds the energy of that by its method
    `with_placement`, as `molecular.flows.conformations.ConformationFlow` has it.
    """
    energy = ReducedEnergy(molecule, device)
    with_placement = getattr(flow, "with_placement", None)
    return energy if with_placement is None else with_placement(energy)
