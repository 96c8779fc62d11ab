"""Which atom of another topology is which of ours: by names, otherwise by elements and bonds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from molecular.molecule.geometry import covalent_radius, signed_volumes
from molecular.molecule.topology import Topology, refined

MOST_TRIALS = 10_000
BONDED_WITHIN = 1.25
"""In sums of two covalent radii; atoms of 1,3 neighbours are at 1.6 or more."""


def match_names(molecule: Topology, other: Topology) -> list[int] | None:
    """The atoms of `other` in the order of `molecule`, if every residue has the same names and elements.

    Names of residues may differ, and bonds are not looked at.

    >>> from molecular.molecule.topology import Residue
    >>> water = Topology(("O", "H1", "H2"), ("O", "H", "H"), (Residue("HOH"),), (0, 0, 0), ((0, 1), (0, 2)))
    >>> match_names(water, water.select([2, 1, 0]))
    [2, 1, 0]
    """
    place = {key: atom for atom, key in enumerate(_keys(other))}
    wanted = _keys(molecule)
    if len(place) != other.num_atoms or set(place) != set(wanted):
        return None
    return [place[key] for key in wanted]


def match_bonds(
    molecule: Topology,
    other: Topology,
    structures: tuple[NDArray[np.floating], NDArray[np.floating]] | None = None,
) -> list[int] | None:
    """The atoms of `other` in the order of `molecule`, by an isomorphism of their bonds and elements; None without one.

    Colours are refined until neighbours tell no more atoms apart; then one pair of atoms of the same colour is taken to
    be the same, those with equal names first, and so on (McKay, Congressus Numerantium 30, 1981). Names thus
    choose between atoms that the bonds cannot tell apart.

    Args:
        molecule: whose order is wanted.
        other: the same molecule in another order.
        structures: (n, 3) nm of each, whose handedness is kept where an isomorphism can: the two stereocentres
            of meso-tartaric acid have the same bonds.
    """
    if Counter(molecule.elements) != Counter(other.elements) or len(molecule.bonds) != len(other.bonds):
        return None
    size = molecule.num_atoms
    neighbours = [*molecule.neighbours, *(tuple(size + atom for atom in row) for row in other.neighbours)]
    names = [*_keys(molecule), *_keys(other)]
    # Individualised colours, still to be refined: a stack, so that a wrong choice is taken back.
    colours = refined([*molecule.elements, *other.elements], neighbours)
    stack: list[Sequence[Any]] = [colours]
    if structures is not None:
        # On top; without a match that keeps the handedness, one that does not is still to be found.
        stack.append(_with_hands(colours, neighbours, np.concatenate(structures)))
    for _ in range(MOST_TRIALS):
        if not stack:
            return None
        colours = refined(stack.pop(), neighbours)
        first, second = _classes(colours[:size], 0), _classes(colours[size:], size)
        if {colour: len(atoms) for colour, atoms in first.items()} != {
            colour: len(atoms) for colour, atoms in second.items()
        }:
            continue
        open_classes = [colour for colour, atoms in first.items() if len(atoms) > 1]
        if not open_classes:
            found = [second[colour][0] - size for colour in colours[:size]]
            bonds = {(min(found[i], found[j]), max(found[i], found[j])) for i, j in molecule.bonds}
            if bonds == set(other.bonds):
                return found
            continue
        # The atom whose best partner is the most alike by name, and its partners, the best last.
        _, atom = min(
            (_unlike(one, two, names, first[colour], second[colour]), one)
            for colour in open_classes
            for one, two in product(first[colour], second[colour])
        )
        own, partners = first[colours[atom]], second[colours[atom]]
        for partner in sorted(partners, key=lambda two: _unlike(atom, two, names, own, partners), reverse=True):
            trial: list[Any] = list(colours)
            trial[atom] = trial[partner] = len(trial)
            stack.append(trial)
    return None


def _keys(topology: Topology) -> list[tuple[int, str, str]]:
    return list(zip(topology.residue_indices, topology.atom_names, topology.elements, strict=True))


def _with_hands(
    colours: Sequence[int], neighbours: Sequence[Sequence[int]], positions: NDArray[np.floating]
) -> list[tuple[int, bool]]:
    """Colours that tell the two hands of atoms apart whose four neighbours all differ."""
    found = []
    for colour, near in zip(colours, neighbours, strict=True):
        corners = sorted(near, key=colours.__getitem__)
        told = len({colours[atom] for atom in near}) == len(near) == 4
        found.append((colour, told and bool(signed_volumes(positions, corners) > 0.0)))
    return found


def _classes(colours: Sequence[int], offset: int) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for atom, colour in enumerate(colours, start=offset):
        found.setdefault(colour, []).append(atom)
    return found


def _unlike(
    one: int, two: int, names: Sequence[tuple[int, str, str]], own: Sequence[int], partners: Sequence[int]
) -> tuple[bool, bool, int]:
    """How little two atoms of one colour look alike: residue, name, and place among the names of their classes."""
    rank = sum(names[atom] < names[one] for atom in own) - sum(names[atom] < names[two] for atom in partners)
    return names[one][0] != names[two][0], names[one][1] != names[two][1], abs(rank)


def perceive_bonds(elements: Sequence[str], distances: NDArray[np.floating], pairs: NDArray[np.integer]) -> Any:
    """Pairs of atoms that are close enough for a covalent bond.

    Args:
        elements: of each atom; one that is no element has no bonds.
        distances: (k,) nm.
        pairs: (k, 2) atoms, each pair once, the lower index first.

    Returns:
        The bonds, sorted. A hydrogen has one, to the nearest atom that is not a hydrogen, unless there is none.
    """
    radii: dict[str, float] = {}
    for symbol in set(elements):
        with suppress(ValueError):
            radii[symbol] = covalent_radius(symbol)
    radius = np.array([radii.get(symbol, -1.0) for symbol in elements])
    near = distances < BONDED_WITHIN * (radius[pairs].sum(axis=1))
    near &= (radius[pairs] > 0.0).all(axis=1)
    bonds, nearest = [], dict[int, tuple[float, int]]()
    for (i, j), distance in zip(pairs[near].tolist(), distances[near].tolist(), strict=True):
        hydrogens = [atom for atom in (i, j) if elements[atom] == "H"]
        if not hydrogens:
            bonds.append((i, j))
        elif len(hydrogens) == 1:
            heavy = j if hydrogens[0] == i else i
            nearest[hydrogens[0]] = min(nearest.get(hydrogens[0], (np.inf, -1)), (distance, heavy))
    bonds += [(min(atom, heavy), max(atom, heavy)) for atom, (_, heavy) in nearest.items()]
    return tuple(sorted(bonds))
