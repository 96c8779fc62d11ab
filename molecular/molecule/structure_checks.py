"""Does a structure fit its topology: bonds as long as bonds are, and residues of the hand that their names say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import openmm
from numpy.typing import ArrayLike, NDArray
from openmm import unit
from rdkit import Chem

from molecular.molecule.sequences import LETTERS
from molecular.molecule.topology import ALLO_NAMES, D_NAMES, RESIDUES, Topology

# Of the sum of the covalent radii. Start structures may be strained, but no bond is that far off.
SHORTEST_BOND, LONGEST_BOND = 0.5, 1.7
SOFTEST_BOND = 5e4  # kJ/mol/nm^2
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
    table = Chem.GetPeriodicTable()
    try:
        radii = [table.GetRcovalent(element) / 10.0 for element in topology.elements]  # Angstrom
    except RuntimeError as error:
        raise ValueError(f"an element among {', '.join(sorted(set(topology.elements)))} is none.") from error
    usual = [(i, j, radii[i] + radii[j]) for i, j in topology.bonds] + _stiff_bonds(system)
    if not usual:
        return None
    first, second, lengths = (np.array(column) for column in zip(*usual, strict=True))
    x = np.asarray(positions, dtype=np.float64)
    found = np.linalg.norm(x[first] - x[second], axis=-1)
    with np.errstate(divide="ignore"):
        ratios = np.log(found / lengths)
    worst = int(np.abs(ratios).argmax())
    if np.log(SHORTEST_BOND) < ratios[worst] < np.log(LONGEST_BOND):
        return None
    return (
        f"{topology.label(first[worst])} and {topology.label(second[worst])} are bonded but {found[worst]:.3g} nm apart"
    )


def _stiff_bonds(system: openmm.System | None) -> list[tuple[int, int, float]]:
    """Atoms and length, nm, of each bond as stiff as chemical ones; softer ones may be restraints."""
    found = []
    for force in system.getForces() if system is not None else ():
        if isinstance(force, openmm.HarmonicBondForce):
            for k in range(force.getNumBonds()):
                i, j, length, stiffness = force.getBondParameters(k)
                length, stiffness = (one.value_in_unit_system(unit.md_unit_system) for one in (length, stiffness))
                if stiffness >= SOFTEST_BOND and length > 0.0:
                    found.append((i, j, length))
    return found


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


def _volume(atoms: dict[str, int], centre: str, arms: tuple[str, ...], positions: NDArray[np.float64]) -> float:
    """That of the unit vectors from a centre to three of its neighbours; zero where one of them is missing."""
    if not {centre, *arms} <= atoms.keys():
        return 0.0
    vectors = positions[[atoms[name] for name in arms]] - positions[atoms[centre]]
    return float(np.linalg.det(vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)))
