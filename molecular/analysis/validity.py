"""Is a conformation still the molecule: its bonds, and the handedness of its centres."""

from __future__ import annotations

import torch
from torch import Tensor

from molecular.molecule.geometry import covalent_radius, signed_volumes
from molecular.molecule.molecule import Molecule
from molecular.molecule.topology import Topology

# In sums of two covalent radii: bonded atoms are nearer than the second, and no two atoms nearer than the first.
CLASHING_WITHIN, BONDED_WITHIN = 0.7, 1.3


def right_chirality(positions: Tensor, molecule: Molecule) -> Tensor:
    """Whether every stereocentre has the hand that it has in the molecule's structure, (N,) booleans of (N, n, 3)."""
    centres = torch.tensor(molecule.topology.stereocentres, dtype=torch.int64).reshape(-1, 4)
    expected = signed_volumes(torch.from_numpy(molecule.positions)[None], centres.T).sign()
    return (signed_volumes(positions.double(), centres.T).sign() == expected).all(dim=1)


def intact_bonds(positions: Tensor, topology: Topology, batch_size: int = 1024) -> Tensor:
    """Whether the bonds read off the distances are the molecule's own, ``(N,)`` booleans.

    Two atoms count as bonded where they are nearer than 1.3 times the sum of their covalent radii; a conformation
    with any two atoms nearer than 0.7 times that sum is not valid either.

    Args:
        positions: (N, n, 3), nm.
        topology: of the molecule.
        batch_size: conformations looked at together.
    """
    radii = torch.tensor([covalent_radius(element) for element in topology.elements], dtype=positions.dtype)
    first, second = torch.triu_indices(topology.num_atoms, topology.num_atoms, offset=1)
    sums = radii[first] + radii[second]
    bonded = torch.zeros(topology.num_atoms, topology.num_atoms, dtype=torch.bool)
    for i, j in topology.bonds:
        bonded[i, j] = bonded[j, i] = True
    expected = bonded[first, second]
    parts = []
    for part in positions.split(batch_size):
        ratio = torch.linalg.vector_norm(part[:, first] - part[:, second], dim=-1) / sums
        parts.append((((ratio < BONDED_WITHIN) == expected) & (ratio > CLASHING_WITHIN)).all(dim=1))
    return torch.cat(parts)
