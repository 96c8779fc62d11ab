"""Padded batches of different molecules without rigid motion: local frames and spherical tokens, by the context."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from molecular.coordinates import TOKEN_SIZE
from molecular.coordinates.local_frames import frames_at, root_atoms, root_token
from molecular.coordinates.spherical import from_spherical, to_spherical
from molecular.molecule.features import atom_mask
from molecular.molecule.internal_context import ROWS_BEFORE_TOKENS, Column
from nflib.transforms import ClosedForm

_FIRST = ROWS_BEFORE_TOKENS + 1  # the first row that has a frame


def token_mask(context: Tensor) -> Tensor:
    """The mask ``(B, n - 2)`` of a context's tokens that are no padding."""
    return context[:, ROWS_BEFORE_TOKENS:, 0] > 0


def coordinate_kinds(context: Tensor) -> Tensor:
    """The kind of each number of the tokens, ``(B, n - 2, 3)``: three a kind of `molecular.molecule.kinds`.

    -1 at padding.
    """
    kinds = TOKEN_SIZE * context[:, ROWS_BEFORE_TOKENS:, Column.KIND, None]
    kinds = kinds + torch.arange(TOKEN_SIZE, device=context.device)
    return kinds.masked_fill(~token_mask(context).unsqueeze(-1), -1)


class InternalCoordinates(ClosedForm):
    """Internal coordinates of a padded batch: positions ``(B, n, 3)`` in nm <-> tokens ``(B, n - 2, 3)``.

    Each molecule goes through `LocalFrames`, then `Spherical`.

    The context (`internal_context`, padded) says of each row its atom and references; padding is zero on both sides and
    carries no density. Forward is one vectorised pass; the inverse places all atoms of a level at once. A
    kind's circles are cut at its entry of `offsets`, half a turn away, ``(num_kinds,)`` radians.

    Args:
        num_kinds: of atoms (`molecular.molecule.kinds.KINDS`).

    Raises:
        ValueError: in use, positions of another shape than the context says.
    """

    uses_context = True
    offsets: Tensor

    def __init__(self, num_kinds: int) -> None:
        super().__init__()
        self.register_buffer("offsets", torch.zeros(num_kinds))

    def input_shape(self, output_shape: Sequence[int]) -> tuple[int, ...]:
        return (output_shape[0] + 2, 3)

    def forward(self, inputs: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        mask = atom_mask(context)
        _check(inputs, mask.shape[1], "positions")
        in_order = inputs.gather(1, _wide(context[..., Column.ATOM]))
        first = root_token(in_order[:, :3])
        r01, _, rho2 = first.unbind(-1)
        p, q, s = (in_order.gather(1, _wide(reference)) for reference in self._references(context, mask))
        rest = (frames_at(p, q, s) * (in_order[:, _FIRST:] - p)[..., None, :]).sum(-1)
        # Any token with finite coordinates will do at padding; it is set to zero below.
        rest = torch.where(mask[:, _FIRST:, None], rest, torch.ones_like(rest))
        tokens = torch.cat([first[:, None], rest], dim=1)
        spherical, logabsdet = to_spherical(tokens, self._offsets(context, inputs.dtype))
        kept = mask[:, ROWS_BEFORE_TOKENS:]
        total = torch.where(kept, logabsdet, 0.0).sum(-1) - 2.0 * r01.log() - rho2.log()
        return torch.where(kept[..., None], spherical, 0.0), total

    def inverse(self, inputs: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        mask = atom_mask(context)
        _check(inputs, mask.shape[1] - ROWS_BEFORE_TOKENS, "tokens")
        tokens, logabsdet = from_spherical(inputs, self._offsets(context, inputs.dtype))
        logabsdet = torch.where(mask[:, ROWS_BEFORE_TOKENS:], logabsdet, 0.0).sum(-1)
        r01, _, rho2 = tokens[:, 0].unbind(-1)
        placed = torch.nn.functional.pad(root_atoms(tokens[:, 0]), (0, 0, 0, mask.shape[1] - _FIRST))
        level = torch.where(mask, context[..., Column.LEVEL], 0)
        references = context[..., [Column.P, Column.Q, Column.S]]
        placed = place(placed, tokens[:, 1:], level[:, _FIRST:], references[:, _FIRST:], _FIRST)
        outputs = torch.zeros_like(placed).scatter(1, _wide(context[..., Column.ATOM]), placed)
        return outputs, logabsdet + 2.0 * r01.log() + rho2.log()

    def _offsets(self, context: Tensor, dtype: torch.dtype) -> Tensor:
        """Of all tokens but the first, which has no circle; zero at padding."""
        mask = atom_mask(context)[:, _FIRST:]
        kinds = torch.where(mask, context[:, _FIRST:, Column.KIND], 0)
        return self.offsets.to(dtype)[kinds]

    @staticmethod
    def _references(context: Tensor, mask: Tensor) -> list[Tensor]:
        """The rows p, q, s of each row from _FIRST on; padding refers to the first three, which span a frame."""
        padding = ~mask[:, _FIRST:]
        columns = (Column.P, Column.Q, Column.S)
        return [context[:, _FIRST:, column].masked_fill(padding, row) for row, column in enumerate(columns)]


def place(placed: Tensor, displacements: Tensor, level: Tensor, references: Tensor, first: int) -> Tensor:
    """Atoms ``(B, n, 3)``, of which those from `first` on are put where their displacements in their frames say.

    displacements ``(B, m, 3)`` nm. level ``(B, m)``: atoms refer to lower ones alone, and all of a level are placed at
    once; those of level 0 stay. references ``(B, m, 3)``: which atoms span each frame.
    """
    for depth in level.unique().tolist():
        if depth == 0:
            continue
        sample, token = (level == depth).nonzero(as_tuple=True)
        p, q, s = (placed[sample, reference] for reference in references[sample, token].unbind(-1))
        atoms = p + (displacements[sample, token, :, None] * frames_at(p, q, s)).sum(-2)
        placed = placed.index_put((sample, token + first), atoms)
    return placed


def _wide(rows: Tensor) -> Tensor:
    """Row numbers ``(B, m)`` as an index for gathering points ``(B, m, 3)``."""
    return rows.unsqueeze(-1).expand(-1, -1, 3)


def _check(inputs: Tensor, length: int, what: str) -> None:
    if inputs.dim() != 3 or tuple(inputs.shape[1:]) != (length, 3):
        raise ValueError(
            f"{what} of shape {tuple(inputs.shape)} do not fit the context; expected (batch, {length}, 3)."
        )
