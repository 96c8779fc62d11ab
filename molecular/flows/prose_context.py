"""How a Prose network reads its context, the integer tensor of `prose_context`: codes, padding and orderings."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from molecular.molecule.features import ATOM_TYPES, RESIDUE_TYPES, Encoding, atom_mask
from nflib.networks.conditioning import Lookahead, distinct_rows
from nflib.networks.positions import SinusoidalEmbedding

NUM_CODES = len(Encoding._fields)
# The base of the rates at which the released model encodes positions and lengths.
_BASE = 1000.0


class AtomMask(nn.Module):
    """`atom_mask` as a module."""

    def forward(self, context: Tensor) -> Tensor:
        return atom_mask(context)


def atoms_in_order(context: Tensor, column: int) -> Tensor:
    """The ordering ``(B, n)`` that a column of the context holds."""
    return context[..., column]


class AtomEmbedding(nn.Module):
    """Features of atoms from their codes ``(B, n, 4)``: learned ones of the types, sines and cosines of the numbers.

    Returns ``(B, n, channels)``, zero at padding. Raises ValueError for an odd number of channels, or fewer types than
    there are.
    """

    def __init__(self, channels: int, num_atom_types: int, num_residue_types: int):
        super().__init__()
        if num_atom_types <= len(ATOM_TYPES) or num_residue_types <= len(RESIDUE_TYPES):
            raise ValueError(
                f"the embeddings need room for padding and {len(ATOM_TYPES)} atom types and {len(RESIDUE_TYPES)} "
                f"residue types, but have {num_atom_types} and {num_residue_types}."
            )
        self.atom_type = nn.Embedding(num_atom_types, channels)
        self.residue_type = nn.Embedding(num_residue_types, channels)
        self.number = SinusoidalEmbedding(channels, _BASE)
        self.mlp = nn.Sequential(nn.Linear(NUM_CODES * channels, channels), nn.GELU(), nn.Linear(channels, channels))

    def forward(self, codes: Tensor) -> Tensor:
        atom_type, residue_type, residue_position, sequence_length = codes.unbind(-1)
        parts = [
            self.atom_type(atom_type),
            self.residue_type(residue_type),
            self.number(residue_position),
            self.number(sequence_length),
        ]
        return self.mlp(torch.cat(parts, dim=-1)).masked_fill((atom_type == 0).unsqueeze(-1), 0.0)


class VisitedConditions(nn.Module):
    """The condition ``(B or 1, n, channels)`` of each atom in the order of a block's visit, looking ahead by one.

    embedding: shared by all blocks. column: of the context, the block's ordering.
    """

    def __init__(self, embedding: AtomEmbedding, column: int, channels: int):
        super().__init__()
        self.embedding = embedding
        self.column = column
        self.lookahead = Lookahead(channels, channels)

    def forward(self, context: Tensor) -> Tensor:
        context = distinct_rows(context)
        order = atoms_in_order(context, self.column)
        codes = context[..., :NUM_CODES]
        visited = codes.gather(1, order.unsqueeze(-1).expand_as(codes))
        return self.lookahead(self.embedding(visited))


class CheckedContext(nn.Module):
    """Passes a context on, once it is checked: a wrong one would often give a density, but of nothing.

    num_codes: how many columns stand before the orderings. Raises ValueError for what `Prose` says.
    """

    def __init__(
        self,
        num_orderings: int,
        max_atoms: int,
        num_atom_types: int,
        num_residue_types: int,
        *,
        num_codes: int = NUM_CODES,
    ):
        super().__init__()
        self.num_codes = num_codes
        self.width = num_codes + num_orderings
        self.max_atoms = max_atoms
        self.num_atom_types = num_atom_types
        self.num_residue_types = num_residue_types

    def forward(self, context: Tensor | None) -> Tensor:
        if context is None:
            raise ValueError("a Prose flow needs the context that says which molecule; pass flow.context(peptide).")
        if context.dim() != 3 or context.shape[-1] != self.width or context.dtype != torch.int64:
            raise ValueError(
                f"expected a context of int64 numbers, (batch, atoms, {self.width}), got {context.dtype}, "
                f"{tuple(context.shape)}; make it by flow.context(peptide)."
            )
        if context.shape[1] > self.max_atoms:
            raise ValueError(
                f"a molecule of {context.shape[1]} atoms is too long for this flow, which takes {self.max_atoms}; "
                "choose a shorter one, or train a flow with a larger max_atoms."
            )
        if context.device.type != "meta":
            self._check_rows(distinct_rows(context))
        return context

    def _check_rows(self, context: Tensor) -> None:
        codes, orderings = context[..., : self.num_codes], context[..., self.num_codes :]
        limits = codes.new_tensor([self.num_atom_types, self.num_residue_types])
        if bool((codes < 0).any() | (codes[..., :2] >= limits).any()):
            raise ValueError("a code of the context is out of range; make it by flow.context(peptide).")
        places = orderings.clamp(0, context.shape[1] - 1)
        visited = torch.zeros_like(orderings).scatter_(1, places, 1)
        mask = (codes[..., :1] > 0).expand_as(orderings)
        is_permutation = visited.all() & (places == orderings).all()
        pads_last = (mask[:, 1:] <= mask[:, :-1]).all() & (mask.gather(1, places) == mask).all()
        if not bool(is_permutation & pads_last):
            raise ValueError(
                "an ordering of the context is no permutation of its atoms with padding last; make the context by "
                "flow.context(peptides), or molecular.molecule.features.pad."
            )
