"""Reduced energies as labels: which of them training compares with a flow's log-densities."""

from __future__ import annotations

import torch
from torch import Tensor

# Residuals of log q + u beyond this many kT pull with a bounded force.
CLIP = 4.0
# Samples of an energy above the target's median by more than this many kT have no weight to speak of: no labels.
HIGHEST_ENERGY = 40.0


def as_labels(energies: Tensor, median: Tensor) -> Tensor:
    """Reduced energies in kT, infinite, which is no label, where they are far above the target's median or NaN."""
    return torch.where(energies < median + HIGHEST_ENERGY, energies, torch.inf)
