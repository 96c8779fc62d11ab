"""How a network on internal coordinates reads its context: what each token is about, in the order of a visit."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from molecular.coordinates.internal import token_mask
from molecular.flows.prose_context import NUM_CODES, AtomEmbedding, CheckedContext
from molecular.molecule.internal_context import NUM_COLUMNS, ROWS_BEFORE_TOKENS, Column
from molecular.molecule.kinds import KINDS, SITES
from nflib.networks.conditioning import distinct_rows


class TokenMask(nn.Module):
    """The mask ``(B, n - 2)`` of a context's tokens that are no padding, as in every ordering."""

    def forward(self, context: Tensor) -> Tensor:
        return token_mask(context)


def tokens_in_order(context: Tensor, column: int) -> Tensor:
    """The tokens ``(B, n - 2)`` as the ordering in a column of the context lists them."""
    return context[:, ROWS_BEFORE_TOKENS:, column] - ROWS_BEFORE_TOKENS


class SiteEmbedding(nn.Module):
    """Features ``(B, n, channels)`` of a context's rows: Prose's `AtomEmbedding`, and learned vectors of the site and,
    with neighbours, of the residues before and behind; zero at padding."""

    def __init__(self, channels: int, num_atom_types: int, num_residue_types: int, neighbours: bool = True):
        super().__init__()
        self.atom = AtomEmbedding(channels, num_atom_types, num_residue_types)
        self.site = nn.Embedding(len(SITES) + 1, channels)
        self.previous_residue = nn.Embedding(num_residue_types, channels) if neighbours else None
        self.next_residue = nn.Embedding(num_residue_types, channels) if neighbours else None

    def forward(self, context: Tensor) -> Tensor:
        mask = context[..., 0] > 0
        known = context.masked_fill(~mask.unsqueeze(-1), 0)
        features = self.atom(known[..., :NUM_CODES]) + self.site(known[..., Column.SITE])
        if self.previous_residue is not None and self.next_residue is not None:
            features = features + self.previous_residue(known[..., Column.PREVIOUS_RESIDUE])
            features = features + self.next_residue(known[..., Column.NEXT_RESIDUE])
        return features.masked_fill(~mask.unsqueeze(-1), 0.0)


class TargetConditions(nn.Module):
    """The condition ``(B or 1, n - 2, channels)`` of each step of a visit: of the token to come and of the one before.

    For a network with a start token, whose step t reads token t - 1 (at first nothing) and gives the parameters of t.
    embedding: shared by all blocks. column: of the context, the block's ordering.
    """

    def __init__(self, embedding: SiteEmbedding, column: int, channels: int):
        super().__init__()
        self.embedding = embedding
        self.column = column
        self.mlp = nn.Sequential(nn.Linear(2 * channels, channels), nn.GELU(), nn.Linear(channels, channels))

    def forward(self, context: Tensor) -> Tensor:
        context = distinct_rows(context)
        features = self.embedding(context)[:, ROWS_BEFORE_TOKENS:]
        order = tokens_in_order(context, self.column)
        target = features.gather(1, order.unsqueeze(-1).expand_as(features))
        before = nn.functional.pad(target[:, :-1], (0, 0, 1, 0))
        return self.mlp(torch.cat([before, target], dim=-1))


class CheckedInternalContext(CheckedContext):
    """`CheckedContext` for the wider context of `molecular.molecule.internal_context`."""

    def __init__(self, num_orderings: int, max_atoms: int, num_atom_types: int, num_residue_types: int):
        # The column of atoms is a permutation with padding last, like the orderings behind it.
        super().__init__(num_orderings + 1, max_atoms, num_atom_types, num_residue_types, num_codes=NUM_COLUMNS - 1)

    def _check_rows(self, context: Tensor) -> None:
        super()._check_rows(context)
        mask = context[..., :1] > 0
        kinds = context[..., [Column.SITE, Column.KIND]]
        in_range = (kinds <= kinds.new_tensor([len(SITES), len(KINDS) - 1])) | ~mask
        rows = torch.arange(context.shape[1], device=context.device)[:, None].clamp_min(ROWS_BEFORE_TOKENS + 1)
        earlier = (context[..., [Column.P, Column.Q, Column.S]] < rows) | ~mask
        if not bool(in_range.all() & earlier.all()):
            raise ValueError("a row of the context has no frame or kind; make the context by flow.context(peptides).")
