"""What conditions a transferable peptide flow on its molecule: per-atom codes and orderings, padded in batches.

The codes are those of the released Prose weights (arXiv 2508.18175). A context is one integer tensor a molecule,
so that it batches, moves to a device and is stored like any other tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from molecular.molecule.orderings import PROSE_ORDERINGS, SIDE_CHAINS, named_residues, ordering

if TYPE_CHECKING:
    from molecular.molecule.topology import AnyTopology

# A code is the place in these alphabetical lists, counted from 1; 0 is padding.
_ATOM_TYPES = """
    C CA CB CD CD1 CD2 CE CE1 CE2 CE3 CG CG1 CG2 CH2 CZ CZ2 CZ3
    H HA HB HD HD1 HD2 HE HE1 HE2 HE3 HG HG1 HG2 HH HH1 HH2 HZ HZ2 HZ3
    N ND1 ND2 NE NE1 NE2 NH1 NH2 NZ O OD OE OG OG1 OH OXT SD SG
"""
ATOM_TYPES = tuple(_ATOM_TYPES.split())
RESIDUE_TYPES = tuple(sorted(SIDE_CHAINS))
_AROMATIC = {"HIS", "PHE", "TRP", "TYR"}


class Encoding(NamedTuple):
    """Integer codes of n atoms, each (n,) int64 and counted from 1.

    Args:
        atom_type: place in `ATOM_TYPES`.
        residue_type: place in `RESIDUE_TYPES`.
        residue_position: of the atom's residue, N- to C-terminus.
        sequence_length: in residues.
    """

    atom_type: Tensor
    residue_type: Tensor
    residue_position: Tensor
    sequence_length: Tensor


def encode(molecule: AnyTopology) -> Encoding:
    """The codes of each atom of an uncapped peptide of standard residues, in the topology's order of atoms.

    Atoms that a symmetry or a rotation exchanges share a type: HB2 and HB3 are HB, OD1 and OD2 of aspartate are OD.

    Raises:
        ValueError: a residue or an atom that `molecular.molecule.orderings.named_residues` refuses.

    >>> from molecular import Peptide
    >>> [ATOM_TYPES[code - 1] for code in encode(Peptide("AA")).atom_type[:6]]
    ['N', 'H', 'H', 'H', 'CA', 'HA']
    """
    residues = named_residues(molecule)
    rows = {
        index: (
            ATOM_TYPES.index(_atom_type(atom, residue.name)) + 1,
            RESIDUE_TYPES.index(residue.name) + 1,
            position,
            len(residues),
        )
        for position, residue in enumerate(residues, start=1)
        for atom, index in residue.atoms.items()
    }
    return Encoding(*torch.tensor([rows[index] for index in range(len(rows))]).T.contiguous())


def prose_context(molecule: AnyTopology, orderings: Sequence[str] = PROSE_ORDERINGS) -> Tensor:
    """The context of a `Prose` flow for one molecule of n atoms, (n, 4 + len(orderings)) int64.

    Columns: the four codes of `Encoding`, row i of atom i; then one column an ordering, whose row t is the
    atom visited t-th.

    Args:
        molecule: an uncapped peptide of standard residues.
        orderings: of the flow (`molecular.molecule.orderings.ORDERINGS`).

    Raises:
        ValueError: an unknown ordering, or a molecule that `molecular.molecule.orderings.named_residues` refuses.
    """
    return torch.stack([*encode(molecule), *(ordering(molecule, name) for name in orderings)], dim=-1)


def pad(contexts: Sequence[Tensor]) -> Tensor:
    """Contexts (n, k) of several molecules as one batch (B, n_max, k).

    Beyond a molecule's own atoms its codes are 0 and its orderings the identity, so that each stays a
    permutation that visits padding last. `atom_mask` tells atoms from padding.

    Raises:
        ValueError: no contexts, or contexts that are not of one number of columns.
    """
    if not contexts:
        raise ValueError("no contexts to pad; give at least one.")
    shapes = [tuple(context.shape) for context in contexts]
    codes = len(Encoding._fields)
    if any(len(shape) != 2 or shape[1] < codes or shape[1] != shapes[0][-1] for shape in shapes):
        raise ValueError(
            f"contexts have shapes {shapes}; each must be (atoms, {codes} + orderings), with the same orderings."
        )
    longest = max(length for length, _ in shapes)
    batch = contexts[0].new_zeros(len(contexts), longest, shapes[0][1])
    batch[..., codes:] = torch.arange(longest, dtype=batch.dtype, device=batch.device)[:, None]
    for row, context in zip(batch, contexts, strict=True):
        row[: len(context)] = context
    return batch


def atom_mask(context: Tensor) -> Tensor:
    """The mask ``(B, n)`` of a context's atoms that are no padding; the same in every ordering, as padding is last."""
    return context[..., 0] > 0


def _atom_type(atom: str, residue: str) -> str:
    # The last digit of a hydrogen numbers it on its heavy atom, except on aromatic rings: there it is the
    # heavy atom's own. (The hydroxyl hydrogen HG1 of threonine loses its digit too, as in the released codes.)
    if atom[0] == "H" and atom[-1].isdigit() and not (residue in _AROMATIC and atom[1:2] in "DEZH"):
        return atom[:-1]
    if atom[:2] in ("OD", "OE"):
        return atom[:-1]
    return atom
