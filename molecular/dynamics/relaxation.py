"""Local minimisation of a starting structure."""

import torch
from torch import Tensor

from molecular.dynamics.langevin import EnergyAndForce


@torch.no_grad()
def relax(energy: EnergyAndForce, positions: Tensor, num_steps: int = 500, max_move: float = 0.01) -> Tensor:
    """Minimise energies by steepest descent with an adaptive step; the energy never rises.

    A trial moves all atoms along their forces, the one under the largest by the step. The step grows by a factor of
    1.2, up to ``max_move``, when the energy falls, and halves when it does not (then the trial is discarded).

    Args:
        energy: energies and forces of batches; see `EnergyAndForce`.
        positions: (B, n, 3) nm.
        num_steps: trials.
        max_move: the longest step, nm.

    Returns:
        Positions (B, n, 3) in nm.
    """
    x = positions.clone()
    potential, force = energy.energy_and_force(x)
    step = torch.full_like(potential, 0.1 * max_move)
    for _ in range(num_steps):
        longest = force.norm(dim=-1).amax(dim=-1).clamp_min(torch.finfo(force.dtype).tiny)
        trial = x + force * (step / longest)[:, None, None]
        trial_potential, trial_force = energy.energy_and_force(trial)
        better = trial_potential < potential
        x = torch.where(better[:, None, None], trial, x)
        force = torch.where(better[:, None, None], trial_force, force)
        potential = torch.where(better, trial_potential, potential)
        step = torch.where(better, (1.2 * step).clamp_max(max_move), 0.5 * step)
    return x
