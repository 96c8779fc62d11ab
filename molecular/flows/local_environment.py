"""What stands around each atom to come: the atoms placed before it, seen from its own local frame."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from molecular.coordinates import TOKEN_SIZE
from molecular.coordinates.internal import InternalCoordinates, coordinate_kinds, place, token_mask
from molecular.coordinates.local_frames import frames_at, root_atoms
from molecular.coordinates.spherical import from_spherical
from molecular.flows.conditioning import tokens_in_order
from molecular.molecule.internal_context import ROWS_BEFORE_TOKENS, Column
from nflib.networks.conditioning import distinct_rows
from nflib.transforms import GaussianizeByKind

# Atoms lie some 0.11 to 0.15 nm from their parent, at about 109 degrees from its own parent: on a circle about this
# point of the frame's first axis, in nm.
CIRCLE = -0.04
# Centres and widths of the radial functions, nm: overlap, contact, hydrogen bonds, and how charges feel each other.
CENTRES = (0.10, 0.17, 0.24, 0.32, 0.42, 0.55, 0.75, 1.0)
RELATIVE_WIDTH = 0.25
# Azimuths about the axis are resolved to three maxima a turn, as staggered rotamers are.
HARMONICS = 3
NUM_ANGULAR = 2 + 2 * HARMONICS
# A step sums over all atoms before it; this keeps what the network sees of the order of one.
SCALE = 0.3


class Visit(NamedTuple):
    """A molecule's tokens in the order of a visit, for `LocalEnvironment`; rows are one, or one a sample.

    kinds: of each number, ``(b, T, 3)``, -1 at padding. offsets: of each circle, ``(b, T)``. level, references: of each
    token, ``(b, T)`` and ``(b, T, 3)``, the latter as places of atoms in the visit. channels: what an atom counts for,
    ``(b, n, K)``, zero at padding.
    """

    kinds: Tensor
    offsets: Tensor
    level: Tensor
    references: Tensor
    channels: Tensor


class LocalEnvironment(nn.Module):
    """The local environment of the atom to come, as `TokenFeatures`: a smoothed density of the atoms already placed.

    Before token t is drawn, the tokens before it say where its frame is and where all earlier atoms stand. Their
    density about the circle on which the new atom will lie, in that frame, is expanded in Gaussians of the distance
    times harmonics of the azimuth, in num_weights learned sums over the kinds of atoms, and handed to the network as
    ``channels`` features: exactly blind to rigid motion, and the same for every peptide. A transformer would have to
    find it from internal coordinates, through products of a dozen rotations.

    Args:
        coordinates: of the flow, which owns them.
        marginals: of the flow, which owns them.
        embedding: of a context's rows, shared with the conditions.
        column: of the context, the block's ordering, which must visit references first.
        embedding_channels: width of the embedding.
        channels: width of the network that reads the features.
        num_weights: learned sums over the kinds of atoms.
    """

    centres: Tensor

    def __init__(
        self,
        coordinates: InternalCoordinates,
        marginals: GaussianizeByKind,
        embedding: nn.Module,
        column: int,
        embedding_channels: int,
        channels: int,
        num_weights: int = 12,
    ):
        super().__init__()
        # In a tuple, lest they become parts of this module, too.
        self._fixed = (coordinates, marginals)
        self.embedding = embedding
        self.column = column
        self.weights = nn.Linear(embedding_channels, num_weights)
        self.num_features = num_weights * len(CENTRES) * NUM_ANGULAR
        last = nn.Linear(channels, channels)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.mlp = nn.Sequential(nn.Linear(self.num_features, channels), nn.GELU(), last)
        self.register_buffer("centres", torch.tensor(CENTRES), persistent=False)

    def encode_context(self, context: Tensor) -> Visit:
        """The molecules of a context, in the order of the visit."""
        context = distinct_rows(context)
        coordinates, _ = self._fixed
        rows = context[:, ROWS_BEFORE_TOKENS:]
        mask = token_mask(context)
        order = tokens_in_order(context, self.column)
        places = _of_atoms(order.argsort(-1))
        references = rows[..., [Column.P, Column.Q, Column.S]].clamp_min(0)
        references = places.gather(1, references.flatten(1)).view_as(references)
        harmless = torch.arange(3, device=context.device).expand_as(references)
        has_frame = mask & (torch.arange(rows.shape[1], device=context.device) > 0)
        references = torch.where(has_frame[..., None], references, harmless)
        level = torch.where(has_frame, rows[..., Column.LEVEL], 0)
        offsets = coordinates.offsets[torch.where(mask, rows[..., Column.KIND], 0)]
        channels = self.weights(self.embedding(context)) * (context[..., :1] > 0)
        atoms = _of_atoms(order)
        return Visit(
            coordinate_kinds(context).gather(1, order[..., None].expand(-1, -1, TOKEN_SIZE)),
            offsets.gather(1, order),
            level.gather(1, order),
            references.gather(1, order[..., None].expand(-1, -1, 3)),
            channels.gather(1, atoms[..., None].expand_as(channels)),
        )

    def new_memory(self, batch_size: int, num_tokens: int) -> Tensor:
        """Where the atoms stand, ``(B, n, 3)`` nm, in the order of the visit."""
        return self.centres.new_zeros(batch_size, num_tokens + ROWS_BEFORE_TOKENS, 3)

    def forward(self, previous: Tensor, start: int, memory: Tensor | None, visit: Visit) -> Tensor:
        """Features ``(B, L, channels)`` of the tokens that follow each of `previous`; see `TokenFeatures`."""
        count = len(previous)
        first = max(start - 1, 0)
        last = first + previous.shape[1]
        dtype = torch.promote_types(previous.dtype, torch.float32)
        if memory is None:
            known = previous.new_zeros(count, last + ROWS_BEFORE_TOKENS, 3, dtype=dtype)
        else:
            known = memory[:, : last + ROWS_BEFORE_TOKENS].to(dtype)
        placed = self._place(previous.to(dtype), first, known, visit)
        if memory is not None:
            memory[:, : last + ROWS_BEFORE_TOKENS] = placed
        return self._features(placed, start, last + 1, visit)

    def _place(self, tokens: Tensor, first: int, known: Tensor, visit: Visit) -> Tensor:
        """Puts the atoms of tokens ``first …`` among the known ones ``(B, n, 3)``."""
        count, length = tokens.shape[:2]
        if length == 0:
            return known
        _, marginals = self._fixed
        begin, last = max(first, 1), first + length
        kinds = visit.kinds[:, first:last].expand(count, -1, -1)
        spherical, _ = marginals.inverse_by_kind(tokens, kinds)
        # Only the molecule's first token is of another shape; any will do in its place.
        if first > 0:
            spherical = nn.functional.pad(spherical, (0, 0, 1, 0))
        displacements, _ = from_spherical(spherical, visit.offsets[:, begin:last])
        if first == 0:
            known = torch.cat([root_atoms(displacements[:, 0]), known[:, 3:]], dim=1)
        level = visit.level[:, begin:last].expand(count, -1)
        references = visit.references[:, begin:last].expand(count, -1, -1)
        return place(known, displacements[:, 1:], level, references, begin + ROWS_BEFORE_TOKENS)

    def _features(self, placed: Tensor, start: int, stop: int, visit: Visit) -> Tensor:
        """Of the targets ``start … stop``, from the atoms ``(B, n, 3)`` before each."""
        count, number = placed.shape[:2]
        references = visit.references[:, start:stop].expand(count, -1, -1)
        targets = torch.arange(start, stop, device=placed.device)
        if start == 0:
            targets, references = targets[1:], references[:, 1:]
        weights = visit.channels[:, :number].to(placed.dtype)
        if len(targets) == 0:
            features = placed.new_zeros(count, 0, self.num_features)
        else:
            sites = torch.arange(number, device=placed.device)
            before = sites < targets[:, None] + ROWS_BEFORE_TOKENS
            p, q, s = (placed.gather(1, reference[..., None].expand(-1, -1, 3)) for reference in references.unbind(-1))
            frames = frames_at(p, q, s)
            relative = placed[:, None] - p[:, :, None]
            basis = self._basis(relative @ frames.transpose(-1, -2), before)
            # (B, L, n, basis), (b, n, K) -> (B, L, basis, K)
            features = SCALE * (basis.transpose(-1, -2) @ weights[:, None]).flatten(-2)
        if start == 0:  # the first token is placed nowhere
            features = nn.functional.pad(features, (0, 0, 1, 0))
        return self.mlp(features.to(self.weights.weight.dtype))

    def _basis(self, local: Tensor, counts: Tensor) -> Tensor:
        """Functions ``(..., radial x angular)`` of points ``(..., 3)`` in a frame, nm; zero where `counts` is."""
        x, y, z = local.unbind(-1)
        x = x - CIRCLE
        distance = (x.square() + y.square() + z.square() + 1e-6).sqrt()
        centres = self.centres.to(local.dtype)
        radial = torch.exp(-0.5 * ((distance[..., None] - centres) / (RELATIVE_WIDTH * centres + 0.02)).square())
        radial = radial * counts[..., None]
        y, z = y / distance, z / distance
        angular = [torch.ones_like(x), x / distance]
        real, imaginary = y, z
        for _ in range(HARMONICS):
            angular += [real, imaginary]
            real, imaginary = real * y - imaginary * z, real * z + imaginary * y
        return (radial[..., :, None] * torch.stack(angular, dim=-1)[..., None, :]).flatten(-2)


def _of_atoms(order: Tensor) -> Tensor:
    """An order of tokens ``(b, T)`` as one of atoms ``(b, T + 2)``, whose first three are those of the first token."""
    root = torch.arange(ROWS_BEFORE_TOKENS, device=order.device).expand(len(order), ROWS_BEFORE_TOKENS)
    return torch.cat([root, order + ROWS_BEFORE_TOKENS], dim=1)
