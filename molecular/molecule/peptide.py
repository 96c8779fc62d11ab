"""A peptide from its sequence alone: topology, a minimised structure and an OpenMM System."""

from __future__ import annotations

import io
import random
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import openmm
from numpy.typing import NDArray
from openmm import app, unit
from rdkit import Chem
from rdkit.Chem import rdDistGeom

from molecular.molecule.force_fields import (
    CAPPED_FORCE_FIELD,
    UNCAPPED_FORCE_FIELD,
    SeveralTemplates,
    load_force_field,
    refusals_of_openmm,
)
from molecular.molecule.geometry import is_cis, signed_volumes
from molecular.molecule.molecule import Molecule
from molecular.molecule.sequences import PeptideSequence, parse_sequence
from molecular.molecule.topology import CAPS, D_NAMES, Topology
from nflib.errors import ComputationError

_CONSTRAINTS = {None: None, "HBonds": app.HBonds, "AllBonds": app.AllBonds, "HAngles": app.HAngles}
_EMBEDDING_SEEDS = range(1, 33)

# Atoms that only geometry tells apart; see _standard_labels.
_BRANCHES = {"VAL": ("CB", "CG1", "CG2", "HB"), "LEU": ("CG", "CD1", "CD2", "HG")}
_CIS = {
    "ARG": (
        ("CD", "NE", "CZ", "NH1", "NH2"),
        ("NE", "CZ", "NH1", "HH11", "HH12"),
        ("NE", "CZ", "NH2", "HH21", "HH22"),
    ),
    "ASN": (("CB", "CG", "ND2", "HD21", "HD22"),),
    "GLN": (("CG", "CD", "NE2", "HE21", "HE22"),),
}
# OpenMM has no hydrogens for the amide at a C-terminus; the names are AMBER's.
_AMIDE_HYDROGENS = """<Residues><Residue name="NHE">
<H name="HN1" parent="N"/><H name="HN2" parent="N"/>
</Residue></Residues>"""
_HYDROGEN = app.element.hydrogen
_HEAVIEST_HYDROGEN = 5.0  # amu
_HISTIDINE_PH = 6.5  # below it OpenMM gives histidine both hydrogens
_REMOTENESS = "ABGDEZHNC"  # second letter of a side-chain atom's name; the backbone's N and C come last


class Peptide(Molecule):
    """A peptide built from its sequence: a `Molecule` with a minimised structure, an OpenMM System and a temperature.

    Args:
        sequence: one-letter codes, ``"AAA"`` (zwitterionic ends), or with caps, ``"Ace-A-Nme"``, ``"Ace-AAG-NH2"``;
            with other protonation, disulfides or D-residues, ``"Ace-Hip-Nme"``, ``"Ace-Cyx-GG-Cyx-Nme"``,
            ``"Ace-dAla-Nme"``: see `molecular.molecule.sequences.parse_sequence`.
        force_field: OpenMM force-field files. Default with both caps: amber99sbildn.xml + amber99_obc.xml;
            else: amber14-all.xml + implicit/obc1.xml.
        temperature: kelvin. Default 300 with both caps, else 310.
        cutoff: nonbonded cutoff in nm, None for no cutoff. ``"default"``: None with both caps, else 2 nm.
        constraints: bonds of fixed length, for simulation by OpenMM alone: None (flexible), "HBonds", "AllBonds" or
            "HAngles".
        hydrogen_mass: amu, for hydrogen mass repartition; None keeps natural masses.

    Attributes:
        those of `Molecule`; atoms in OpenMM's order (each heavy atom, then its hydrogens). Positions are minimised, the
            same for the same arguments. Plain histidine is HIE, the usual choice of AMBER; other groups are as at pH 7.
        sequence, residues, capped, force_field, cutoff, constraints, hydrogen_mass: of the arguments.

    Raises:
        ValueError: an empty sequence, an unknown residue or cap, a force field that does not know all of the atoms, or
            an option out of range.
        ComputationError: no structure was found with all its peptide bonds trans.

    >>> peptide = Peptide("Ace-A-Nme")
    >>> peptide.num_atoms
    22
    """

    def __init__(
        self,
        sequence: str | PeptideSequence,
        *,
        force_field: Sequence[str] | None = None,
        temperature: float | None = None,
        cutoff: float | str | None = "default",
        constraints: str | None = None,
        hydrogen_mass: float | None = None,
    ) -> None:
        self.sequence = str(sequence)
        parsed = parse_sequence(sequence) if isinstance(sequence, str) else sequence
        self.residues, self.capped = parsed.letters, parsed.capped
        self.force_field = tuple(force_field or (CAPPED_FORCE_FIELD if self.capped else UNCAPPED_FORCE_FIELD))
        if not all(isinstance(file, str) for file in self.force_field):
            raise ValueError(f"force_field is {force_field!r}; give the names of OpenMM force-field files.")
        self.cutoff = usual_cutoff(cutoff, self.capped)
        if constraints not in _CONSTRAINTS:
            raise ValueError(f"constraints is {constraints!r}; give one of {', '.join(map(str, _CONSTRAINTS))}.")
        self.constraints = constraints
        self.hydrogen_mass = hydrogen_mass
        options = system_options(self.cutoff, hydrogen_mass) | {"constraints": _CONSTRAINTS[constraints]}
        field = load_force_field(self.force_field)
        for seed in _EMBEDDING_SEEDS:
            try:
                with refusals_of_openmm():
                    topology, start = _build(parsed, field, seed)
                    if not _all_trans(topology, start):
                        continue
                    system = field.createSystem(topology, **options)
            except SeveralTemplates:
                raise
            except ValueError as error:
                reason = str(error).partition(".  ")[0]
                raise ValueError(f"the force field does not know all of {self.sequence}: {reason}.") from error
            positions = minimise(system, start)
            if _all_trans(topology, positions):
                break
        else:
            raise ComputationError(f"no start structure of {self.sequence!r} has all its peptide bonds trans.")
        temperature = usual_temperature(self.capped) if temperature is None else temperature
        super().__init__(topology, system, positions, temperature, name=self.sequence)


def usual_temperature(capped: bool) -> float:
    """The temperature, K, of a peptide for which none is given."""
    return 300.0 if capped else 310.0


def usual_cutoff(cutoff: float | str | None, capped: bool) -> float | None:
    """A cutoff, nm, None (or the word) for no cutoff, where "default" is that of a peptide for which none is given.

    Raises ValueError for any other word, and for a length that is not positive.
    """
    if cutoff == "default":
        return None if capped else 2.0
    if cutoff is None or (isinstance(cutoff, str) and cutoff.lower() == "none"):
        return None
    if not (isinstance(cutoff, float | int) and cutoff > 0.0):
        raise ValueError(f"cutoff is {cutoff!r}; give a positive length in nm, or none for no cutoff.")
    return cutoff


def system_options(cutoff: float | None, hydrogen_mass: float | None) -> dict[str, Any]:
    """What OpenMM's createSystem is told of a cutoff, nm, and a mass of hydrogens, amu.

    No CMMotionRemover: the target is the Boltzmann distribution of the forces alone. Raises ValueError for a mass that
    bonded atoms cannot give.
    """
    options: dict[str, Any] = {"nonbondedMethod": app.NoCutoff, "rigidWater": False, "removeCMMotion": False}
    if cutoff is not None:
        options |= {"nonbondedMethod": app.CutoffNonPeriodic, "nonbondedCutoff": cutoff * unit.nanometer}
    if hydrogen_mass is not None:
        if not 0.0 < hydrogen_mass < _HEAVIEST_HYDROGEN:
            raise ValueError(
                f"hydrogen_mass is {hydrogen_mass:g} amu; give one above 0 and below {_HEAVIEST_HYDROGEN:g}, at which "
                "the carbon of a methyl has no mass left."
            )
        options["hydrogenMass"] = hydrogen_mass * unit.dalton
    return options


def _build(sequence: PeptideSequence, field: app.ForceField, seed: int) -> tuple[app.Topology, NDArray[np.float64]]:
    """Topology with hydrogens and positions in nm: RDKit embeds the heavy atoms, OpenMM adds hydrogens."""
    molecule = Chem.AddHs(_graph(sequence))
    parameters: Any = rdDistGeom.ETKDGv3()
    parameters.randomSeed = seed
    if rdDistGeom.EmbedMolecule(molecule, parameters) != 0:
        parameters.useRandomCoords = True
        if rdDistGeom.EmbedMolecule(molecule, parameters) != 0:
            raise ComputationError(f"RDKit found no structure of {str(sequence)!r} with seed {seed}.")
    xyz = molecule.GetConformer().GetPositions() / 10.0  # Angstrom to nm

    topology, by_number, placed = app.Topology(), {}, {}
    chain = topology.addChain("A")
    for number, residue_name, name, index in _heavy_atoms(molecule, sequence):
        if number not in by_number:
            by_number[number] = topology.addResidue(residue_name, chain)
        element = app.Element.getByAtomicNumber(molecule.GetAtomWithIdx(index).GetAtomicNum())
        placed[index] = topology.addAtom(name, element, by_number[number])
    for bond in molecule.GetBonds():
        i, j = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
        if i in placed and j in placed:
            topology.addBond(placed[i], placed[j])

    if sequence.tail == "NH2":
        app.Modeller.loadHydrogenDefinitions(io.StringIO(_AMIDE_HYDROGENS))
    modeller = app.Modeller(topology, xyz[list(placed)] * unit.nanometer)
    wanted = [None] * bool(sequence.head) + list(sequence.residues) + [None] * bool(sequence.tail)
    variants = [residue.variant.upper() if residue is not None and residue.variant else None for residue in wanted]
    add_hydrogens(modeller, field, variants, seed)
    positions = _standard_labels(
        modeller.topology, np.array(modeller.positions.value_in_unit(unit.nanometer), dtype=np.float64)
    )
    for residue, made in zip(wanted, modeller.topology.residues(), strict=True):
        if residue is not None and residue.is_d:
            made.name = D_NAMES[residue.letter]
    return modeller.topology, positions


def add_hydrogens(
    modeller: app.Modeller, field: app.ForceField, variants: Sequence[str | None], seed: int, ph: float = 7.0
) -> None:
    """Add the hydrogens that OpenMM's Modeller gives, the same for the same seed.

    Neutral histidine that has neither a variant nor one of its two hydrogens is HIE, the usual choice of AMBER: OpenMM
    would choose by the hydrogen bonds of this one conformation, which moves.

    Args:
        modeller: is changed.
        field: the force field that the new hydrogens are relaxed in.
        variants: OpenMM's name of each residue's protonation; None as the pH has it.
        seed: of the hydrogens' first positions.
        ph: that the other residues are protonated at.
    """
    protonated = {bond[k] for bond in modeller.topology.bonds() for k in (0, 1) if bond[1 - k].element is _HYDROGEN}
    variants = list(variants)
    for residue in modeller.topology.residues():
        nitrogens = {atom for atom in residue.atoms() if atom.name in ("ND1", "NE2")}
        if residue.name == "HIS" and ph > _HISTIDINE_PH and not nitrogens & protonated:
            variants[residue.index] = variants[residue.index] or "HIE"
    state = random.getstate()  # addHydrogens draws start positions from Python's global generator
    random.seed(seed)
    try:
        modeller.addHydrogens(field, pH=ph, variants=variants, platform=_reference_platform())
    finally:
        random.setstate(state)


def _graph(sequence: PeptideSequence) -> Chem.Mol:
    """Heavy atoms and bonds, with the hand of D-residues and with disulfides.

    A cap is a glycine of a longer peptide that lost atoms, so its geometry is right from the start.
    """
    first = 2 if sequence.head else 1
    molecule = Chem.MolFromSequence("G" * bool(sequence.head) + sequence.letters + "G" * bool(sequence.tail))
    by_name = {
        (atom.GetPDBResidueInfo().GetResidueNumber(), atom.GetPDBResidueInfo().GetName().strip()): atom
        for atom in molecule.GetAtoms()
    }
    bridged = []
    for number, residue in enumerate(sequence.residues, start=first):
        if residue.is_d:
            for centre in ("CA", "CB") if residue.letter in "IT" else ("CA",):
                by_name[number, centre].InvertChirality()
        if residue.variant == "Cyx":
            bridged.append(by_name[number, "SG"].GetIdx())
    if not bridged:
        return molecule
    editable = Chem.RWMol(molecule)
    for one, other in zip(bridged[::2], bridged[1::2], strict=True):
        editable.AddBond(one, other, Chem.BondType.SINGLE)
    joined = editable.GetMol()
    Chem.SanitizeMol(joined)
    return joined


def _heavy_atoms(molecule: Chem.Mol, sequence: PeptideSequence) -> list[tuple[int, str, str, int]]:
    """Residue number, residue name, atom name and RDKit index of every heavy atom to keep, in PDB order."""
    heavy = [atom for atom in molecule.GetAtoms() if atom.GetAtomicNum() > 1]
    last = max(atom.GetPDBResidueInfo().GetResidueNumber() for atom in heavy)
    atoms = []
    for atom in heavy:
        info, place = atom.GetPDBResidueInfo(), atom.GetIdx()
        number, residue_name = info.GetResidueNumber(), info.GetResidueName().strip()
        name = info.GetName().strip()
        if sequence.head and number == 1:
            residue_name, name = "ACE", {"CA": "CH3", "C": "C", "O": "O"}.get(name, "")
        elif sequence.tail == "Nme" and number == last:
            residue_name, name = "NME", {"N": "N", "CA": "C"}.get(name, "")
        elif sequence.tail == "NH2" and number == last:
            residue_name, name = "NHE", {"N": "N"}.get(name, "")
        elif residue_name == "ILE" and name in ("CG1", "CG2"):
            # RDKit 2026.09 bonds CD1 to CG2; in the PDB's isoleucine the longer branch is CG1.
            bonded = [other.GetPDBResidueInfo() for other in atom.GetNeighbors() if other.GetAtomicNum() > 1]
            right = "CG1" if any(other.GetName().strip() == "CD1" for other in bonded) else "CG2"
            if right != name:
                name, place = right, place + (-1 if right == "CG1" else 1)
        if name:
            atoms.append((place, (number, residue_name, name, atom.GetIdx())))
    return [record for _, record in sorted(atoms)]


def usual_order(topology: Topology) -> list[int]:
    """The atoms of a topology as `Peptide` lists them; as they are, where it is none of its peptides."""
    as_they_are = list(range(topology.num_atoms))
    if topology.sequence is None or len(topology.residues) == 1:
        return as_they_are
    sequence = parse_sequence(topology.sequence)
    named = [(number - 1, name) for number, _, name, _ in _heavy_atoms(_graph(sequence), sequence)]
    order = []
    for heavy in (topology.atoms_by_name[residue].get(name) for residue, name in named):
        if heavy is not None:
            hydrogens = [atom for atom in topology.neighbours[heavy] if topology.elements[atom] == "H"]
            order += [heavy, *sorted(hydrogens, key=topology.atom_names.__getitem__)]
    return order if sorted(order) == as_they_are else as_they_are


def _standard_labels(topology: app.Topology, positions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Exchange positions where atoms that only geometry tells apart carry each other's names.

    IUPAC-IUBMB numbering (Markley et al., Pure Appl. Chem. 70, 117, 1998): seen from the branch nearer to
    the backbone, the other heavy branch, H2, H3 (or branch 1, branch 2, H; or three hydrogens by their numbers) turn
    clockwise; in planar groups number 1 is cis to the chain. Simulations hardly ever exchange them, so data sets must
    agree. Caps keep their hydrogens, as the shipped flow and reference of Ace-A-Nme have them.
    """
    positions = positions.copy()
    hydrogens: dict[Any, list[Any]] = {atom: [] for atom in topology.atoms()}
    heavy: dict[Any, list[Any]] = {atom: [] for atom in topology.atoms()}
    for a, b in topology.bonds():
        for atom, other in ((a, b), (b, a)):
            (hydrogens if other.element is app.element.hydrogen else heavy)[atom].append(other)

    def exchange(a: Any, b: Any) -> None:
        i = [a.index, *(h.index for h in hydrogens[a])]
        j = [b.index, *(h.index for h in hydrogens[b])]
        positions[i + j] = positions[j + i]

    def anticlockwise(centre: Any, *branches: Any) -> bool:
        return bool(signed_volumes(positions, [atom.index for atom in (centre, *branches)]) < 0.0)

    for residue in topology.residues():
        named = {atom.name: atom for atom in residue.atoms()}
        if residue.name in _BRANCHES:
            centre, first, second, hydrogen = (named[name] for name in _BRANCHES[residue.name])
            if anticlockwise(centre, first, second, hydrogen):
                exchange(first, second)
        for names in _CIS.get(residue.name, ()):
            *corners, second = (named[name] for name in names)
            if not is_cis(positions, [atom.index for atom in corners]):
                exchange(corners[-1], second)
        for centre in residue.atoms():
            own = sorted(hydrogens[centre], key=lambda atom: atom.name)
            if len(own) == 2 and len(heavy[centre]) == 2:
                outer = max(heavy[centre], key=lambda atom: _REMOTENESS.index(atom.name[1:2] or atom.name))
                if anticlockwise(centre, outer, *own):
                    exchange(*own)
            elif len(own) == 3 and residue.name not in CAPS and anticlockwise(centre, *own):
                exchange(*own[1:])
    return positions


def _all_trans(topology: app.Topology, positions: NDArray[np.float64]) -> bool:
    residues = [{atom.name: atom.index for atom in residue.atoms()} for residue in topology.residues()]
    for previous, this in pairwise(residues):
        before, after = previous.get("CA", previous.get("CH3")), this.get("CA", this.get("C"))
        # The nitrogen of an amide at the end has hydrogens alone.
        if after is not None and is_cis(positions, [before, previous["C"], this["N"], after]):
            return False
    return True


def _reference_platform() -> openmm.Platform:
    # The one platform whose result does not depend on the number of threads or the instruction set.
    return openmm.Platform.getPlatformByName("Reference")


def minimise(system: openmm.System, positions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Positions (n, 3) nm at a minimum of the System's energy, the same on every machine."""
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), _reference_platform())
    context.setPositions(positions)
    openmm.LocalEnergyMinimizer.minimize(context)
    state = context.getState(positions=True)
    return state.getPositions(asNumpy=True).value_in_unit(unit.nanometer).astype(np.float64)
