"""Molecules from the files of other programs: PDB and mmCIF, Amber prmtop, GROMACS top, and OpenMM's System XML."""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import openmm
from numpy.typing import NDArray
from openmm import app, unit

from molecular.molecule.molecule import Molecule
from molecular.molecule.peptide import (
    CAPPED_FORCE_FIELD,
    UNCAPPED_FORCE_FIELD,
    add_hydrogens,
    cutoff_options,
    minimise,
    usual_cutoff,
    usual_order,
    usual_temperature,
)
from molecular.molecule.sequences import LETTERS
from molecular.molecule.storage import read_system
from molecular.molecule.structure_checks import named_by_hand, odd_bond, unnamed_bond, with_right_hands
from molecular.molecule.topology import ALLO_NAMES, D_NAMES, Residue, Topology

SOLVENTS = {"HCT": app.HCT, "OBC1": app.OBC1, "OBC2": app.OBC2, "GBn": app.GBn, "GBn2": app.GBn2}
WATER_AND_IONS = {
    *("HOH", "WAT", "TIP3", "SOL", "H2O"),
    *("NA", "CL", "K", "MG", "CA", "ZN", "LI", "RB", "CS", "NA+", "CL-", "K+", "SOD", "CLA", "POT"),
}
# Residues whose names say more than those that OpenMM knows the bonds and hydrogens of: protonation, in the words of
# AMBER and CHARMM, and D-residues.
PROTONATIONS = {
    **{name: name for name in ("HID", "HIE", "HIP", "ASH", "GLH", "LYN", "CYX")},
    **{"HSD": "HID", "HSE": "HIE", "HSP": "HIP", "CYM": "CYX"},  # neither has a hydrogen at its sulphur
}
MIRRORED = {name: LETTERS[letter].upper() for letter, name in D_NAMES.items()}
MIRRORED |= {name: LETTERS[letter].upper() for letter, names in ALLO_NAMES.items() for name in names}
STANDARD = MIRRORED | {
    **dict.fromkeys(("HID", "HIE", "HIP", "HSD", "HSE", "HSP"), "HIS"),
    **{"ASH": "ASP", "GLH": "GLU", "LYN": "LYS", "CYX": "CYS", "CYM": "CYS"},
}
# Names in the file by chain, number and insertion code, of residues that were read under a standard one.
WrittenNames: TypeAlias = dict[tuple[str, str, str], str]

# With repartitioned mass.
HEAVIEST_HYDROGEN = 4.5 * unit.dalton

LONGEST_PEPTIDE_BOND = 0.18  # nm
LONGEST_REASON = 300  # characters of what another program's reader says

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
    """A molecule from a structure file and a force field.

    Args:
        structure: PDB or mmCIF (the first model), Amber prmtop, or GROMACS top. Water and ions are stripped from the
            first two, and hydrogens that are missing are added, for which the structure is then minimised; heavy atoms
            too, if pdbfixer is installed. Names that say a protonation (HID, HIE, HIP, ASH, GLH, LYN, CYM) are heeded
            in PDB files.
        coordinates: of a prmtop (inpcrd, rst7, PDB) or a top (gro, PDB).
        force_field: with PDB or mmCIF, OpenMM force-field files; default for peptides: those of `Peptide`.
        system: with PDB or mmCIF, an OpenMM System as XML in place of a force field.
        implicit_solvent: with a prmtop, HCT, OBC1, OBC2, GBn or GBn2; default: none, a vacuum.
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
            raise FileNotFoundError(f"there is no file {file}.")
    options: dict[str, Any] = {"removeCMMotion": False, "rigidWater": False}
    if hydrogen_mass is not None:
        options["hydrogenMass"] = hydrogen_mass * unit.dalton
    if suffix in PARAMETER_FILES:
        if force_field or system is not None:
            raise ValueError(f"{path} brings its own force field; leave force_field and system out.")
        if coordinates is None:
            raise ValueError(f"{path} holds no positions; name the file that does as coordinates.")
        solvent = _solvent(implicit_solvent)
        options |= cutoff_options(usual_cutoff(cutoff, capped=True))
        topology, built = PARAMETER_FILES[suffix](path, solvent, options)
        positions = _positions(Path(coordinates))
        if temperature is None:
            temperature = usual_temperature(not _is_uncapped_peptide(topology))
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
    uncapped = _is_uncapped_peptide(modeller.topology)
    if temperature is None:
        temperature = usual_temperature(not uncapped)
    if system is not None:
        if force_field or cutoff != "default" or hydrogen_mass is not None:
            raise ValueError("a System is complete; leave force_field, cutoff and hydrogen_mass out.")
        return _with_system(modeller, read_system(system), temperature, name, written)
    options |= cutoff_options(usual_cutoff(cutoff, not uncapped))
    return _with_force_field(modeller, force_field, options, temperature, name, written, ph)


def _with_force_field(
    modeller: app.Modeller,
    files: Sequence[str] | None,
    options: dict[str, Any],
    temperature: float,
    name: str,
    written: WrittenNames,
    ph: float,
) -> Molecule:
    water = [residue for residue in modeller.topology.residues() if residue.name.upper() in WATER_AND_IONS]
    if water:
        log.info("%d residues of water and ions are left out of %s.", len(water), name)
        modeller.delete(water)
    if modeller.topology.getNumAtoms():
        _join_residues(modeller)
        # Before atoms are added: minimised with them, a gap in the chain would close.
        topology, positions = Topology.of(modeller.topology), _in_nanometres(modeller.positions)
        odd = odd_bond(topology, positions)
        if odd is not None:
            raise ValueError(f"{name} is no whole molecule: {odd}; add the residues or atoms that are missing.")
        lost = unnamed_bond(topology, positions)
        if lost is not None:
            raise ValueError(
                f"{name} has atoms where a bond would be: {lost}; name it in a CONECT record, or part them."
            )
    if not files:
        if not _is_peptide(modeller.topology):
            residues = sorted({residue.name for residue in modeller.topology.residues()})
            raise ValueError(
                f"{name} is no peptide, so that it has no default force field; give force_field (XML files that know "
                f"the residue {', '.join(residues) or '?'}) or a System as XML."
            )
        files = UNCAPPED_FORCE_FIELD if _is_uncapped_peptide(modeller.topology) else CAPPED_FORCE_FIELD
    try:
        field = app.ForceField(*files)
    except (ValueError, OSError, SyntaxError) as error:  # OpenMM's own sentence names the file it could not find
        raise ValueError(f"cannot load the force field {', '.join(files)}: {_first_line(error)}") from error
    own_hands = _named_by_hand(modeller)
    modeller, created, added = _create(field, modeller, options, name, written, ph)
    positions = _in_nanometres(modeller.positions)
    if added:
        log.info("%d atoms were missing in %s and are added.", added, name)
        positions = minimise(created, positions)
        modeller = app.Modeller(modeller.topology, positions * unit.nanometer)
        for own, made, residue in zip(own_hands, _named_by_hand(modeller), modeller.topology.residues(), strict=True):
            if made.name not in (own.name, residue.name):
                raise ValueError(
                    f"{name} lacks atoms that tell the hand of {own.name} {own.number}, and completed it would be "
                    f"{made.name}; add its heavy atoms with another program."
                )
    _name_as_written(modeller.topology, written)
    return Molecule(modeller.topology, created, positions, temperature, name=name)


def _join_residues(modeller: app.Modeller) -> None:
    """Bond C to the next residue's N where they touch: OpenMM does it for the residues it knows, not for MSE or SEP."""
    positions, bonded = _in_nanometres(modeller.positions), {frozenset(bond[:2]) for bond in modeller.topology.bonds()}
    for chain in modeller.topology.chains():
        for residue, following in pairwise(chain.residues()):
            carbons = [atom for atom in residue.atoms() if atom.name == "C"]
            nitrogens = [atom for atom in following.atoms() if atom.name == "N"]
            for pair in zip(carbons, nitrogens, strict=False):
                distance = np.linalg.norm(positions[pair[0].index] - positions[pair[1].index])
                if distance < LONGEST_PEPTIDE_BOND and frozenset(pair) not in bonded:
                    modeller.topology.addBond(*pair)


def _named_by_hand(modeller: app.Modeller) -> tuple[Residue, ...]:
    if not modeller.topology.getNumAtoms():
        return ()
    return named_by_hand(Topology.of(modeller.topology), _in_nanometres(modeller.positions)).residues


def _is_peptide(topology: app.Topology) -> bool:
    return any(atom.name == "CA" and atom.element is app.element.carbon for atom in topology.atoms())


def _is_uncapped_peptide(topology: app.Topology) -> bool:
    """Whether one of the ends, or both, has no cap, as `Peptide` has it."""
    residues = {residue.name for residue in topology.residues()}
    return _is_peptide(topology) and not ("ACE" in residues and residues & {"NME", "NHE", "NH2"})


def _create(
    field: app.ForceField,
    modeller: app.Modeller,
    options: dict[str, Any],
    name: str,
    written: WrittenNames,
    ph: float,
) -> tuple[app.Modeller, openmm.System, int]:
    """The atoms, their System, and how many atoms had to be added."""
    before = modeller.topology.getNumAtoms()
    hint = ""
    try:
        return modeller, field.createSystem(modeller.topology, **options), 0
    except ValueError as error:
        reason: Exception = error
    for complete in (lambda: modeller, lambda: _with_missing_heavy_atoms(modeller, written)):
        try:
            completed = complete()
            variants = [PROTONATIONS.get(written.get(_key(r), "")) for r in completed.topology.residues()]
            add_hydrogens(completed, field, variants, seed=1, ph=ph)
            added = completed.topology.getNumAtoms() - before
            completed = _in_usual_order(completed) if added else completed
            return completed, field.createSystem(completed.topology, **options), added
        except ImportError:
            hint = " (if heavy atoms are missing: `pip install pdbfixer`, which adds them)"
        except (ValueError, KeyError, openmm.OpenMMException) as error:
            reason = error
    # OpenMM's sentences of advice follow after two blanks.
    told = re.split(r"\s+(?:You may|For more|Is the|This might|Perhaps)", _first_line(reason))[0].rstrip(".")
    raise ValueError(
        f"the force field does not know all of {name}, and adding hydrogens does not help: {told}{hint}."
    ) from reason


def _in_usual_order(modeller: app.Modeller) -> app.Modeller:
    """Atoms as `Peptide` lists them, which flows of it need; only where some were added, as no trajectory has those."""
    topology = Topology.of(modeller.topology)
    order = usual_order(topology)
    positions = _in_nanometres(modeller.positions)[order]
    return app.Modeller(topology.select(order).to_openmm(), positions * unit.nanometer)


def _with_missing_heavy_atoms(modeller: app.Modeller, written: WrittenNames) -> app.Modeller:
    """Completed by pdbfixer, residues that are not standard replaced; raises ImportError where it is not installed."""
    from pdbfixer import PDBFixer

    if set(written.values()) & MIRRORED.keys():
        raise ValueError("heavy atoms of a peptide with D-residues cannot be added, as pdbfixer would make them L")
    text = io.StringIO()
    app.PDBFile.writeFile(modeller.topology, modeller.positions, text, keepIds=True)
    text.seek(0)
    fixer = PDBFixer(pdbfile=text)
    fixer.missingResidues = {}  # whole residues are not made up
    fixer.findNonstandardResidues()
    for residue, standard in fixer.nonstandardResidues:
        log.warning("Residue %s %s is not standard; taken as %s.", residue.name, residue.id, standard)
    fixer.replaceNonstandardResidues()
    fixer.findMissingAtoms()
    fixer.addMissingAtoms(seed=1)
    for chain, made in zip(modeller.topology.chains(), fixer.topology.chains(), strict=True):
        made.id = chain.id  # a blank one is lost in a PDB file
    # So are bonds between residues that make rings, and with them the molecule.
    atoms = {(atom.residue.index, atom.name): atom for atom in fixer.topology.atoms()}
    bonded = {frozenset(bond[:2]) for bond in fixer.topology.bonds()}
    for bond in modeller.topology.bonds():
        pair = [atoms.get((atom.residue.index, atom.name)) for atom in bond[:2]]
        if None not in pair and frozenset(pair) not in bonded:
            fixer.topology.addBond(*pair)
    there = {(atom.residue.index, atom.name) for atom in modeller.topology.atoms()}
    added = {atom.index for place, atom in atoms.items() if place not in there}
    # pdbfixer knows no hands: alanine without CB may become D-alanine, isoleucine without CG2 allo-isoleucine.
    positions = with_right_hands(Topology.of(fixer.topology), _in_nanometres(fixer.positions), added)
    return app.Modeller(fixer.topology, positions * unit.nanometer)


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
        elif (atom.element is app.element.hydrogen) != (mass < HEAVIEST_HYDROGEN):
            raise ValueError(
                f"atom {atom.index + 1} of {name}, {atom.name} of {atom.residue.name} {atom.residue.id}, has the mass "
                f"{mass._value:g} amu in the System; give both the same order of atoms."
            )
    _name_as_written(modeller.topology, written)
    topology = Topology.of(modeller.topology)
    positions = _in_nanometres(modeller.positions)
    # Files of small molecules often have no CONECT records; their System knows what is bonded, or else the distances.
    if len(topology.components) > 1:
        topology = replace(topology, bonds=tuple(sorted({*topology.bonds, *_bonds(system)})))
    if len(topology.components) > 1:
        topology = replace(topology, bonds=tuple(sorted({*topology.bonds, *_near_atoms(topology, positions)})))
    return Molecule(topology, system, positions, temperature, name=name)


def _near_atoms(topology: Topology, positions: NDArray[np.float64]) -> set[tuple[int, int]]:
    """Pairs as near as their covalent radii let bonded atoms be."""
    from rdkit import Chem
    from rdkit.Chem import rdDetermineBonds
    from rdkit.Geometry import Point3D

    molecule = Chem.RWMol()
    conformer = Chem.Conformer(topology.num_atoms)
    for index, (element, place) in enumerate(zip(topology.elements, positions, strict=True)):
        molecule.AddAtom(Chem.Atom(element))
        conformer.SetAtomPosition(index, Point3D(*map(float, 10.0 * place)))  # Angstrom
    molecule.AddConformer(conformer)
    rdDetermineBonds.DetermineConnectivity(molecule)
    return {(min(i, j), max(i, j)) for i, j in ((b.GetBeginAtomIdx(), b.GetEndAtomIdx()) for b in molecule.GetBonds())}


def _bonds(system: openmm.System) -> set[tuple[int, int]]:
    """Pairs that a harmonic bond or a constraint joins: of rigid groups, constraints across angles too are left out."""
    pairs = set()
    for force in system.getForces():
        if isinstance(force, openmm.HarmonicBondForce):
            pairs |= {tuple(sorted(force.getBondParameters(k)[:2])) for k in range(force.getNumBonds())}
    for k in range(system.getNumConstraints()):
        i, j, length = system.getConstraintParameters(k)
        if length.value_in_unit(unit.nanometer) < 0.125:  # a bond to hydrogen
            pairs.add(tuple(sorted((i, j))))
    return {(int(i), int(j)) for i, j in pairs}


def _read_structure(path: Path) -> tuple[app.Modeller, WrittenNames]:
    written: WrittenNames = {}
    is_pdb = path.suffix.lower() in (".pdb", ".ent")
    text = path.read_text(encoding="utf-8", errors="replace") if is_pdb else ""
    if is_pdb and not any(line.startswith(("ATOM", "HETATM")) for line in text.splitlines()):
        raise ValueError(f"{path} holds no atoms.")
    try:
        if is_pdb:
            file = app.PDBFile(_standard_names(text, written))
        else:
            file = STRUCTURE_FILES[path.suffix.lower()](str(path))
        topology, positions = file.topology, file.getPositions()
    except Exception as error:  # readers of foreign formats raise whatever they stumble over
        raise ValueError(f"{path} cannot be read as {path.suffix[1:]} ({_first_line(error)}).") from error
    if not topology.getNumAtoms():
        raise ValueError(f"{path} holds no atoms.")
    return app.Modeller(topology, positions), written


def _standard_names(text: str, written: WrittenNames) -> io.StringIO:
    """A PDB file in which residues have names whose bonds OpenMM knows; their own are put into `written`."""
    lines = text.splitlines()
    for number, line in enumerate(lines):
        name = line[17:20]
        if line.startswith(("ATOM", "HETATM")) and name in STANDARD:
            written[line[21:22].strip(), line[22:26].strip(), line[26:27].strip()] = name
            lines[number] = line[:17] + STANDARD[name] + line[20:]
    return io.StringIO("\n".join(lines) + "\n")


def _key(residue: Any) -> tuple[str, str, str]:
    return residue.chain.id.strip(), residue.id.strip(), residue.insertionCode.strip()


def _name_as_written(topology: app.Topology, written: WrittenNames) -> None:
    """D-residues by their own names; protonation is told by the atoms, under one name."""
    for residue in topology.residues():
        name = written.get(_key(residue), "")
        if name in MIRRORED:
            residue.name = name


def _positions(path: Path) -> NDArray[np.float64]:
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
    try:
        return _in_nanometres(readers[suffix](str(path)).positions)
    except Exception as error:  # as in _read_structure
        raise ValueError(f"{path} cannot be read as {suffix[1:]} ({_first_line(error)}).") from error


def _amber(path: Path, solvent: Any, options: dict[str, Any]) -> tuple[app.Topology, openmm.System]:
    try:
        file = app.AmberPrmtopFile(str(path))
        return file.topology, file.createSystem(implicitSolvent=solvent, **options)
    except Exception as error:  # as in _read_structure
        raise ValueError(f"{path} cannot be read as an Amber prmtop ({_first_line(error)}).") from error


def _gromacs(path: Path, solvent: Any, options: dict[str, Any]) -> tuple[app.Topology, openmm.System]:
    if solvent is not None:
        raise ValueError("implicit_solvent goes with an Amber prmtop; OpenMM reads none with a GROMACS top.")
    try:
        file = app.GromacsTopFile(str(path))
        return file.topology, file.createSystem(**options)
    except Exception as error:  # as in _read_structure
        raise ValueError(
            f"{path} cannot be read as a GROMACS top ({_first_line(error)}); files that it includes must lie beside it."
        ) from error


def _solvent(name: str | None) -> Any:
    if name is not None and name not in SOLVENTS:
        raise ValueError(f"implicit_solvent is {name!r}; give one of {', '.join(SOLVENTS)}, or none for a vacuum.")
    return None if name is None else SOLVENTS[name]


def _in_nanometres(positions: Any) -> NDArray[np.float64]:
    return np.array(positions.value_in_unit(unit.nanometer), dtype=np.float64)


def _first_line(error: Exception) -> str:
    line = str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
    return line if len(line) <= LONGEST_REASON else f"{line[:LONGEST_REASON]} ..."


STRUCTURE_FILES: dict[str, Callable[[str], Any]] = {
    ".pdb": app.PDBFile,
    ".ent": app.PDBFile,
    ".cif": app.PDBxFile,
    ".mmcif": app.PDBxFile,
}
PARAMETER_FILES = {".prmtop": _amber, ".parm7": _amber, ".top": _gromacs}
