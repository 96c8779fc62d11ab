"""The atoms of a structure file in a force field, completed with the hydrogens and heavy atoms that are missing."""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import openmm
from numpy.typing import NDArray
from openmm import app, unit

from molecular.molecule.force_fields import (
    CAPPED_FORCE_FIELD,
    UNCAPPED_FORCE_FIELD,
    SeveralTemplates,
    load_force_field,
    refusals_of_openmm,
)
from molecular.molecule.molecule import Molecule
from molecular.molecule.peptide import add_hydrogens, minimise, usual_order
from molecular.molecule.structure_checks import named_by_hand, odd_bond, unnamed_bond, with_right_hands
from molecular.molecule.topology import Residue, Topology
from molecular.molecule.written_names import MIRRORED, WrittenNames, name_as_written, variants
from nflib.errors import first_line

WATER_AND_IONS = {
    *("HOH", "WAT", "TIP3", "SOL", "H2O"),
    *("NA", "CL", "K", "MG", "CA", "ZN", "LI", "RB", "CS", "NA+", "CL-", "K+", "SOD", "CLA", "POT"),
}
# Of residues that are not standard, those that stand for one that is: selenium is there for crystallographers.
REPLACED = ("MSE",)

LONGEST_PEPTIDE_BOND = 0.18  # nm

log = logging.getLogger(__name__)


def with_force_field(
    modeller: app.Modeller,
    files: Sequence[str] | None,
    options: dict[str, Any],
    temperature: float,
    name: str,
    written: WrittenNames,
    ph: float,
) -> Molecule:
    """The molecule of these atoms without water and ions, completed where the force field asks for more.

    Raises ValueError as `molecular.molecule.files.read_molecule`.
    """
    water = [residue for residue in modeller.topology.residues() if residue.name.upper() in WATER_AND_IONS]
    if water:
        log.info("%d residues of water and ions are left out of %s.", len(water), name)
        modeller.delete(water)
    if modeller.topology.getNumAtoms():
        _join_residues(modeller)
        # Before atoms are added: minimised with them, a gap in the chain would close.
        topology, positions = Topology.of(modeller.topology), in_nanometres(modeller.positions)
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
        files = UNCAPPED_FORCE_FIELD if is_uncapped_peptide(modeller.topology) else CAPPED_FORCE_FIELD
    field = load_force_field(files)
    own_hands = _named_by_hand(modeller)
    modeller, created, added = _create(field, modeller, options, name, written, ph)
    positions = in_nanometres(modeller.positions)
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
    name_as_written(modeller.topology, written)
    return Molecule(modeller.topology, created, positions, temperature, name=name)


def _join_residues(modeller: app.Modeller) -> None:
    """Bond C to the next residue's N where they touch: OpenMM does it for the residues it knows, not for MSE or SEP."""
    positions, bonded = in_nanometres(modeller.positions), {frozenset(bond[:2]) for bond in modeller.topology.bonds()}
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
    return named_by_hand(Topology.of(modeller.topology), in_nanometres(modeller.positions)).residues


def _is_peptide(topology: app.Topology) -> bool:
    return any(atom.name == "CA" and atom.element is app.element.carbon for atom in topology.atoms())


def is_uncapped_peptide(topology: app.Topology) -> bool:
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
        with refusals_of_openmm():
            return modeller, field.createSystem(modeller.topology, **options), 0
    except ValueError as error:
        reason: Exception = error
    for complete in (lambda: modeller, lambda: _with_missing_heavy_atoms(modeller, written)):
        try:
            completed = complete()
            with refusals_of_openmm():
                add_hydrogens(completed, field, variants(completed.topology, written), seed=1, ph=ph)
                added = completed.topology.getNumAtoms() - before
                completed = _in_usual_order(completed) if added else completed
                return completed, field.createSystem(completed.topology, **options), added
        except ImportError:
            hint = " (if heavy atoms are missing: `pip install pdbfixer`, which adds them)"
        except (ValueError, KeyError, openmm.OpenMMException) as error:
            reason = error
    if isinstance(reason, SeveralTemplates):
        raise reason
    # OpenMM's sentences of advice follow after two blanks.
    told = re.split(r"\s+(?:You may|For more|Is the|This might|Perhaps)", first_line(reason))[0].rstrip(".")
    raise ValueError(
        f"the force field does not know all of {name}, and adding hydrogens does not help: {told}{hint}."
    ) from reason


def _in_usual_order(modeller: app.Modeller) -> app.Modeller:
    """Atoms as `Peptide` lists them, which flows of it need; only where some were added, as no trajectory has those."""
    topology = Topology.of(modeller.topology)
    order = usual_order(topology)
    positions = in_nanometres(modeller.positions)[order]
    return app.Modeller(topology.select(order).to_openmm(), positions * unit.nanometer)


def _with_missing_heavy_atoms(modeller: app.Modeller, written: WrittenNames) -> app.Modeller:
    """Completed by pdbfixer, and MSE replaced by MET; raises ImportError where it is not installed."""
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
        if residue.name not in REPLACED:  # another molecule: a phosphoserine would lose its phosphate
            raise ValueError(
                f"{residue.name} {residue.id} is not standard; give a force field that knows it, or make it {standard} "
                "with another program"
            )
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
    positions = with_right_hands(Topology.of(fixer.topology), in_nanometres(fixer.positions), added)
    return app.Modeller(fixer.topology, positions * unit.nanometer)


def in_nanometres(positions: Any) -> NDArray[np.float64]:
    return np.array(positions.value_in_unit(unit.nanometer), dtype=np.float64)
