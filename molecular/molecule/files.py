"""Molecules from the files of other programs: PDB and mmCIF, Amber prmtop, GROMACS top, and OpenMM's System XML."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import openmm
from numpy.typing import NDArray
from openmm import app, unit

from molecular.molecule.completion import in_nanometres, is_uncapped_peptide, with_force_field
from molecular.molecule.force_fields import harmonic_bonds
from molecular.molecule.matching import perceive_bonds
from molecular.molecule.molecule import Molecule
from molecular.molecule.peptide import system_options, usual_cutoff, usual_temperature
from molecular.molecule.storage import read_system
from molecular.molecule.topology import Topology
from molecular.molecule.written_names import WrittenNames, name_as_written, standard_names
from nflib.errors import first_line, no_file

SOLVENTS = {"HCT": app.HCT, "OBC1": app.OBC1, "OBC2": app.OBC2, "GBn": app.GBn, "GBn2": app.GBn2}

# With repartitioned mass.
HEAVIEST_HYDROGEN = 4.5 * unit.dalton

log = logging.getLogger(__name__)


def read_molecule(
    structure: str | Path,
    *,
    coordinates: str | Path | None = None,
    force_field: Sequence[str] | None = None,
    system: str | Path | None = None,
    implicit_solvent: str | None = None,
    temperature: float | None = None,
    cutoff: float | str | None = "default",
    hydrogen_mass: float | None = None,
    name: str | None = None,
    ph: float = 7.0,
) -> Molecule:
    """Read a molecule from a structure file and a force field.

    Args:
        structure: PDB or mmCIF (the first model), Amber prmtop, or GROMACS top. Water and ions are stripped from the
            first two, and hydrogens that are missing are added, for which the structure is then minimised; heavy atoms
            too, if pdbfixer is installed. Names that say a protonation (HID, HIE, HIP, ASH, GLH, LYN, CYM) are heeded
            in PDB files, and of alternate locations the one of the highest occupancy is read (of mmCIF the first);
            neutral histidine whose name and hydrogens do not say it is HIE, as in `Peptide`.
        coordinates: of a prmtop (inpcrd, rst7, PDB) or a top (gro, PDB). A box is left out, with a warning: a molecule
            is taken alone.
        force_field: with PDB or mmCIF, OpenMM force-field files; default for peptides: those of `Peptide`.
        system: with PDB or mmCIF, an OpenMM System as XML in place of a force field.
        implicit_solvent: with a prmtop, HCT, OBC1, OBC2, GBn or GBn2, always with OpenMM's surface term (ACE), which
            Amber's programs leave out at their default, gbsa=0; default: none, a vacuum.
        temperature: K; default 310 for peptides without caps, 300 for all else.
        cutoff: nm, None for none; by default 2 for peptides without caps in PDB and mmCIF files, none for all else.
        hydrogen_mass: amu, see `Peptide`.
        name: default: the structure's file name without its suffix.
        ph: for the protonation of residues whose hydrogens are missing and whose names do not say it.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged or of another kind, atoms that the force field does not know, or options that do
            not go together; see `Molecule` for what no molecule may be.
    """
    path = Path(structure)
    suffix = path.suffix.lower()
    name = name or path.stem
    for file in (path, coordinates, system):
        if file is not None and not Path(file).is_file():
            raise no_file(file, "check the path")
    if suffix in PARAMETER_FILES:
        if force_field or system is not None:
            raise ValueError(f"{path} brings its own force field; leave force_field and system out.")
        if coordinates is None:
            raise ValueError(f"{path} holds no positions; name the file that does as coordinates.")
        solvent = _solvent(implicit_solvent)
        options = system_options(usual_cutoff(cutoff, capped=True), hydrogen_mass)
        topology, built = PARAMETER_FILES[suffix](path, solvent, options)
        positions, box = _positions(Path(coordinates))
        if box:
            log.warning(
                "The box of %s is left out: %s is taken alone, %s.",
                *(coordinates, name, f"in {implicit_solvent or 'a vacuum'}"),
            )
        if temperature is None:
            temperature = usual_temperature(not is_uncapped_peptide(topology))
        return Molecule(topology, built, positions, temperature, name=name)
    if suffix not in STRUCTURE_FILES:
        known = ", ".join([*STRUCTURE_FILES, *PARAMETER_FILES])
        raise ValueError(f"{path} has no suffix of a structure that is read here: {known}.")
    if coordinates is not None or implicit_solvent is not None:
        raise ValueError(
            f"coordinates and implicit_solvent go with a prmtop or top, not with {path.name}; for that a solvent is a "
            "force_field file, such as implicit/obc2.xml."
        )
    modeller, written = _read_structure(path)
    uncapped = is_uncapped_peptide(modeller.topology)
    if temperature is None:
        temperature = usual_temperature(not uncapped)
    if system is not None:
        if force_field or cutoff != "default" or hydrogen_mass is not None:
            raise ValueError("a System is complete; leave force_field, cutoff and hydrogen_mass out.")
        return _with_system(modeller, read_system(system), temperature, name, written)
    options = system_options(usual_cutoff(cutoff, not uncapped), hydrogen_mass)
    return with_force_field(modeller, force_field, options, temperature, name, written, ph)


def _with_system(
    modeller: app.Modeller, system: openmm.System, temperature: float, name: str, written: WrittenNames
) -> Molecule:
    count = modeller.topology.getNumAtoms()
    if system.getNumParticles() != count:
        raise ValueError(
            f"the System has {system.getNumParticles()} particles but {name} has {count} atoms; they are of different "
            "molecules."
        )
    for atom in modeller.topology.atoms():
        mass = system.getParticleMass(atom.index)
        if atom.element is None:  # no column for it, and no name to guess by
            atom.element = app.Element.getByMass(mass)
        elif mass._value and (atom.element is app.element.hydrogen) != (mass < HEAVIEST_HYDROGEN):
            raise ValueError(
                f"atom {atom.index + 1} of {name}, {atom.name} of {atom.residue.name} {atom.residue.id}, has the mass "
                f"{mass._value:g} amu in the System; give both the same order of atoms."
            )
    name_as_written(modeller.topology, written)
    topology = Topology.of(modeller.topology)
    positions = in_nanometres(modeller.positions)
    # Files of small molecules often have no CONECT records; their System knows what is bonded, or else the distances.
    if len(topology.components) > 1:
        topology = replace(topology, bonds=tuple(sorted({*topology.bonds, *_bonds(system)})))
    if len(topology.components) > 1:
        pairs = np.column_stack(np.triu_indices(topology.num_atoms, 1))
        distances = np.linalg.norm(positions[pairs[:, 0]] - positions[pairs[:, 1]], axis=-1)
        near = perceive_bonds(topology.elements, distances, pairs)
        topology = replace(topology, bonds=tuple(sorted({*topology.bonds, *near})))
    return Molecule(topology, system, positions, temperature, name=name)


def _bonds(system: openmm.System) -> set[tuple[int, int]]:
    """Pairs that a harmonic bond or a constraint joins: of rigid groups, constraints across angles too are left out."""
    pairs = set(harmonic_bonds(system))
    for k in range(system.getNumConstraints()):
        i, j, length = system.getConstraintParameters(k)
        if length.value_in_unit(unit.nanometer) < 0.125:  # a bond to hydrogen
            pairs.add((min(i, j), max(i, j)))
    return pairs


@contextmanager
def _read_as(path: Path, kind: str, advice: str = "") -> Iterator[None]:
    """ValueError for whatever a reader of a foreign format stumbles over."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"{path} cannot be read as {kind} ({first_line(error)}){advice}.") from error


def _read_structure(path: Path) -> tuple[app.Modeller, WrittenNames]:
    written: WrittenNames = {}
    is_pdb = path.suffix.lower() in (".pdb", ".ent")
    text = path.read_text(encoding="utf-8", errors="replace") if is_pdb else ""
    if is_pdb and not any(line.startswith(("ATOM", "HETATM")) for line in text.splitlines()):
        raise ValueError(f"{path} holds no atoms.")
    with _read_as(path, path.suffix[1:]):
        source = standard_names(text, written) if is_pdb else str(path)
        file = STRUCTURE_FILES[path.suffix.lower()](source)
        topology, positions = file.topology, file.getPositions()
    if not topology.getNumAtoms():
        raise ValueError(f"{path} holds no atoms.")
    return app.Modeller(topology, positions), written


def _positions(path: Path) -> tuple[NDArray[np.float64], bool]:
    """In nm, and whether they lie in a box."""
    suffix = path.suffix.lower()
    readers: dict[str, Callable[[str], Any]] = {
        ".inpcrd": app.AmberInpcrdFile,
        ".rst7": app.AmberInpcrdFile,
        ".crd": app.AmberInpcrdFile,
        ".gro": app.GromacsGroFile,
        **STRUCTURE_FILES,
    }
    if suffix not in readers:
        raise ValueError(f"{path} has no suffix of positions that are read here: {', '.join(readers)}.")
    with _read_as(path, suffix[1:]):
        file = readers[suffix](str(path))
        # GROMACS writes a box of zeros for none; a CRYST1 record is a crystal's, or made up.
        vectors = file.getPeriodicBoxVectors() if suffix == ".gro" else getattr(file, "boxVectors", None)
        return in_nanometres(file.positions), vectors is not None and any(v != 0.0 * v for v in vectors)


def _amber(path: Path, solvent: Any, options: dict[str, Any]) -> tuple[app.Topology, openmm.System]:
    with _read_as(path, "an Amber prmtop"):
        file = app.AmberPrmtopFile(str(path))
        return file.topology, file.createSystem(implicitSolvent=solvent, **options)


def _gromacs(path: Path, solvent: Any, options: dict[str, Any]) -> tuple[app.Topology, openmm.System]:
    if solvent is not None:
        raise ValueError("implicit_solvent goes with an Amber prmtop; OpenMM reads none with a GROMACS top.")
    with _read_as(path, "a GROMACS top", "; files that it includes must lie beside it"):
        file = app.GromacsTopFile(str(path))
        return file.topology, file.createSystem(**options)


def _solvent(name: str | None) -> Any:
    if name is not None and name not in SOLVENTS:
        raise ValueError(f"implicit_solvent is {name!r}; give one of {', '.join(SOLVENTS)}, or none for a vacuum.")
    return None if name is None else SOLVENTS[name]


STRUCTURE_FILES: dict[str, Callable[[Any], Any]] = {
    ".pdb": app.PDBFile,
    ".ent": app.PDBFile,
    ".cif": app.PDBxFile,
    ".mmcif": app.PDBxFile,
}
PARAMETER_FILES = {".prmtop": _amber, ".parm7": _amber, ".top": _gromacs}
