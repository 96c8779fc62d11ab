"""In which order an autoregressive flow visits the atoms of a peptide: the orderings of Prose (arXiv 2508.18175)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import product
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from molecular.molecule.topology import Topology

if TYPE_CHECKING:
    from molecular.molecule.topology import AnyTopology

# One ordering a block of the released model, in the order of its blocks.
PROSE_ORDERINGS = (
    "n2c_backbone-first_standard",
    "n2c_residue-by-residue_standard_flip",
    "n2c_backbone-first_standard_flip",
    "n2c_residue-by-residue_standard",
    "n2c_backbone-first_variant",
    "n2c_residue-by-residue_variant_flip",
    "n2c_backbone-first_variant_flip",
    "n2c_residue-by-residue_variant",
)
ORDERINGS = tuple(
    "_".join(parts) + flip
    for *parts, flip in product(
        ("n2c", "c2n"), ("backbone-first", "residue-by-residue"), ("standard", "variant"), ("", "_flip")
    )
)

# Outwards from CA, each heavy atom before its hydrogens. What follows the first bar are branches, or
# the atoms around a ring: the variant takes them from the last to the first.
SIDE_CHAINS = {
    "ALA": "CB HB1 HB2 HB3",
    "ARG": "CB HB2 HB3 CG HG2 HG3 CD HD2 HD3 NE HE CZ NH1 HH11 HH12 NH2 HH21 HH22",
    "ASN": "CB HB2 HB3 CG OD1 ND2 HD21 HD22",
    "ASP": "CB HB2 HB3 CG OD1 OD2",
    "CYS": "CB HB2 HB3 SG HG",
    "GLN": "CB HB2 HB3 CG HG2 HG3 CD OE1 NE2 HE21 HE22",
    "GLU": "CB HB2 HB3 CG HG2 HG3 CD OE1 OE2",
    "GLY": "",
    "HIS": "CB HB2 HB3 CG | ND1 | CE1 HE1 | NE2 HE2 | CD2 HD2",
    "ILE": "CB HB | CG2 HG21 HG22 HG23 | CG1 HG12 HG13 CD1 HD11 HD12 HD13",
    "LEU": "CB HB2 HB3 CG HG | CD1 HD11 HD12 HD13 | CD2 HD21 HD22 HD23",
    "LYS": "CB HB2 HB3 CG HG2 HG3 CD HD2 HD3 CE HE2 HE3 NZ HZ1 HZ2 HZ3",
    "MET": "CB HB2 HB3 CG HG2 HG3 SD CE HE1 HE2 HE3",
    "PHE": "CB HB2 HB3 CG | CD1 HD1 | CE1 HE1 | CZ HZ | CE2 HE2 | CD2 HD2",
    "PRO": "| CB HB2 HB3 | CG HG2 HG3 | CD HD2 HD3",
    "SER": "CB HB2 HB3 OG HG",
    "THR": "CB HB | OG1 HG1 | CG2 HG21 HG22 HG23",
    "TRP": "CB HB2 HB3 CG | CD1 HD1 | NE1 HE1 | CE2 | CZ2 HZ2 | CH2 HH2 | CZ3 HZ3 | CE3 HE3 | CD2",
    "TYR": "CB HB2 HB3 CG | CD1 HD1 | CE1 HE1 | CZ OH HH | CE2 HE2 | CD2 HD2",
    "VAL": "CB HB | CG1 HG11 HG12 HG13 | CG2 HG21 HG22 HG23",
}
_ALIASES = {"HIE": "HIS"}

# Backbone atoms visited before and after the side chain; a residue has those that its kind and place give it.
_BACKBONE = {
    "n2c": ("N H H2 H3 CA HA HA2 HA3", "C O OXT"),
    "c2n": ("OXT C O CA HA HA2 HA3", "N H H2 H3"),
}
_BACKBONE_HEAVY = {"N", "CA", "C", "O", "OXT"}


class NamedResidue(NamedTuple):
    """A standard residue.

    Args:
        name: three letters.
        atoms: the index of each of its atoms, by name.
    """

    name: str
    atoms: dict[str, int]


def named_residues(molecule: AnyTopology) -> list[NamedResidue]:
    """The residues of an uncapped peptide, N- to C-terminus, each checked to have exactly its atoms.

    Histidine is HIE, the ends are charged: what `molecular.Peptide` builds.

    Raises:
        ValueError: no molecule or no residues, a residue that is not one of the 20 (caps included), a missing,
            unknown or doubled atom.
    """
    topology = Topology.of(molecule)
    residues = []
    for number, (residue, atoms) in enumerate(zip(topology.residues, topology.atoms_by_name, strict=True), start=1):
        name = _ALIASES.get(residue.name, residue.name)
        if name not in SIDE_CHAINS:
            raise ValueError(
                f"residue {number} of the topology is {residue.name}, which Prose's features do not know;"
                f" the residues are {', '.join(SIDE_CHAINS)}, without caps."
            )
        expected = Counter(residue_atoms(name, first=number == 1, last=number == len(topology.residues)))
        members = (atom for atom, owner in enumerate(topology.residue_indices) if owner == number - 1)
        found = Counter(topology.atom_names[atom] for atom in members)
        if found != expected:
            lacks, excess = sorted(expected - found), sorted(found - expected)
            raise ValueError(
                f"residue {number} of the topology, {residue.name}, lacks {', '.join(lacks) or 'no atom'} and has"
                f" {', '.join(excess) or 'no atom'} beyond those of {name} at its place in a chain with charged"
                " ends (histidine: HIE); rename or rebuild it, for example with molecular.Peptide."
            )
        residues.append(NamedResidue(name, atoms))
    return residues


def check_orderings(names: Sequence[str], known: Sequence[str] = ORDERINGS) -> None:
    """Raise ValueError where there is no name, or one that is not known."""
    if not names:
        raise ValueError(f"orderings must name at least one of {', '.join(known)}.")
    for name in names:
        if name not in known:
            raise ValueError(f"unknown ordering {name!r}; the orderings are {', '.join(known)}.")


def ordering(molecule: AnyTopology, name: str) -> Tensor:
    """The order in which an autoregressive flow visits a peptide's atoms, (n,) int64: entry t is the t-th atom's index.

    The name has up to four parts, joined by underscores: ``n2c`` or ``c2n``, the direction along the chain;
    ``residue-by-residue``, or ``backbone-first``: the heavy atoms of the whole backbone, then the rest;
    ``standard`` or ``variant``, which turns rings and branches of side chains the other way round;
    and ``flip``, the whole visit backwards. `ORDERINGS` lists all, `PROSE_ORDERINGS` those of the released model.

    Args:
        molecule: an uncapped peptide of standard residues.
        name: of the ordering.

    Raises:
        ValueError: an unknown ordering, or a molecule that `named_residues` refuses.

    >>> from molecular import Peptide
    >>> ordering(Peptide("AA"), "n2c_backbone-first_standard")[:6]  # N CA C O, N CA
    tensor([ 0,  4,  6,  7, 12, 14])
    """
    check_orderings([name])
    direction, scope, side_chain, *flip = name.split("_")
    residues = named_residues(molecule)
    if direction == "c2n":
        residues.reverse()
    before, after = (names.split() for names in _BACKBONE[direction])
    visit = [
        (atom, residue.atoms[atom])
        for residue in residues
        for atom in (*before, *_side_chain(residue.name, side_chain), *after)
        if atom in residue.atoms
    ]
    if scope == "backbone-first":  # sorting is stable: both halves keep the order of residue by residue
        visit.sort(key=lambda atom: atom[0] not in _BACKBONE_HEAVY)
    if flip:
        visit.reverse()
    return torch.tensor([index for _, index in visit])


def _side_chain(residue: str, which: str) -> list[str]:
    stem, *parts = SIDE_CHAINS[residue].split("|")
    if which == "variant":
        parts.reverse()
    return " ".join((stem, *parts)).split()


def residue_atoms(name: str, first: bool, last: bool) -> list[str]:
    """Names of a residue's atoms; first, last: at the ends of a chain, which are charged."""
    amine = [*([] if name == "PRO" else ["H"]), *(["H2", "H3"] if first else [])]
    alpha = ["HA2", "HA3"] if name == "GLY" else ["HA"]
    return ["N", *amine, "CA", *alpha, *_side_chain(name, "standard"), "C", "O", *(["OXT"] if last else [])]
