"""Local minimisation of a starting structure."""

import torch
from torch import Tensor

from molecular.dynamics.langevin import EnergyAndForce


@torch.no_grad()
def relax(energy: EnergyAndForce, positions: Tensor, num_steps: int = 500, max_move: float = 0.01) -> Tensor:
    """Steepest descent with an adaptive step for positions (B, n, 3) in nm; the energy never rises.

    A trial moves the most strained atom by ``step`` nm; ``step`` grows by 1.2 when the energy falls and
    halves when it does not (then the trial is discarded), up to ``max_move``.
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
