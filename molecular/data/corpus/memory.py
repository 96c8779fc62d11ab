"""A part of a corpus in memory, as a source of batches for `nflib.training.fit`."""

from collections.abc import Callable

import torch
from openmm import app
from torch import Tensor

from molecular.data.corpus.buckets import Item, collate
from molecular.data.corpus.layout import CorpusLayout
from molecular.data.corpus.streaming import ConformationStream
from molecular.molecule.features import prose_context


class CorpusSource:
    """All conformations of one part of a corpus, in memory: a `BatchSource` for `nflib.training.fit`.

    Rows lie in the order of the files; batches are padded to their largest molecule, and have what
    `ConformationStream`'s have. ``systems`` are the sequences, ``system`` (N,) each row's index among them,
    ``skipped_shards`` and ``skipped_frames`` what was damaged.

    Args:
        corpus: `Corpus` or `ManyPeptides`.
        part: "train", "validation" or "test".
        keep: which sequences to take; by default all.
        context: makes the context (n, k) int64 of a topology.

    Raises:
        ValueError, FileNotFoundError: as `ConformationStream`.
    """

    def __init__(
        self,
        corpus: CorpusLayout,
        part: str = "train",
        *,
        keep: Callable[[str], bool] | None = None,
        context: Callable[[app.Topology], Tensor] = prose_context,
    ) -> None:
        reader = ConformationStream(
            corpus, part, batch_size=1, shuffle=False, keep=keep, context=context, rank=0, world_size=1
        )
        rows: list[Tensor] = []
        systems: list[int] = []
        for item in reader.items():
            rows.append(item.positions)
            systems.append(item.system)
        self.systems = reader.systems
        self.contexts = {number: reader.context_of(self.systems[number]) for number in set(systems)}
        self.skipped_shards, self.skipped_frames = reader.skipped_shards, reader.skipped_frames
        self.system = torch.tensor(systems)
        # One tensor, not a million: rows are slices of it.
        self.atoms = torch.cat(rows)
        sizes = torch.tensor([len(row) for row in rows])
        self.ends = sizes.cumsum(0)
        self.starts = self.ends - sizes

    def __len__(self) -> int:
        return len(self.system)

    def batch(self, indices: Tensor) -> dict[str, Tensor]:
        """The padded rows of indices (B,)."""
        items = []
        for index in indices.tolist():
            system = int(self.system[index])
            positions = self.atoms[self.starts[index] : self.ends[index]]
            items.append(Item(positions, self.contexts[system], system))
        return collate(items)
