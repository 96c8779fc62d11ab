"""Batches of molecules of similar size, padded to the largest of each batch."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from molecular.molecule.features import pad


class Item(NamedTuple):
    """One conformation of a batch.

    Args:
        positions: (n, 3) nm.
        context: (n, k) int64, as of `prose_context`.
        system: the molecule's number.
    """

    positions: Tensor
    context: Tensor
    system: int


def collate(items: list[Item]) -> dict[str, Tensor]:
    """One padded batch: "inputs" (B, n_max, 3), zero at padding; "context" (B, n_max, k); "system" (B,) int64."""
    longest = max(len(item.positions) for item in items)
    positions = torch.zeros(len(items), longest, 3)
    for row, item in zip(positions, items, strict=True):
        row[: len(item.positions)] = item.positions
    return {
        "inputs": positions,
        "context": pad([item.context for item in items]),
        "system": torch.tensor([item.system for item in items]),
    }


def bucketed(
    items: Iterable[Item], batch_size: int, width: int, drop_last: bool = False
) -> Iterator[dict[str, Tensor]]:
    """Batches of molecules of similar size, padded (`collate`).

    Args:
        items: conformations.
        batch_size: how many a batch.
        width: numbers of atoms in one batch fall into the same interval of so many.
        drop_last: leave out what does not fill a batch; else it comes in smaller ones, neighbouring intervals together.
    """
    buckets: dict[int, list[Item]] = {}
    for item in items:
        size = (len(item.positions) - 1) // width
        bucket = buckets.setdefault(size, [])
        bucket.append(item)
        if len(bucket) == batch_size:
            yield collate(buckets.pop(size))
    if drop_last:
        return
    rest = [item for size in sorted(buckets) for item in buckets[size]]
    for start in range(0, len(rest), batch_size):
        yield collate(rest[start : start + batch_size])
