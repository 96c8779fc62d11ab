"""Geometry of conformations: torsion angles."""

import torch
from torch import Tensor


def dihedrals(positions: Tensor, quadruples: Tensor) -> Tensor:
    """Torsion angles in radians, in (-pi, pi], of atom quadruples ``(k, 4)``: ``(..., n, 3)`` nm -> ``(..., k)``.

    IUPAC sign: positive when, looking along the middle bond, the far bond is turned clockwise.
    """
    quadruples = torch.as_tensor(quadruples, device=positions.device)
    a, b, c, d = (positions[..., quadruples[:, column], :] for column in range(4))
    middle = torch.nn.functional.normalize(c - b, dim=-1)
    first = torch.linalg.cross(b - a, middle)
    second = torch.linalg.cross(middle, d - c)
    sine = (torch.linalg.cross(first, second) * middle).sum(-1)
    return torch.atan2(sine, (first * second).sum(-1))
