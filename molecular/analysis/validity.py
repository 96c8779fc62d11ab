"""Is a conformation still the molecule: its bonds, and the handedness of its centres."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from molecular.molecule.molecule import Molecule

# In units of the sum of both radii: bonded atoms are nearer than the second, and no two atoms nearer than the first.
SHORTEST, LONGEST = 0.7, 1.3


def covalent_radius(element: str) -> float:
    """In nm, of Cordero et al., Dalton Trans. 2832 (2008); raises ValueError for what is no element."""
    from rdkit import Chem

    try:
        return float(Chem.GetPeriodicTable().GetRcovalent(element)) / 10.0
    except RuntimeError as error:
        raise ValueError(f"no covalent radius of {element!r} is known.") from error


def handedness(positions: Tensor, centres: Tensor) -> Tensor:
    """Sign (N, s) of the volume spanned by each centre's three neighbours; 0 where they are in a plane with it."""
    a, b, c = (positions[:, centres[:, column]] - positions[:, centres[:, 0]] for column in (1, 2, 3))
    return (torch.linalg.cross(a, b) * c).sum(-1).sign()


def right_chirality(positions: Tensor, molecule: Molecule) -> Tensor:
    """(N,) bool: every centre has the hand that it has in the molecule's own structure."""
    centres = torch.tensor(molecule.topology.stereocentres, dtype=torch.int64).reshape(-1, 4)
    expected = handedness(torch.from_numpy(molecule.positions)[None], centres)
    return (handedness(positions.double(), centres) == expected).all(dim=1)


def intact_bonds(
    positions: Tensor, elements: Sequence[str], bonds: Sequence[tuple[int, int]], batch_size: int = 1024
) -> Tensor:
    """(N,) bool: the bond graph read from the distances is the molecule's own.

    Two atoms count as bonded where they are nearer than 1.3 times the sum of their covalent radii; a conformation
    with any two atoms nearer than 0.7 times that sum is not valid either.
    """
    radii = torch.tensor([covalent_radius(element) for element in elements], dtype=positions.dtype)
    first, second = torch.triu_indices(len(elements), len(elements), offset=1)
    sums = radii[first] + radii[second]
    bonded = torch.zeros(len(elements), len(elements), dtype=torch.bool)
    for i, j in bonds:
        bonded[i, j] = bonded[j, i] = True
    expected = bonded[first, second]
    parts = []
    for part in positions.split(batch_size):
        ratio = torch.linalg.vector_norm(part[:, first] - part[:, second], dim=-1) / sums
        parts.append((((ratio < LONGEST) == expected) & (ratio > SHORTEST)).all(dim=1))
    return torch.cat(parts)
