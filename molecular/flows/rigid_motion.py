"""What a flow on plain positions must learn by examples: rigid motion, with a centroid drawn from a normal density."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from nflib.random import normal_like


def random_rigid_motion(
    positions: Tensor, mask: Tensor, scale: float, generator: torch.Generator | None = None
) -> Tensor:
    """Conformations ``(B, n, 3)``, each in an orientation of its own, their centroids normal around zero.

    A molecule of n atoms gets a centroid of standard deviation ``scale / sqrt(n)``, that of n independent atoms of
    standard deviation `scale`.

    Args:
        positions: ``(B, n, 3)``.
        mask: ``(B, n)``, False at padding, which becomes zero.
        scale: in the units of the positions.
        generator: of the random numbers (default: torch's own).
    """
    kept = mask.unsqueeze(-1)
    count = kept.sum(1, keepdim=True).to(positions.dtype)
    centred = positions - positions.masked_fill(~kept, 0.0).sum(1, keepdim=True) / count
    noise = normal_like(positions.new_empty(len(positions), 7), generator)
    # Not a matrix product, which autocast would round to half precision.
    rotated = (_rotations(noise[:, :4])[:, None] * centred[:, :, None]).sum(-1)
    return (rotated + noise[:, None, 4:] * scale * count.rsqrt()).masked_fill(~kept, 0.0)


class CentroidEnergy:
    """A reduced energy of conformations ``(B, n, 3)`` that also places them: u(x) and the centroid's own density.

    ``u(x) - log N(centroid; 0, scale^2 / n) + log(8 pi^2)``, whose Boltzmann density over all 3n positions is the one
    that `random_rigid_motion` draws from, normalised in position and orientation.

    Args:
        energy: u, of conformations wherever they are.
        scale: as of `random_rigid_motion`.
    """

    def __init__(self, energy: Callable[[Tensor], Tensor], scale: float):
        self.energy = energy
        self.scale = scale

    def __call__(self, positions: Tensor) -> Tensor:
        variance = self.scale**2 / positions.shape[1]
        centroid = positions.double().mean(1).square().sum(-1)
        placing = 0.5 * centroid / variance + 1.5 * math.log(2 * math.pi * variance)
        return self.energy(positions) + placing + math.log(8 * math.pi**2)


def _rotations(quaternions: Tensor) -> Tensor:
    """Uniformly random rotations ``(B, 3, 3)`` from normal numbers ``(B, 4)`` (Shoemake 1992)."""
    w, x, y, z = torch.nn.functional.normalize(quaternions, dim=-1).unbind(-1)
    rows = (
        torch.stack([1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)], dim=-1),
        torch.stack([2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)], dim=-1),
        torch.stack([2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)], dim=-1),
    )
    return torch.stack(rows, dim=-2)
