"""Does a structure fit its topology: bonds as long as bonds are, and residues of the hand that their names say."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import numpy as np
import openmm
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import cKDTree

from molecular.molecule.force_fields import harmonic_bonds
from molecular.molecule.geometry import covalent_radius, signed_volumes
from molecular.molecule.matching import perceive_bonds
from molecular.molecule.sequences import LETTERS
from molecular.molecule.topology import ALLO_NAMES, D_NAMES, RESIDUES, Topology, beyond_bond

# Of a bond's usual length. Start structures may be strained, but no bond is that far off.
SHORTEST_RATIO, LONGEST_RATIO = 0.5, 1.7
SOFTEST_BOND = 5e4  # kJ/mol/nm^2; softer ones may be restraints
FARTHEST_BOND = 0.26  # nm, of two sulphurs
# The volume of three unit arms is .7 at a tetrahedral centre; below this it is too flat to have a hand.
FLATTEST = 0.2

# Three arms of the second centre, CB, of positive volume in the L-residue.
_SECOND_ARMS = {"I": ("CA", "CG1", "CG2"), "T": ("CA", "OG1", "CG2")}


def odd_bond(topology: Topology, positions: ArrayLike, system: openmm.System | None = None) -> str | None:
    """The bond that is furthest from its length, in words for a reader; None if all are near theirs.

    Args:
        topology: whose bonds have the lengths that are usual between their elements.
        positions: (n, 3) nm.
        system: whose stiff harmonic bonds have the lengths that it says, which tells atoms in another order.

    Raises:
        ValueError: an element that is none.
    """
    radius = {element: covalent_radius(element) for element in sorted(set(topology.elements))}
    radii = [radius[element] for element in topology.elements]
    usual = [(i, j, radii[i] + radii[j]) for i, j in topology.bonds]
    stiff = {} if system is None else harmonic_bonds(system)
    usual += [(*pair, length) for pair, (k, length) in stiff.items() if k >= SOFTEST_BOND and length > 0.0]
    if not usual:
        return None
    first, second, lengths = (np.array(column) for column in zip(*usual, strict=True))
    x = np.asarray(positions, dtype=np.float64)
    found = np.linalg.norm(x[first] - x[second], axis=-1)
    with np.errstate(divide="ignore"):
        ratios = np.log(found / lengths)
    worst = int(np.abs(ratios).argmax())
    if np.log(SHORTEST_RATIO) < ratios[worst] < np.log(LONGEST_RATIO):
        return None
    return (
        f"{topology.label(first[worst])} and {topology.label(second[worst])} are bonded but {found[worst]:.3g} nm apart"
    )


def unnamed_bond(topology: Topology, positions: NDArray[np.float64]) -> str | None:
    """Two heavy atoms of different residues, as near as bonded ones but not bonded, in words for a reader; or None.

    Files often leave such bonds out, of cyclic and stapled peptides; atoms would be added in their stead.
    """
    heavy = np.array([atom for atom, element in enumerate(topology.elements) if element != "H"], dtype=np.int64)
    pairs = heavy[cKDTree(positions[heavy]).query_pairs(FARTHEST_BOND, output_type="ndarray")]
    pairs = pairs[np.lexsort(pairs.T[::-1])]
    distances = np.linalg.norm(positions[pairs[:, 0]] - positions[pairs[:, 1]], axis=-1)
    near = dict(zip(map(tuple, pairs.tolist()), distances.tolist(), strict=True))
    for i, j in sorted(set(perceive_bonds(topology.elements, distances, pairs)) - set(topology.bonds)):
        if topology.residue_indices[i] != topology.residue_indices[j]:
            return f"{topology.label(i)} and {topology.label(j)} are {near[i, j]:.3g} nm apart and not bonded"
    return None


def named_by_hand(topology: Topology, positions: NDArray[np.float64]) -> Topology:
    """The topology in which amino acids have the names of their own hand, L, D or allo, told by a structure (n, 3), nm.

    Force fields and most programs call a residue of either hand by one name; here, names tell stereoisomers apart.
    """
    residues = list(topology.residues)
    for index, (residue, atoms) in enumerate(zip(residues, topology.atoms_by_name, strict=True)):
        known, volume = RESIDUES.get(residue.name), _volume(atoms, "CA", ("N", "C", "CB"), positions)
        if known is None or abs(volume) < FLATTEST:
            continue
        letter, is_d, right = known.letter, volume < 0, residue.name
        if known.is_d != is_d:
            right = D_NAMES[letter] if is_d else LETTERS[letter].upper()
        second = _volume(atoms, "CB", _SECOND_ARMS[letter], positions) if letter in ALLO_NAMES else 0.0
        if abs(second) >= FLATTEST and (second < 0) != is_d:
            right = ALLO_NAMES[letter][is_d]
        if right != residue.name:
            residues[index] = replace(residue, name=right)
    return replace(topology, residues=tuple(residues))


def with_right_hands(
    topology: Topology, positions: NDArray[np.float64], movable: Collection[int]
) -> NDArray[np.float64]:
    """Positions (n, 3) in which movable atoms give no amino acid another hand than its name says.

    Where they do, they become their mirror images in a plane of three atoms that stay, where there are these.
    """
    positions = positions.copy()
    for residue, atoms in zip(topology.residues, topology.atoms_by_name, strict=True):
        known = RESIDUES.get(residue.name)
        if known is None:
            continue
        is_d = known.is_d
        for centre, arms in [("CA", ("N", "C", "CB")), ("CB", _SECOND_ARMS.get(known.letter, ()))]:
            volume = _volume(atoms, centre, arms, positions) if arms else 0.0
            if not volume:
                continue
            wrong, is_d = (volume < 0.0) != is_d, volume < 0.0
            first, second, last = sorted((atoms[name] for name in arms), key=movable.__contains__)
            middle = atoms[centre]
            if wrong and last in movable:
                beyond = beyond_bond(topology.neighbours, middle, last) - {middle}
                moved, plane = [atom for atom in atoms.values() if atom in beyond and atom in movable], middle
            elif wrong and middle in movable:
                moved, plane = [middle], last
            else:
                continue
            normal = np.cross(positions[first] - positions[plane], positions[second] - positions[plane])
            normal /= np.linalg.norm(normal)
            positions[moved] -= 2.0 * np.outer((positions[moved] - positions[plane]) @ normal, normal)
            is_d = not is_d
    return positions


def _volume(atoms: dict[str, int], centre: str, arms: tuple[str, ...], positions: NDArray[np.float64]) -> float:
    """That of the unit vectors from a centre to three of its neighbours; zero where one of them is missing."""
    if not {centre, *arms} <= atoms.keys():
        return 0.0
    corners = [atoms[name] for name in (centre, *arms)]
    lengths = np.linalg.norm(positions[corners[1:]] - positions[corners[0]], axis=-1)
    return float(signed_volumes(positions, corners) / lengths.prod())
