"""Fits the fixed part of a flow on internal coordinates, kind by kind, to conformations of many molecules."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from molecular.coordinates import TOKEN_SIZE
from molecular.coordinates.internal import InternalCoordinates
from molecular.coordinates.spherical import torsion_cuts, wrapped
from molecular.molecule.atom_types import KINDS, ROOT, fallbacks
from molecular.molecule.internal_context import ROWS_BEFORE_TOKENS, Column
from nflib.transforms import GaussianizeByKind

# Share of the samples whose torsion may be anything: small, as 3n - 6 coordinates each take it, yet never zero.
UNIFORM_FRACTION = 1e-4
# Fewer samples of a kind say less than many of its relatives.
MIN_DATA = 64
MAX_DATA = 8_000


@torch.no_grad()
def fit_marginals(
    coordinates: InternalCoordinates, marginals: GaussianizeByKind, batches: Sequence[dict[str, Tensor]]
) -> int:
    """Cut the circles and fit the marginals of every kind to conformations ("inputs", with their "context").

    Kinds without data, of residues or places that the corpus lacks, get the maps of their closest relatives. Returns
    how many of the kinds had data of their own. Raises ValueError for no data at all.
    """
    coordinates.offsets.zero_()
    values = _by_kind(coordinates, batches)
    if not values:
        raise ValueError("there are no conformations to fit the marginals to; give some of each molecule.")
    fitted: dict[tuple[int, ...], int] = {}
    for kind in range(len(KINDS)):
        sources = (kind,) if kind in values else _closest(kind, values)
        if sources in fitted:
            _copy(coordinates, marginals, fitted[sources], kind)
            continue
        share = -(-MAX_DATA // len(sources))
        _fit(coordinates, marginals, kind, torch.cat([values[source][:share] for source in sources]))
        fitted[sources] = kind
    return len(values)


def _fit(coordinates: InternalCoordinates, marginals: GaussianizeByKind, kind: int, data: Tensor) -> None:
    """Fit one kind to coordinates ``(N, 3)``, its circle not yet cut."""
    has_torsion = KINDS[kind][2] != ROOT
    if has_torsion:
        coordinates.offsets[kind] = torsion_cuts(data[:, 2:])[0]
        torsion = wrapped(data[:, 2] - coordinates.offsets[kind])
        data = torch.stack([data[:, 0], data[:, 1], torsion], dim=-1)
    for coordinate in range(TOKEN_SIZE):
        interval = (-math.pi, math.pi) if has_torsion and coordinate == 2 else None
        marginals.fit_kind(
            TOKEN_SIZE * kind + coordinate, data[:, coordinate], interval, uniform_fraction=UNIFORM_FRACTION
        )


def _copy(coordinates: InternalCoordinates, marginals: GaussianizeByKind, source: int, target: int) -> None:
    coordinates.offsets[target] = coordinates.offsets[source]
    for coordinate in range(TOKEN_SIZE):
        marginals.copy_kind(TOKEN_SIZE * source + coordinate, TOKEN_SIZE * target + coordinate)


def _by_kind(coordinates: InternalCoordinates, batches: Sequence[dict[str, Tensor]]) -> dict[int, Tensor]:
    """Coordinates ``(N, 3)`` of the kinds that have enough of them."""
    found: list[Tensor] = []
    kinds: list[Tensor] = []
    for batch in batches:
        tokens, _ = coordinates(batch["inputs"], batch["context"])
        kind = batch["context"][:, ROWS_BEFORE_TOKENS:, Column.KIND]
        exists = batch["context"][:, ROWS_BEFORE_TOKENS:, 0] > 0
        found.append(tokens[exists])
        kinds.append(kind[exists])
    if not found:
        return {}
    kind, tokens = torch.cat(kinds), torch.cat(found)
    order = kind.argsort(stable=True)
    numbers, counts = kind.unique(return_counts=True)
    parts = tokens[order].split(counts.tolist())
    return {int(n): part for n, part in zip(numbers, parts, strict=True) if len(part) >= MIN_DATA}


def _closest(kind: int, values: dict[int, Tensor]) -> tuple[int, ...]:
    """The kinds whose data stand in for those of a kind without."""
    for group in fallbacks(kind):
        with_data = tuple(other for other in group if other in values)
        if with_data:
            return with_data
    raise ValueError("no kind of the corpus is like the atoms at the root of a peptide; give more conformations.")
