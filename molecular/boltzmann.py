"""The Boltzmann distribution of a peptide, as a reduced energy."""

import torch
from torch import Tensor

from molecular.energy import compile_system
from molecular.peptide import Peptide


class ReducedEnergy:
    """``u(x) = U(x) / kT`` of a peptide, ``(B, n, 3)`` nm -> ``(B,)`` float64; not finite where U is not."""

    def __init__(self, peptide: Peptide, device: str | torch.device = "cpu"):
        self.energy = compile_system(peptide.system).to(device)
        self.kT = peptide.kT

    @torch.no_grad()
    def __call__(self, positions: Tensor) -> Tensor:
        return self.energy.energy(positions.float()).double() / self.kT
