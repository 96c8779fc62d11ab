"""Symmetries of a molecule's energy: CH3 and NH3+ turn by a third, equal branches such as those of NH2 by a half."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor

from molecular.molecule.topology import Topology


def methyl_rotations(topology: Topology) -> list[Tensor]:
    """The groups of exactly three hydrogens on one heavy atom, each with its rotations.

    Returns one (3, 3) int64 tensor a group: row k holds the atoms whose positions go to the atoms of row 0 in
    the k-th cyclic permutation. A cycle keeps chirality; exchanging just two hydrogens would not.

    >>> from molecular.molecule.topology import Residue
    >>> bonds = ((0, 1), (0, 2), (0, 3), (0, 4))
    >>> methyl_rotations(Topology(("C", "H1", "H2", "H3", "F"), tuple("CHHHF"), (Residue("FME"),), (0,) * 5, bonds))
    [tensor([[1, 2, 3],
            [2, 3, 1],
            [3, 1, 2]])]
    """
    cycle = torch.tensor([[0, 1, 2], [1, 2, 0], [2, 0, 1]])
    hydrogens = (
        [atom for atom in near if topology.elements[atom] == "H"] if element != "H" else []
        for element, near in zip(topology.elements, topology.neighbours, strict=True)
    )
    return [torch.tensor(group)[cycle] for group in hydrogens if len(group) == 3]


def half_turns(topology: Topology) -> list[Tensor]:
    """The equal branches of an atom that half a turn about its third bond exchanges, as in phenyl, carboxylate and NH2.

    Returns one (2, atoms) int64 tensor a turn, the second row as of `methyl_rotations`; larger ones first, since turns
    of a branch's own may follow. Some of them a simulation hardly ever makes; the Boltzmann density has all of them.
    Left out are branches with an atom of four neighbours, whose handedness an exchange of names may change.

    >>> from molecular.molecule.topology import Residue
    >>> formate = Topology(("C", "H", "O1", "O2"), tuple("CHOO"), (Residue("FMT"),), (0,) * 4, ((0, 1), (0, 2), (0, 3)))
    >>> half_turns(formate)
    [tensor([[2, 3],
            [3, 2]])]
    """
    turns: dict[tuple[int, ...], Tensor] = {}
    for centre, near in enumerate(topology.neighbours):
        for one, two in combinations(near if len(near) == 3 else (), 2):
            places = exchanged_branches(topology, centre, one, two)
            if places is None or any(len(topology.neighbours[atom]) == 4 for atom in places):
                continue
            places |= {second: first for first, second in places.items()}
            # What is on the axis stays; in a ring, the atom across finds the same turn once more.
            atoms = sorted(atom for atom, other in places.items() if atom != other)
            others = [places[atom] for atom in atoms]
            turns[*atoms, *others] = torch.tensor([atoms, others])
    return sorted(turns.values(), key=lambda turn: -turn.shape[1])


def exchanged_branches(topology: Topology, centre: int, one: int, two: int) -> dict[int, int] | None:
    """The atoms of the branch of `centre` at `one`, each with that of the branch at `two` in the same place.

    None where elements and bonds tell the branches apart. In a ring that both share, each branch is the whole ring.
    """
    if topology.symmetry_classes[one] != topology.symmetry_classes[two]:
        return None
    place: dict[int, int] = {one: two}
    queue = [(one, two)]
    while queue:
        first, second = queue.pop(0)
        children = [
            sorted(
                (atom for atom in topology.neighbours[parent] if atom != centre and atom not in seen),
                key=lambda atom: (topology.symmetry_classes[atom], atom),
            )
            for parent, seen in ((first, place), (second, set(place.values())))
        ]
        if len(children[0]) != len(children[1]):
            return None
        for pair in zip(*children, strict=True):
            if pair[0] not in place:
                place[pair[0]] = pair[1]
                queue.append(pair)
    theirs = set(place.values())
    back = {second: first for first, second in place.items()}
    if len(theirs) != len(place) or centre in place or centre in theirs:
        return None
    # The search through rings may have paired them wrongly.
    if any(back.get(atom, other) != other for atom, other in place.items()):
        return None
    mirrored = place | back
    bonds = set(topology.bonds)
    for i, j in topology.bonds:
        i, j = mirrored.get(i, i), mirrored.get(j, j)
        if (min(i, j), max(i, j)) not in bonds:
            return None
    return place


def random_symmetry(x: Tensor, groups: Sequence[Tensor], generator: torch.Generator | None = None) -> Tensor:
    """Turn every group of every sample of x (B, n, 3) at random, one after the other, for data augmentation.

    Args:
        x: (B, n, 3).
        groups: as of `methyl_rotations` and `half_turns`; all rows of one are equally likely.
        generator: on the CPU, so that a seed means the same permutations on every device.
    """
    if not groups:
        return x
    index = torch.arange(x.shape[1]).repeat(len(x), 1)
    for rows in groups:
        choice = torch.randint(len(rows), (len(x),), generator=generator)
        index[:, rows[0]] = index.gather(1, rows[choice])
    return x.gather(1, index.to(x.device)[..., None].expand_as(x))
