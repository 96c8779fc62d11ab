"""The torsions that an ensemble is judged by."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from molecular.molecule.peptide import Peptide


def backbone_torsions(peptide: Peptide) -> Tensor:
    """Atom quadruples (k, 4) of every phi, then every psi."""
    return torch.from_numpy(np.concatenate(peptide.phi_psi_indices()))


def ramachandran_torsions(peptide: Peptide) -> Tensor:
    """Quadruples (r, 2, 4) of phi and psi of every residue that has both.

    A zwitterionic dipeptide has no such residue; there psi of the first and phi of the second, which flank its one
    peptide bond, are taken together, as is the custom.
    """
    phi, psi = peptide.phi_psi_indices()
    by_alpha_carbon = {int(quadruple[1]): quadruple for quadruple in psi}
    pairs = [(first, by_alpha_carbon[int(first[2])]) for first in phi if int(first[2]) in by_alpha_carbon]
    if not pairs and len(phi) and len(psi):
        pairs = [(phi[0], psi[0])]
    return torch.from_numpy(np.array(pairs, dtype=np.int64).reshape(-1, 2, 4))


def heavy_torsions(elements: Sequence[str], bonds: Sequence[tuple[int, int]]) -> Tensor:
    """One quadruple (t, 4) of heavy atoms about every bond that has heavy neighbours on both sides: phi, psi, omega
    and the side chains' chi, and bonds of rings.

    >>> heavy_torsions(["C", "C", "C", "O", "H"], [(0, 1), (1, 2), (2, 3), (0, 4)]).tolist()
    [[0, 1, 2, 3]]
    """
    neighbours: dict[int, list[int]] = {atom: [] for atom, element in enumerate(elements) if element != "H"}
    for i, j in bonds:
        if i in neighbours and j in neighbours:
            neighbours[i].append(j)
            neighbours[j].append(i)
    quadruples = []
    for i, j in sorted(bonds):
        if i in neighbours and j in neighbours:
            before = [atom for atom in sorted(neighbours[i]) if atom != j]
            after = [atom for atom in sorted(neighbours[j]) if atom != i]
            if before and after:
                quadruples.append([before[0], i, j, after[0]])
    return torch.tensor(quadruples, dtype=torch.int64).reshape(-1, 4)
