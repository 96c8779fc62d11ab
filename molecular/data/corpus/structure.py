"""The structure files of a corpus: which atoms a peptide's positions belong to."""

from pathlib import Path

import numpy as np
from openmm import app, unit

from molecular.molecule.sequences import parse_sequence
from molecular.molecule.structure_checks import named_by_hand
from molecular.molecule.topology import CAPS, RESIDUES, Topology
from nflib.errors import first_line


def read_structure(path: Path, sequence: str) -> app.Topology:
    """The topology of a PDB file that must hold the L-peptide ``sequence``.

    Raises FileNotFoundError for no such file; ValueError for one that is no PDB file, for another sequence than the one
    it is to be, and for D-residues, by their letters, names or handedness.
    """
    parsed = parse_sequence(sequence, letters=True)
    if not path.is_file():
        raise FileNotFoundError(f"there is no structure {path} of {sequence}; frames need their PDB file.")
    try:
        file = app.PDBFile(str(path))
    except Exception as error:  # the parser fails in as many ways as files are broken
        raise ValueError(f"{path} is no PDB file that can be read ({first_line(error)}).") from error
    letters, caps = [], 0
    for residue in file.topology.residues():
        if residue.name in CAPS:
            caps += 1
            continue
        known = RESIDUES.get(residue.name)
        if known is not None and known.is_d:
            raise ValueError(f"{path}: residue {residue.name} is a D-amino acid; only L-peptides are supported.")
        letters.append("?" if known is None else known.letter)
    if "".join(letters) != parsed.letters or caps != bool(parsed.head) + bool(parsed.tail):
        raise ValueError(f"{path} holds the residues {''.join(letters)}, not those of {sequence}.")
    positions = np.array(file.getPositions(asNumpy=True).value_in_unit(unit.nanometer))
    named = Topology.of(file.topology)
    for residue, right in zip(named.residues, named_by_hand(named, positions).residues, strict=True):
        if residue != right:
            raise ValueError(
                f"{path}: residue {residue.number}, {residue.name}, has the handedness of {right.name}; only "
                "L-peptides are supported."
            )
    return file.topology
