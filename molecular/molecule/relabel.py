"""Equivalent atoms named as in a molecule's own structure: CH2, CH3, NH3, isopropyl, NH2 of amides and the like."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from molecular.molecule.geometry import signed_volumes
from molecular.molecule.symmetry import exchanged_branches
from molecular.molecule.topology import Topology


@dataclass(frozen=True)
class Exchange:
    """Two equivalent branches on one atom, which change places where geometry says that they carry each other's names.

    first, second: their atoms, those that correspond in the same places. corners: four atoms. With `handed` the sign of
    the volume that they span is that of the molecule's own structure, otherwise the side (cis or trans) of
    their torsion is.
    """

    first: tuple[int, ...]
    second: tuple[int, ...]
    corners: tuple[int, int, int, int]
    handed: bool

    def signs(self, positions: NDArray[np.floating], reference: NDArray[np.floating]) -> NDArray[np.floating]:
        """(N,) positive where the names of positions (N, n, 3) agree with those of the reference (n, 3)."""
        if self.handed:
            return signed_volumes(positions, self.corners) * signed_volumes(reference, self.corners)
        return (_torsion_vectors(positions, self.corners) * _torsion_vectors(reference, self.corners)).sum(-1)


def find_exchanges(topology: Topology) -> list[Exchange]:
    """Every pair of branches whose names geometry settles, larger branches first.

    An atom with four neighbours of which two or more are equivalent has a handedness, as CH2, CH3, NH3+, isopropyl and
    phosphate have; two equivalent neighbours of a planar atom are told apart by what is cis to them across a bond that
    does not turn freely, as in amides and guanidinium. What turns or inverts in a simulation, carboxylates, rings and
    amines, is left as it is.
    """
    found = []
    for centre, near in enumerate(topology.neighbours):
        alike = [
            (pair, (tuple(places), tuple(places.values())))
            for pair in combinations(near, 2)
            if (places := exchanged_branches(topology, centre, *pair)) is not None
            and not places.keys() & set(places.values())  # two of one ring
        ]
        if not alike:
            continue
        # Of several pairs (CH3, or two and two) any one exchange mends the handedness: small branches, last in order.
        (one, two), branches = min(alike, key=lambda item: (len(item[1][0]), (-item[0][0], -item[0][1])))
        others = [atom for atom in near if atom not in (one, two)]
        if len(near) == 4:
            found.append(Exchange(branches[0], branches[1], (one, two, others[0], others[1]), handed=True))
        elif len(near) == 3 and (far := _across(topology, centre, others[0])) is not None:
            found.append(Exchange(branches[0], branches[1], (one, centre, others[0], far), handed=False))
    return sorted(found, key=lambda exchange: -len(exchange.first))


def relabel(
    positions: NDArray[np.floating], reference: NDArray[np.floating], exchanges: Sequence[Exchange]
) -> tuple[NDArray[np.floating], NDArray[np.bool_]]:
    """Frames (N, n, 3) with equivalent atoms named as in the reference (n, 3), and which were exchanged (N, exchanges).

    Frames change by a permutation of atoms that the bonds cannot tell apart.
    """
    positions = positions.copy()
    exchanged = np.zeros((len(positions), len(exchanges)), dtype=bool)
    for column, exchange in enumerate(exchanges):
        wrong = exchange.signs(positions, reference) < 0.0
        exchanged[:, column] = wrong
        positions[wrong] = swap(positions[wrong], exchange)
    return positions, exchanged


def swap(positions: NDArray[np.floating], exchange: Exchange) -> NDArray[np.floating]:
    """Frames (N, n, 3) whose two branches have changed places."""
    positions = positions.copy()
    there, back = [*exchange.first, *exchange.second], [*exchange.second, *exchange.first]
    positions[:, there] = positions[:, back]
    return positions


def _torsion_vectors(positions: NDArray[np.floating], corners: Sequence[int]) -> NDArray[np.floating]:
    """(..., 2): cosine and sine of a torsion, times a positive length."""
    a, b, c, d = (positions[..., atom, :] for atom in corners)
    middle = (c - b) / np.linalg.norm(c - b, axis=-1, keepdims=True)
    first, second = np.cross(b - a, middle), np.cross(middle, d - c)
    return np.stack([(first * second).sum(-1), (np.cross(first, second) * middle).sum(-1)], axis=-1)


def _across(topology: Topology, centre: int, atom: int) -> int | None:
    """The neighbour beyond the bond centre-atom that its two sides are told by; None if the bond turns freely."""
    beyond = [other for other in topology.neighbours[atom] if other != centre]
    if not 1 <= len(beyond) <= 2:
        return None
    classes = [topology.symmetry_classes[other] for other in beyond]
    return min(beyond, key=lambda other: (classes.count(topology.symmetry_classes[other]), other))
