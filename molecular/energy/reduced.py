"""The Boltzmann distribution of a molecule, as a reduced energy."""

from __future__ import annotations

import torch
from torch import Tensor

from molecular.energy import compile_system
from molecular.molecule.molecule import Molecule

# kT, by which stored energies may be off as labels, and frames that tell whether they are.
_ROUNDING, _TRIED = 0.01, 256
_BATCH = 1024


class ReducedEnergy:
    """The reduced energy ``u(x) = U(x) / kT`` of a molecule, a function of positions ``(B, n, 3)`` in nm.

    It returns ``(B,)`` in float64, not finite where U is not, and is differentiable once where positions require a
    gradient. Forces that `compile_system` does not know are evaluated by OpenMM.

    Args:
        molecule: whose System and temperature are taken.
        device: that positions must be on.
        dtype: in which energies and forces are computed.

    >>> from molecular import Peptide
    >>> peptide = Peptide("Ace-A-Nme")
    >>> energy = ReducedEnergy(peptide)
    >>> energy(torch.as_tensor(peptide.positions, dtype=torch.float32)[None]).shape
    torch.Size([1])
    """

    def __init__(
        self, molecule: Molecule, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
    ) -> None:
        self.energy = compile_system(molecule.system, dtype, fallback=True).to(device)
        self.kT = molecule.kT

    def __call__(self, positions: Tensor) -> Tensor:
        return self.energy.energy(positions).double() / self.kT

    @torch.no_grad()
    def of_frames(self, positions: Tensor, energies: Tensor) -> Tensor:
        """Reduced energies ``(N,)`` of stored frames: as stored with them, or computed where these do not agree.

        A simulation's energies belong to positions before these were rounded for storage, which changes energies by
        0.8 kT in XTC files. All are computed anew unless some that are tried agree with the stored ones.

        Args:
            positions: ``(N, n, 3)``, nm.
            energies: ``(N,)``, kJ/mol, as they were stored.
        """
        stored = energies.double() / self.kT
        tried = torch.linspace(0, len(positions) - 1, min(_TRIED, len(positions))).long()
        if bool(((self(positions[tried]) - stored[tried]).abs() < _ROUNDING).all()):
            return stored
        return torch.cat([self(part) for part in positions.split(_BATCH)])
