"""The Boltzmann distribution of a peptide, as a reduced energy."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from molecular.energy import compile_system
from molecular.peptide import Peptide

# In training with energies as labels, residuals of log q + u beyond this many kT pull with a bounded force.
CLIP = 4.0
# Samples of an energy above the target's median by more than this many kT have no weight to speak of: no labels.
HIGHEST_ENERGY = 40.0


class ReducedEnergy:
    """``u(x) = U(x) / kT`` of a peptide, ``(B, n, 3)`` nm -> ``(B,)`` float64; not finite where U is not.

    Energies and forces are computed in `dtype`. Differentiable once where positions require a gradient.
    """

    def __init__(
        self, peptide: Peptide, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
    ) -> None:
        self.energy = compile_system(peptide.system, dtype).to(device)
        self.kT = peptide.kT

    def __call__(self, positions: Tensor) -> Tensor:
        return self.energy.energy(positions).double() / self.kT


def energy_for(flow: object, peptide: Peptide, device: str | torch.device = "cpu") -> Callable[[Tensor], Tensor]:
    """The reduced energy whose Boltzmann density is over the same space as the flow's: its samples are weighted to it.

    Modulo rigid motion u itself; for `Prose`, alone or given a molecule, whose density also places the molecule, u with
    the density of the centroid that it was trained on (`molecular.transferable.rigid_motion.CentroidEnergy`).
    """
    from molecular.prose import Prose
    from molecular.transferable.rigid_motion import CentroidEnergy

    energy = ReducedEnergy(peptide, device)
    whole = getattr(flow, "flow", flow)
    return CentroidEnergy(energy, float((whole.config or {})["scale"])) if isinstance(whole, Prose) else energy
