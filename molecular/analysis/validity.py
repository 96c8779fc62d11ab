"""Is a conformation still the molecule: its bonds, and the handedness of its centres."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from molecular.molecule.peptide import Peptide

# Covalent radii of Cordero et al., Dalton Trans. 2832 (2008), nm.
COVALENT_RADII = {"H": 0.031, "C": 0.076, "N": 0.071, "O": 0.066, "S": 0.105}
# In units of the sum of both radii: bonded atoms are nearer than the second, and no two atoms nearer than the first.
SHORTEST, LONGEST = 0.7, 1.3

# Centres other than alpha carbons: atom, and three of its neighbours.
_SIDE_CHAIN_CENTRES = {"ILE": ("CB", "CA", "CG1", "CG2"), "THR": ("CB", "CA", "OG1", "CG2")}


def stereocentres(peptide: Peptide) -> Tensor:
    """Centres and three neighbours each, (s, 4): every alpha carbon but glycine's, and the beta carbons of
    isoleucine and threonine."""
    residues: dict[int, dict[str, int]] = {}
    names: dict[int, str] = {}
    for atom, (index, residue) in enumerate(zip(peptide.residue_indices, peptide.residue_names, strict=True)):
        residues.setdefault(index, {})[peptide.atom_names[atom]] = atom
        names[index] = residue
    centres = []
    for index, atoms in residues.items():
        if "CA" in atoms and "CB" in atoms:
            centres.append([atoms[name] for name in ("CA", "N", "C", "CB")])
        if names[index] in _SIDE_CHAIN_CENTRES:
            centres.append([atoms[name] for name in _SIDE_CHAIN_CENTRES[names[index]]])
    return torch.tensor(centres, dtype=torch.int64).reshape(-1, 4)


def handedness(positions: Tensor, centres: Tensor) -> Tensor:
    """Sign (N, s) of the volume spanned by each centre's three neighbours; 0 where they are in a plane with it."""
    a, b, c = (positions[:, centres[:, column]] - positions[:, centres[:, 0]] for column in (1, 2, 3))
    return (torch.linalg.cross(a, b) * c).sum(-1).sign()


def right_chirality(positions: Tensor, peptide: Peptide) -> Tensor:
    """(N,) bool: every centre has the hand that it has in the peptide's own structure, all L."""
    centres = stereocentres(peptide)
    expected = handedness(torch.from_numpy(peptide.positions)[None], centres)
    return (handedness(positions.double(), centres) == expected).all(dim=1)


def intact_bonds(
    positions: Tensor, elements: Sequence[str], bonds: Sequence[tuple[int, int]], batch_size: int = 1024
) -> Tensor:
    """(N,) bool: the bond graph read from the distances is the molecule's own.

    Two atoms count as bonded where they are nearer than 1.3 times the sum of their covalent radii; a conformation
    with any two atoms nearer than 0.7 times that sum is not valid either. Raises ValueError for an element without
    a radius here.
    """
    unknown = sorted(set(elements) - COVALENT_RADII.keys())
    if unknown:
        raise ValueError(f"no covalent radius of {', '.join(unknown)} is known; the elements are H, C, N, O and S.")
    radii = torch.tensor([COVALENT_RADII[element] for element in elements], dtype=positions.dtype)
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
