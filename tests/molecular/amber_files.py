"""A writer of Amber prmtop and inpcrd files, so that tests have some: the format is described at ambermd.org."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import openmm
from openmm import unit

from molecular import Molecule

KILOCALORIE, ANGSTROM = 4.184, 0.1  # kJ, nm
CHARGE = 18.2223  # of a proton, so that charges multiply to kcal/mol Å
SCEE, SCNB = 1.2, 2.0
RADII, SCREEN = {"H": 1.3, "C": 1.7, "N": 1.55, "O": 1.5}, {"H": 0.85, "C": 0.72, "N": 0.79, "O": 0.85}
INTEGER, REAL, WORD = "10I8", "5E16.8", "20a4"


def write_amber(molecule: Molecule, folder: Path) -> tuple[Path, Path]:
    """NAME.prmtop and NAME.inpcrd of a molecule whose System is of harmonic, periodic and Lennard-Jones terms."""
    forces = {type(force): force for force in molecule.system.getForces()}
    flags: dict[str, tuple[str, list[Any]]] = {}
    topology, count = molecule.topology, molecule.num_atoms
    nonbonded = forces[openmm.NonbondedForce]
    particles = [[unwrap(value) for value in nonbonded.getParticleParameters(k)] for k in range(count)]
    kinds = sorted({(sigma, epsilon) for _, sigma, epsilon in particles})
    kind_of = [kinds.index((sigma, epsilon)) for _, sigma, epsilon in particles]

    flags["ATOM_NAME"] = WORD, list(topology.atom_names)
    flags["CHARGE"] = REAL, [charge * CHARGE for charge, _, _ in particles]
    flags["ATOMIC_NUMBER"] = INTEGER, [{"H": 1, "C": 6, "N": 7, "O": 8}[element] for element in topology.elements]
    flags["MASS"] = REAL, [unwrap(molecule.system.getParticleMass(k)) for k in range(count)]
    flags["ATOM_TYPE_INDEX"] = INTEGER, [kind + 1 for kind in kind_of]
    excluded, pairs_14 = exclusions(nonbonded)
    flags["NUMBER_EXCLUDED_ATOMS"] = INTEGER, [len(others) for others in excluded]
    flags["EXCLUDED_ATOMS_LIST"] = INTEGER, [other for others in excluded for other in others]
    flags["RESIDUE_LABEL"] = WORD, [residue.name for residue in topology.residues]
    flags["RESIDUE_POINTER"] = INTEGER, [min(atoms.values()) + 1 for atoms in topology.atoms_by_name]
    lennard_jones(kinds, flags)

    is_hydrogen = [element == "H" for element in topology.elements]
    bonds, angles = forces[openmm.HarmonicBondForce], forces[openmm.HarmonicAngleForce]
    # Amber's energies are k (x - x0)^2, OpenMM's half of that.
    harmonic_bonds = [bonds.getBondParameters(k) for k in range(bonds.getNumBonds())]
    add_terms(
        "BOND",
        [
            ((i, j), (unwrap(k) / 2 / KILOCALORIE * ANGSTROM**2, unwrap(length) / ANGSTROM))
            for i, j, length, k in harmonic_bonds
        ],
        ("FORCE_CONSTANT", "EQUIL_VALUE"),
        is_hydrogen,
        flags,
    )
    harmonic_angles = [angles.getAngleParameters(k) for k in range(angles.getNumAngles())]
    add_terms(
        "ANGLE",
        [((i, j, k), (unwrap(c) / 2 / KILOCALORIE, unwrap(angle))) for i, j, k, angle, c in harmonic_angles],
        ("FORCE_CONSTANT", "EQUIL_VALUE"),
        is_hydrogen,
        flags,
    )
    add_terms(
        "DIHEDRAL",
        dihedrals(molecule, forces[openmm.PeriodicTorsionForce], pairs_14),
        ("FORCE_CONSTANT", "PERIODICITY", "PHASE"),
        is_hydrogen,
        flags,
    )
    number_of_dihedrals = len(flags["DIHEDRAL_FORCE_CONSTANT"][1])
    flags["SCEE_SCALE_FACTOR"] = REAL, [SCEE] * number_of_dihedrals
    flags["SCNB_SCALE_FACTOR"] = REAL, [SCNB] * number_of_dihedrals
    for name in ("SOLTY", "HBOND_ACOEF", "HBOND_BCOEF", "HBCUT"):
        flags[name] = REAL, []
    flags["AMBER_ATOM_TYPE"] = WORD, [f"t{kind}" for kind in kind_of]
    flags["TREE_CHAIN_CLASSIFICATION"] = WORD, ["M"] * count
    flags["JOIN_ARRAY"] = flags["IROTAT"] = INTEGER, [0] * count
    flags["RADIUS_SET"] = "1a80", ["of the elements"]
    flags["RADII"] = REAL, [RADII[element] for element in topology.elements]
    flags["SCREEN"] = REAL, [SCREEN[element] for element in topology.elements]
    pointers = [0] * 31
    pointers[:2] = count, len(kinds)
    for place, name, width in ((2, "BONDS", 3), (4, "ANGLES", 4), (6, "DIHEDRALS", 5)):
        pointers[place] = len(flags[f"{name}_INC_HYDROGEN"][1]) // width
        pointers[place + 1] = len(flags[f"{name}_WITHOUT_HYDROGEN"][1]) // width
    pointers[10:15] = len(flags["EXCLUDED_ATOMS_LIST"][1]), len(topology.residues), *pointers[3:8:2]
    pointers[15:18] = (len(flags[f"{name}_FORCE_CONSTANT"][1]) for name in ("BOND", "ANGLE", "DIHEDRAL"))
    pointers[28] = max(map(len, topology.atoms_by_name))
    flags = {"TITLE": (WORD, [molecule.name[:4]]), "POINTERS": (INTEGER, pointers)} | flags

    prmtop = folder / f"{molecule.name}.prmtop"
    prmtop.write_text("%VERSION  VERSION_STAMP = V0001.000\n" + "".join(section(name, *flags[name]) for name in flags))
    inpcrd = folder / f"{molecule.name}.inpcrd"
    rows = chunks([f"{x:12.7f}" for x in (molecule.positions / ANGSTROM).ravel()], 6)
    inpcrd.write_text(f"{molecule.name}\n{count:6d}\n" + "".join("".join(row) + "\n" for row in rows))
    return prmtop, inpcrd


def exclusions(nonbonded: openmm.NonbondedForce) -> tuple[list[list[int]], set[frozenset[int]]]:
    """The later atoms that each atom does not see, from 1 and 0 for none; and which of these pairs are of 1 and 4."""
    excluded: list[list[int]] = [[] for _ in range(nonbonded.getNumParticles())]
    pairs_14 = set()
    for index in range(nonbonded.getNumExceptions()):
        i, j, charge, _, epsilon = nonbonded.getExceptionParameters(index)
        excluded[min(i, j)].append(max(i, j) + 1)
        if unwrap(charge) or unwrap(epsilon):
            pairs_14.add(frozenset((i, j)))
    return [sorted(others) or [0] for others in excluded], pairs_14


def lennard_jones(kinds: list[tuple[float, float]], flags: dict[str, tuple[str, list[Any]]]) -> None:
    """A / r^12 - B / r^6 of each pair of kinds, by the Lorentz-Berthelot rule."""
    size = len(kinds)
    places = {}
    repulsion, attraction = [], []
    for a in range(size):
        for b in range(a + 1):
            places[a, b] = places[b, a] = len(repulsion) + 1
            sigma = (kinds[a][0] + kinds[b][0]) / 2 / ANGSTROM
            epsilon = np.sqrt(kinds[a][1] * kinds[b][1]) / KILOCALORIE
            repulsion.append(4 * epsilon * sigma**12)
            attraction.append(4 * epsilon * sigma**6)
    flags["NONBONDED_PARM_INDEX"] = INTEGER, [places[a, b] for a in range(size) for b in range(size)]
    flags["LENNARD_JONES_ACOEF"], flags["LENNARD_JONES_BCOEF"] = (REAL, repulsion), (REAL, attraction)


def dihedrals(
    molecule: Molecule, torsions: openmm.PeriodicTorsionForce, pairs_14: set[frozenset[int]]
) -> list[tuple[tuple[int, ...], tuple[float, ...]]]:
    """Terms; a minus before the third atom says that the ends are no pair of 1 and 4 (or were one before)."""
    topology, left, terms = molecule.topology, set(pairs_14), []
    rows = [torsions.getTorsionParameters(index) for index in range(torsions.getNumTorsions())]
    # Pairs of 1 and 4 are known by their torsions; OpenMM has left out those without a barrier.
    for j, k in topology.bonds:
        rows += [
            (i, j, k, m, 1, 0.0, 0.0)
            for i in topology.neighbours[j]
            for m in topology.neighbours[k]
            if frozenset((i, m)) in pairs_14 and len({i, j, k, m}) == 4
        ]
    for *atoms, periodicity, phase, constant in rows:
        if 0 in atoms[2:]:  # there is no -0
            atoms.reverse()
        i, j, k, m = atoms
        proper = j in topology.neighbours[i] and k in topology.neighbours[j] and m in topology.neighbours[k]
        counts = proper and frozenset((i, m)) in left
        left -= {frozenset((i, m))} if counts else set()
        signs = (1, 1, 1 if counts else -1, 1 if proper else -1)
        values = (unwrap(constant) / KILOCALORIE, float(periodicity), unwrap(phase))
        terms.append((tuple(sign * atom for sign, atom in zip(signs, atoms, strict=True)), values))
    return terms


def add_terms(
    name: str,
    terms: list[tuple[tuple[int, ...], tuple[float, ...]]],
    columns: tuple[str, ...],
    is_hydrogen: list[bool],
    flags: dict[str, tuple[str, list[Any]]],
) -> None:
    """Distinct parameters, and for each term its atoms times three and the place of its parameters."""
    kinds = sorted({values for _, values in terms})
    for column, values in zip(columns, zip(*kinds, strict=True), strict=True):
        flags[f"{name}_{column}"] = REAL, list(values)
    parts: dict[str, list[int]] = {"INC_HYDROGEN": [], "WITHOUT_HYDROGEN": []}
    for atoms, values in terms:
        part = "INC_HYDROGEN" if any(is_hydrogen[abs(atom)] for atom in atoms) else "WITHOUT_HYDROGEN"
        parts[part] += [*(3 * atom for atom in atoms), kinds.index(values) + 1]
    for part, numbers in parts.items():
        flags[f"{name}S_{part}"] = INTEGER, numbers


def section(name: str, layout: str, values: list[Any]) -> str:
    per_line, width = (int(number) for number in re.findall(r"\d+", layout)[:2])
    write = {"I": "{:%dd}", "E": "{:%d.8E}", "a": "{:%ds}"}[re.findall(r"[IEa]", layout)[0]] % width
    lines = ["".join(write.format(value) for value in row) for row in chunks(values, per_line)] or [""]
    return "\n".join([f"%FLAG {name}", f"%FORMAT({layout})", *lines]) + "\n"


def chunks(values: list[Any], size: int) -> Iterable[list[Any]]:
    return (values[start : start + size] for start in range(0, len(values), size))


def unwrap(value: Any) -> float:
    return float(value.value_in_unit_system(unit.md_unit_system)) if unit.is_quantity(value) else float(value)
