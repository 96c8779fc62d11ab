"""Geometry of conformations: torsion angles, handedness and the sizes of atoms."""

import math
from collections.abc import Iterable
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Positions = TypeVar("Positions", Tensor, NDArray[Any])

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


def signed_volumes(positions: Positions, corners: Iterable[Any]) -> Positions:
    """Six times the signed volumes of tetrahedra in positions ``(..., n, 3)`` nm: their signs tell the two hands apart.

    corners: four atoms, each an index or the same number k of indices; ``(...)`` or ``(..., k)`` are returned.
    """
    origin, *others = (positions[..., corner, :] for corner in corners)
    a, b, c = (other - origin for other in others)
    volumes = a[..., 0] * (b[..., 1] * c[..., 2] - b[..., 2] * c[..., 1])
    volumes = volumes + a[..., 1] * (b[..., 2] * c[..., 0] - b[..., 0] * c[..., 2])
    return volumes + a[..., 2] * (b[..., 0] * c[..., 1] - b[..., 1] * c[..., 0])


def is_cis(positions: NDArray[np.floating], corners: Iterable[Any]) -> NDArray[np.bool_]:
    """(...) bool: whether, of four atoms of positions (..., n, 3), the outer two are on one side of the middle bond."""
    a, b, c, d = (positions[..., corner, :] for corner in corners)
    return np.asarray((np.cross(a - b, c - b) * np.cross(d - c, c - b)).sum(-1) > 0.0)


def covalent_radius(element: str) -> float:
    """In nm, of Cordero et al., Dalton Trans. 2832 (2008); raises ValueError for what is no element."""
    from rdkit import Chem, rdBase

    try:
        with rdBase.BlockLogs():  # of a traceback
            radius = Chem.GetPeriodicTable().GetRcovalent(element)
    except RuntimeError:
        radius = 0.0
    if not radius > 0.0:
        raise ValueError(f"{element} is no element that is known here; deuterium is written as H.")
    return float(radius) / 10.0  # Angstrom
