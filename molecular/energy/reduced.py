"""The Boltzmann distribution of a molecule, as a reduced energy."""

from __future__ import annotations

import torch
from torch import Tensor

from molecular.energy import compile_system
from molecular.molecule.molecule import Molecule

# In training with energies as labels, residuals of log q + u beyond this many kT pull with a bounded force.
CLIP = 4.0
# Samples of an energy above the target's median by more than this many kT have no weight to speak of: no labels.
HIGHEST_ENERGY = 40.0


class ReducedEnergy:
    """``u(x) = U(x) / kT`` of a molecule, ``(B, n, 3)`` nm -> ``(B,)`` float64; not finite where U is not.

    Energies and forces are computed in `dtype`; by OpenMM where `compile_system` does not know a force. Differentiable
    once where positions require a gradient.
    """

    def __init__(
        self, molecule: Molecule, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
    ) -> None:
        self.energy = compile_system(molecule.system, dtype, fallback=True).to(device)
        self.kT = molecule.kT

    def __call__(self, positions: Tensor) -> Tensor:
        return self.energy.energy(positions).double() / self.kT
