"""Conformations of a corpus for training: all in memory where they fit, else a window that a stream renews."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from itertools import islice

import torch
from openmm import app
from torch import Tensor, nn

from molecular.data.corpus import ConformationStream, CorpusLayout, CorpusSource
from molecular.data.corpus.buckets import Item, collate
from molecular.training.beginnings import some_rows
from nflib.io import fingerprint

log = logging.getLogger(__name__)

Context = Callable[[app.Topology], Tensor]
# Share of the machine's memory that conformations may take.
MEMORY_SHARE = 0.25


class Rows:
    """Some conformations of a part of a corpus, in memory; a `BatchSource`.

    Args:
        source: all conformations of the part.
        rows: (N,) indices of those to take.
        first_molecule: number of the part's first sequence, where parts are numbered one after the other.
    """

    def __init__(self, source: CorpusSource, rows: Tensor, first_molecule: int):
        self.source, self.rows, self.first_molecule = source, rows, first_molecule

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, indices: Tensor) -> dict[str, Tensor]:
        """The padded conformations of indices (B,): "inputs", "context" and "system"."""
        batch = self.source.batch(self.rows[indices])
        return batch | {"system": batch["system"] + self.first_molecule}

    def fingerprint(self) -> str:
        """The SHA-256 of some of the conformations, evenly spaced, by which others are told from these."""
        return fingerprint([self.batch(some_rows(len(self)))["inputs"]])


class Window:
    """A window on a corpus that is too large for memory: as many conformations as fit; a `BatchSource`.

    `refresh` replaces a quarter of them, the oldest, by the next of an endless stream. A resumed run draws the window
    anew, and reads on in another order: it is the only part of a run that is not repeated exactly.
    """

    def __init__(self, stream: ConformationStream, size: int):
        self._stream = stream
        self._items: Iterator[Item] | None = None
        self._rows = list(islice(stream.items(), size))
        self._oldest = 0

    def __len__(self) -> int:
        return len(self._rows)

    def batch(self, indices: Tensor) -> dict[str, Tensor]:
        """As of `Rows`."""
        return collate([self._rows[index] for index in indices.tolist()])

    def fingerprint(self) -> None:
        """None: a stream reads on, in a corpus that may have grown."""

    def refresh(self, flow: nn.Module, step: int, generator: torch.Generator) -> None:
        """Read on; the flow is not needed."""
        if self._items is None:
            # An order by the step: a run that is stopped again and again would only see what comes first in one.
            self._stream.set_epoch(step)
            self._items = self._stream.items()
        fresh: list[Item] = list(islice(self._items, max(len(self._rows) // 4, 1)))
        for item in fresh:
            self._rows[self._oldest] = item
            self._oldest = (self._oldest + 1) % len(self._rows)


def training_source(corpus: CorpusLayout, context: Context, seed: int) -> Rows | Window:
    """The training part of a corpus; raises what `ConformationStream` raises, such as ValueError for an empty one."""
    bytes_on_disk = sum(shard.path.stat().st_size for shard in corpus.shards("train"))
    memory = MEMORY_SHARE * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if bytes_on_disk > memory:
        log.info("The corpus is larger than %.0f GB: streaming it, a window at a time.", memory / 1e9)
        stream = ConformationStream(corpus, "train", batch_size=1, epochs=None, seed=seed, context=context)
        first = next(stream.items())
        return Window(stream, int(memory / (2 * first.positions.nbytes)))
    source = CorpusSource(corpus, "train", context=context)
    if source.skipped_shards or source.skipped_frames:
        log.warning("Left out %d damaged shards and %d frames.", source.skipped_shards, source.skipped_frames)
    return Rows(source, torch.arange(len(source)), 0)


def validation_source(
    corpus: CorpusLayout, context: Context, first_molecule: int, frames_per_sequence: int
) -> Rows | None:
    """Evenly spaced conformations of each validation sequence; None where the corpus has none."""
    if not corpus.shards("validation"):
        return None
    source = CorpusSource(corpus, "validation", context=context)
    rows = []
    for system in source.system.unique():
        own = (source.system == system).nonzero()[:, 0]
        count = min(frames_per_sequence, len(own))
        rows.append(own[torch.linspace(0, len(own) - 1, count).round().long()])
    return Rows(source, torch.cat(rows), first_molecule)
