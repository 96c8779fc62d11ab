"""Geometry of conformations: torsion angles."""

import math

import torch
from torch import Tensor

# With three atoms closer to a line than this many degrees, a torsion over them is noise.
LINEAR = 10.0


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


def has_torsion(positions: Tensor, quadruples: Tensor) -> Tensor:
    """(k,) bool: which of quadruples ``(k, 4)`` are not in a line at either middle atom of a structure ``(n, 3)``, as
    they are at a triple bond."""
    a, b, c, d = (positions[quadruples[:, column]] for column in range(4))
    cosines = [
        torch.nn.functional.cosine_similarity(one - centre, other - centre, dim=-1)
        for one, centre, other in ((a, b, c), (b, c, d))
    ]
    return torch.stack(cosines).amin(0) > -math.cos(math.radians(LINEAR))
