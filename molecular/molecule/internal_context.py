"""What a flow on internal coordinates is told of its molecule: codes, kinds, frames and orderings, one integer tensor.

Rows stand in z-matrix order, along the bonds. Beside the codes of `features` they say where each atom's
frame is, so that one vectorised pass maps a padded batch of different molecules.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from molecular.molecule.features import Encoding, encode
from molecular.molecule.kinds import ROOT, kind_number, place_of, site_number
from molecular.molecule.orderings import check_orderings, named_residues, ordering
from molecular.molecule.topology import Topology
from molecular.molecule.z_matrix import z_matrix_order

if TYPE_CHECKING:
    from molecular.molecule.topology import AnyTopology

ORDERINGS = ("z-matrix", "z-matrix_flip", "heavy-first", "heavy-first_flip", "residues", "residues_flip")


class Column(IntEnum):
    """The columns of a context; the codes of `Encoding` stand before these, orderings of the tokens behind.

    The first of them, before the orderings, is ATOM: which of the molecule's atoms a row is of. P, Q, S are the rows of
    its references, LEVEL how deep it lies: rows refer to lower levels alone.
    """

    PREVIOUS_RESIDUE = len(Encoding._fields)
    NEXT_RESIDUE = PREVIOUS_RESIDUE + 1
    SITE = PREVIOUS_RESIDUE + 2
    KIND = PREVIOUS_RESIDUE + 3
    P = PREVIOUS_RESIDUE + 4
    Q = PREVIOUS_RESIDUE + 5
    S = PREVIOUS_RESIDUE + 6
    LEVEL = PREVIOUS_RESIDUE + 7
    ATOM = PREVIOUS_RESIDUE + 8


NUM_COLUMNS = len(Encoding._fields) + len(Column)
# The first three rows make one token; row t + 2 is that of token t.
ROWS_BEFORE_TOKENS = 2


def internal_context(molecule: AnyTopology, orderings: Sequence[str] = ORDERINGS[:2]) -> Tensor:
    """The context of an `InternalProse` flow for one molecule of n atoms, (n, NUM_COLUMNS + len(orderings)) int64.

    Columns: `Encoding`, `Column`, then one an ordering of the tokens: "z-matrix" along the bonds, "heavy-first" or
    "residues", one after the other; each also backwards ("_flip"). Its row t + 2 holds the row of the token visited
    t-th. Where atoms stand in the topology makes no difference but to column ATOM.

    Args:
        molecule: an uncapped peptide of standard residues.
        orderings: of the flow, of `ORDERINGS`.

    Raises:
        ValueError: an unknown ordering, or a molecule that `molecular.molecule.orderings.named_residues` refuses.
    """
    residues = named_residues(molecule)
    # Atoms by their names, whatever the topology's order: the same order for the same peptide.
    atoms = ordering(molecule, "n2c_residue-by-residue_standard")
    names = {index: (name, number) for number, residue in enumerate(residues) for name, index in residue.atoms.items()}
    elements = [names[atom][0][0] for atom in atoms.tolist()]
    place = atoms.argsort().tolist()
    bonds = [(place[a], place[b]) for a, b in Topology.of(molecule).bonds]
    z_matrix = z_matrix_order(bonds, elements, root=place[residues[0].atoms["CA"]])
    row_of = z_matrix.order.argsort().tolist()
    visited = atoms[z_matrix.order]

    codes = torch.stack([*encode(molecule)], dim=-1)
    types = [0, *(int(codes[residue.atoms["CA"], 1]) for residue in residues), 0]
    rows: list[list[int]] = []
    for row, (atom, references) in enumerate(zip(visited.tolist(), z_matrix.references.tolist(), strict=True)):
        name, number = names[atom]
        residue = residues[number].name
        where = ROOT if row == ROWS_BEFORE_TOKENS else place_of(number + 1, len(residues))
        # Rows 0 to 2 have no references; with these, they are harmless.
        frame = [row_of[reference] for reference in references] if row > ROWS_BEFORE_TOKENS else [0, 1, 2]
        level = 1 + max(rows[reference][-2] for reference in frame) if row > ROWS_BEFORE_TOKENS else 0
        site, kind = site_number(residue, name), kind_number(residue, name, where)
        rows.append([types[number], types[number + 2], site, kind, *frame, level, atom])
    numbers = {
        "z-matrix": list(range(len(rows))),
        "heavy-first": [int(names[atom][0][0] == "H") for atom in visited.tolist()],
        "residues": [names[atom][1] for atom in visited.tolist()],
    }
    visits = [_visit(numbers, name) for name in orderings]
    return torch.cat([codes[visited], torch.tensor(rows), *visits], dim=-1)


def _visit(numbers: dict[str, list[int]], name: str) -> Tensor:
    """The column of an ordering: the tokens' rows, sorted by the ordering's numbers."""
    check_orderings([name], ORDERINGS)
    kind, _, flip = name.partition("_")
    key = numbers[kind]
    tokens = sorted(range(ROWS_BEFORE_TOKENS, len(key)), key=key.__getitem__)
    tokens = tokens[::-1] if flip else tokens
    return torch.tensor([*range(ROWS_BEFORE_TOKENS), *tokens])[:, None]
