"""What a flow's samples are weighted to: the Boltzmann density over the space that the flow's own density is over."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from molecular.energy.reduced import ReducedEnergy
from molecular.molecule.molecule import Molecule


def energy_for(flow: object, molecule: Molecule, device: str | torch.device = "cpu") -> Callable[[Tensor], Tensor]:
    """The reduced energy that a flow's samples are weighted to: its Boltzmann density is over the flow's own space.

    For a density modulo rigid motion this is `ReducedEnergy(molecule)`; a flow whose density is over something else
    says so by its method `target_energy` (`molecular.flows.conformations.ConformationFlow`).

    Args:
        flow: given the molecule.
        molecule: whose System and temperature are meant.
        device: that the energy is computed on.

    Returns:
        A function of positions ``(B, n, 3)`` in nm that returns ``(B,)``, in kT.

    Raises:
        ValueError: a flow that was given another molecule.
    """
    check = getattr(flow, "check", None)
    if check is not None:
        check(molecule)
    energy = ReducedEnergy(molecule, device)
    target_energy = getattr(flow, "target_energy", None)
    return energy if target_energy is None else target_energy(energy)
