"""Bonds in the positions of a file, across its periodic box."""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from molecular.data.trajectories.constrained_bonds import lengths
from molecular.data.trajectories.files import Part
from molecular.molecule.molecule import Molecule
from molecular.molecule.topology import Topology

STRETCHED = (0.6, 1.5)
"""Bonds beyond these multiples of the structure's lengths are torn, or of other atoms."""
NARROWEST_BOX = 0.5
"""nm: a narrower box is a program's way to say that there is none."""


def may_be_bonds(found: NDArray[np.floating], molecule: Molecule) -> NDArray[np.bool_]:
    """Whether lengths (N, b) are about those of the molecule's bonds in its structure, (N,): all of them."""
    ratio = found / lengths(molecule.positions[None], molecule.topology.bonds)
    return np.asarray(((ratio > STRETCHED[0]) & (ratio < STRETCHED[1])).all(axis=1))


def distances(part: Part, pairs: NDArray[np.integer]) -> NDArray[np.float64]:
    """(N, k) distances of pairs of atoms (k, 2), to the nearest image; right for bonds, and too long for no other."""
    vectors = part.positions[:, pairs[:, 1]] - part.positions[:, pairs[:, 0]]
    box, inverse = _boxes(part)
    return np.linalg.norm(vectors - np.round(vectors @ inverse) @ box, axis=-1)


def near_pairs(sample: Part, candidates: list[int], cutoff: float = 0.35) -> NDArray[np.int64]:
    """Pairs (k, 2) of candidates, by their places, that are near each other in the first frame, across its box too."""
    points = sample.positions[0, candidates]
    first = Part(sample.positions[:1], sample.time[:1], None if sample.box is None else sample.box[:1])
    (box,), (inverse,) = _boxes(first)
    owner = np.arange(len(points))
    if inverse.any():
        fraction = points @ inverse
        fraction -= np.floor(fraction)
        margin = cutoff * np.linalg.norm(inverse, axis=0)
        # Images beyond each face in turn; an axis's images are imaged along the next.
        for axis in range(3):
            below = fraction[:, axis] < margin[axis]
            above = fraction[:, axis] > 1.0 - margin[axis]
            step = np.eye(3)[axis]
            fraction = np.concatenate([fraction, fraction[below] + step, fraction[above] - step])
            owner = np.concatenate([owner, owner[below], owner[above]])
        points = fraction @ box
    pairs = owner[cKDTree(points).query_pairs(cutoff, output_type="ndarray")]
    pairs = np.unique(np.sort(pairs, axis=1), axis=0)
    return pairs[pairs[:, 0] < pairs[:, 1]].reshape(-1, 2)


def made_whole(part: Part, topology: Topology) -> tuple[NDArray[np.floating], int]:
    """Positions whose bonds are not torn by the box, and how many frames had been torn."""
    box, inverse = _boxes(part)
    positions, torn = part.positions.copy(), np.zeros(len(part.positions), dtype=bool)
    seen = set[int]()
    for first in range(topology.num_atoms):
        queue = deque([] if first in seen else [first])
        while queue:
            atom = queue.popleft()
            seen.add(atom)
            for other in topology.neighbours[atom]:
                if other not in seen:
                    vectors = (positions[:, other] - positions[:, atom])[:, None]
                    images = np.round(vectors @ inverse)
                    positions[:, other] -= (images @ box)[:, 0]
                    torn |= images.any(axis=(1, 2))
                    seen.add(other)
                    queue.append(other)
    return positions, int(torn.sum())


def _boxes(part: Part) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Boxes (N, 3, 3) and their inverses, zeros where a frame has none.

    Rounding fractional coordinates finds the shortest image of every vector below half the box's width, that is, of
    every bond, in triclinic boxes too.
    """
    count = len(part.positions)
    box = np.zeros((count, 3, 3)) if part.box is None else part.box
    sound: NDArray[np.bool_] = np.asarray(np.isfinite(box).all(axis=(1, 2)))
    volume = np.where(sound, np.abs(np.linalg.det(np.where(sound[:, None, None], box, 0.0))), 0.0)
    sound &= volume > NARROWEST_BOX**3
    box = np.where(sound[:, None, None], box, np.eye(3))
    inverse = np.linalg.inv(box)
    # The columns of the inverse are normal to the faces, and the longer the closer two faces are.
    sound &= 1.0 / np.linalg.norm(inverse, axis=1).max(axis=1) >= NARROWEST_BOX
    return np.where(sound[:, None, None], box, 0.0), np.where(sound[:, None, None], inverse, 0.0)
