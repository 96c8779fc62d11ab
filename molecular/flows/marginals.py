"""Fits the fixed part of a flow on internal coordinates, kind by kind, to conformations of many molecules."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from molecular.coordinates import TOKEN_SIZE
from molecular.coordinates.internal import InternalCoordinates, token_mask
from molecular.coordinates.spherical import torsion_cuts, wrapped
from molecular.molecule.internal_context import ROWS_BEFORE_TOKENS, Column
from molecular.molecule.kinds import KINDS, ROOT, fallbacks
from nflib.transforms import GaussianizeByKind

# Share of the samples whose torsion may be anything: small, as 3n - 6 coordinates each take it, yet never zero.
UNIFORM_FRACTION = 1e-4
# Fewer samples of a kind say less than many of its relatives.
MIN_DATA = 64
MAX_DATA = 8_000
# The torsions of fewer molecules leave out what the neighbours of an atom in others allow.
MIN_MOLECULES = 8


class _Seen(NamedTuple):
    """What the conformations say of a kind."""

    tokens: Tensor  # (N, 3), the circle of the torsion not yet cut
    num_molecules: int


@torch.no_grad()
def fit_marginals(
    coordinates: InternalCoordinates, marginals: GaussianizeByKind, batches: Sequence[dict[str, Tensor]]
) -> int:
    """Cut the circles and fit the marginals of every kind of coordinate to conformations, in place.

    Kinds without data, of residues or places that the corpus lacks, get the maps of their closest relatives. Torsions
    of kinds that fewer than MIN_MOLECULES have are fitted together with those of relatives that more have.

    Args:
        coordinates: of the flow.
        marginals: of the flow.
        batches: each "inputs" ``(B, n, 3)`` in nm with their "context".

    Returns:
        How many of the kinds had data of their own.

    Raises:
        ValueError: no data at all.
    """
    coordinates.offsets.zero_()
    seen = _by_kind(coordinates, batches)
    if not seen:
        raise ValueError("there are no conformations to fit the marginals to; give some of each molecule.")
    fitted: dict[tuple[int, ...], int] = {}
    for kind in range(len(KINDS)):
        sources = (kind,) if kind in seen else _closest(kind, seen)
        if sources in fitted:
            _copy(coordinates, marginals, fitted[sources], kind)
            continue
        tokens = _tokens(seen, sources)
        _fit(coordinates, marginals, kind, tokens[:, :2], _torsions(seen, kind, tokens[:, 2]))
        fitted[sources] = kind
    return len(seen)


def _torsions(seen: dict[int, _Seen], kind: int, own: Tensor) -> Tensor:
    """The torsions to fit a kind to: its own and, in the place of molecules that it lacks, those of its relatives."""
    if kind not in seen or KINDS[kind][2] == ROOT:
        return own
    lacking = MIN_MOLECULES - seen[kind].num_molecules
    widely_seen = [other for other in seen if seen[other].num_molecules >= MIN_MOLECULES]
    if lacking <= 0 or not widely_seen:
        return own
    relatives = _tokens(seen, _closest(kind, widely_seen))[:, 2]
    # In the ratio of molecules, whichever of the two there is less of.
    number = seen[kind].num_molecules
    return torch.cat([own[: len(relatives) * number // lacking], relatives[: len(own) * lacking // number]])


def _tokens(seen: dict[int, _Seen], kinds: tuple[int, ...]) -> Tensor:
    """The tokens ``(N, 3)`` of some kinds, an equal share of each."""
    share = -(-MAX_DATA // len(kinds))
    return torch.cat([seen[kind].tokens[:share] for kind in kinds])


def _fit(
    coordinates: InternalCoordinates, marginals: GaussianizeByKind, kind: int, planar: Tensor, torsions: Tensor
) -> None:
    """Fit one kind to its first two coordinates ``(N, 2)`` and its third ``(M,)``, whose circle is not yet cut."""
    has_torsion = KINDS[kind][2] != ROOT
    if has_torsion:
        coordinates.offsets[kind] = torsion_cuts(torsions[:, None])[0]
        torsions = wrapped(torsions - coordinates.offsets[kind])
    for coordinate, data in enumerate((*planar.unbind(-1), torsions)):
        interval = (-math.pi, math.pi) if has_torsion and coordinate == 2 else None
        marginals.fit_kind(TOKEN_SIZE * kind + coordinate, data, interval, uniform_fraction=UNIFORM_FRACTION)


def _copy(coordinates: InternalCoordinates, marginals: GaussianizeByKind, source: int, target: int) -> None:
    coordinates.offsets[target] = coordinates.offsets[source]
    for coordinate in range(TOKEN_SIZE):
        marginals.copy_kind(TOKEN_SIZE * source + coordinate, TOKEN_SIZE * target + coordinate)


def _by_kind(coordinates: InternalCoordinates, batches: Sequence[dict[str, Tensor]]) -> dict[int, _Seen]:
    """The kinds that have enough data."""
    tokens: list[Tensor] = []
    kinds: list[Tensor] = []
    molecules: list[Tensor] = []
    numbers: dict[bytes, int] = {}
    for batch in batches:
        kind = batch["context"][:, ROWS_BEFORE_TOKENS:, Column.KIND]
        mask = token_mask(batch["context"])
        # The kinds of its atoms say which molecule it is.
        own = [kind[row][mask[row]].cpu().numpy().tobytes() for row in range(len(kind))]
        molecule = torch.tensor([numbers.setdefault(name, len(numbers)) for name in own], device=kind.device)
        tokens.append(coordinates(batch["inputs"], batch["context"])[0][mask])
        kinds.append(kind[mask])
        molecules.append(molecule[:, None].expand_as(kind)[mask])
    if not tokens:
        return {}
    kind, token, molecule = torch.cat(kinds), torch.cat(tokens), torch.cat(molecules)
    order = kind.argsort(stable=True)
    numbered, counts = kind.unique(return_counts=True)
    parts = zip(token[order].split(counts.tolist()), molecule[order].split(counts.tolist()), strict=True)
    return {
        int(number): _Seen(part, len(own.unique()))
        for number, (part, own) in zip(numbered, parts, strict=True)
        if len(part) >= MIN_DATA
    }


def _closest(kind: int, seen: Collection[int]) -> tuple[int, ...]:
    """The kinds, of those that are seen, whose data stand in for those of another."""
    for group in fallbacks(kind):
        with_data = tuple(other for other in group if other in seen and other != kind)
        if with_data:
            return with_data
    raise ValueError("no kind of the corpus is like the atoms at the root of a peptide; give more conformations.")
