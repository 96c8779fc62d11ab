"""Stream a corpus for training: shuffled, sharded over processes, in padded batches of molecules of similar size."""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from openmm import app
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from molecular.data.corpus.buckets import Item, bucketed
from molecular.data.corpus.layout import CorpusLayout
from molecular.data.corpus.open import open_corpus
from molecular.data.corpus.shards import Conformation, DamagedShard, Shard
from molecular.molecule.features import prose_context
from nflib.random import derived_generator

log = logging.getLogger(__name__)


def stream(folder: str | Path, part: str = "train", *, batch_size: int, **options: object) -> "ConformationStream":
    """Stream a corpus for training: the `ConformationStream` of a folder of any layout.

    Args:
        folder: of the corpus.
        part: "train", "validation" or "test".
        batch_size: conformations a batch.
        options: further arguments of `ConformationStream`.
    """
    return ConformationStream(open_corpus(folder), part, batch_size=batch_size, **options)  # type: ignore[arg-type]


class ConformationStream(IterableDataset[dict[str, Tensor]]):
    """A dataset that streams padded batches of one part of a corpus.

    For `DataLoader(stream, batch_size=None, num_workers=...)` or a plain loop. A batch is a dict: "inputs"
    (B, n_max, 3) float32 nm, zero at padding; "context" (B, n_max, k) int64, what a Prose flow takes; "system" (B,)
    int64, indices into ``systems``. An epoch visits every conformation once over all processes and workers: shards are
    dealt to them or, where there are fewer shards than readers, frames in turn. Readers may have different numbers of
    batches; for training over processes, stop by steps and let ``epochs=None`` go on forever.

    A shard that cannot be read, or no further, is left, and a frame that is not finite passed over; both are logged and
    counted in `skipped_shards` and `skipped_frames`, by worker processes too. The same seed, epoch and readers give the
    same batches.

    Args:
        corpus: `Corpus` or `ManyPeptides`.
        part: "train", "validation" or "test".
        batch_size: conformations a batch.
        bucket_width: atoms by which the molecules of a batch may differ in size; see `bucketed`.
        drop_last: leave out incomplete batches.
        shuffle: draw frames at random from a buffer; without it they come as they lie on disk.
        seed: of the order, with the epoch.
        buffer_size: frames in the buffer that shuffled frames are drawn from.
        open_shards: how many shards fill the buffer together.
        epochs: passes of one iteration; None never ends. Each iteration begins where `set_epoch` says.
        keep: which sequences to take; by default all.
        context: makes the context (n, k) int64 of a topology.
        rank: number of this process; by default that of torch.distributed or torchrun.
        world_size: how many processes; by default as for rank.

    Raises:
        FileNotFoundError: while iterating, a frame of a peptide without structure.
        ValueError: an empty corpus, an impossible setting; while iterating: a frame whose number of atoms is not that
            of its PDB file, or of another part's sequence, a peptide that `read_structure` or ``context`` refuses, or
            nothing that can be read.
    """

    def __init__(
        self,
        corpus: CorpusLayout,
        part: str = "train",
        *,
        batch_size: int,
        bucket_width: int = 8,
        drop_last: bool = False,
        shuffle: bool = True,
        seed: int = 0,
        buffer_size: int = 4096,
        open_shards: int = 8,
        epochs: int | None = 1,
        keep: Callable[[str], bool] | None = None,
        context: Callable[[app.Topology], Tensor] = prose_context,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        super().__init__()
        counts = {"batch_size": batch_size, "bucket_width": bucket_width, "buffer_size": buffer_size}
        for name, value in (counts | {"open_shards": open_shards}).items():
            if value < 1:
                raise ValueError(f"{name} must be positive, not {value}.")
        self.shards: Sequence[Shard] = corpus.shards(part)
        if not self.shards:
            raise ValueError(
                f"{corpus.folder} holds no frames for {part}; simulate it, or choose another part or folder."
            )
        self.corpus, self.part, self.batch_size, self.bucket_width = corpus, part, batch_size, bucket_width
        self.drop_last, self.shuffle, self.seed, self.epochs = drop_last, shuffle, seed, epochs
        self.buffer_size, self.open_shards, self.keep, self.context = buffer_size, open_shards, keep, context
        self.rank, self.world_size = _process(rank, world_size)
        self.epoch = 0
        self.systems: list[str] = corpus.sequences(part)
        self._numbers = {name: number for number, name in enumerate(self.systems)}
        self._contexts: dict[str, Tensor] = {}
        # In shared memory, for worker processes: [damaged, not finite] of each shard.
        self._skipped = torch.zeros(2, len(self.shards), dtype=torch.int64).share_memory_()

    @property
    def skipped_shards(self) -> int:
        """How often a shard of this process was left as damaged."""
        return int(self._skipped[0].sum())

    @property
    def skipped_frames(self) -> int:
        """How many frames of this process were passed over as not finite."""
        return int(self._skipped[1].sum())

    def set_epoch(self, epoch: int) -> None:
        """The epoch that the next iteration begins with: it chooses the order."""
        self.epoch = epoch

    def context_of(self, sequence: str) -> Tensor:
        """The context (n, k) of a peptide of the corpus."""
        if sequence not in self._contexts:
            topology = self.corpus.topology(sequence)
            try:
                self._contexts[sequence] = self.context(topology)
            except ValueError as error:
                raise ValueError(f"{sequence} of {self.corpus.folder}: {error}") from error
        return self._contexts[sequence]

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return bucketed(self.items(), self.batch_size, self.bucket_width, self.drop_last)

    def items(self) -> Iterator[Item]:
        """The conformations one by one, as `__iter__` puts them into batches."""
        worker = get_worker_info()
        num_workers, worker_id = (worker.num_workers, worker.id) if worker is not None else (1, 0)
        reader, readers = self.rank * num_workers + worker_id, self.world_size * num_workers
        epoch, last = self.epoch, None if self.epochs is None else self.epoch + self.epochs
        while last is None or epoch < last:
            found = False
            for item in self._epoch(epoch, reader, readers):
                found = True
                yield item
            if not found and (readers == 1 or last is None):
                raise ValueError(
                    f"reader {reader + 1} of {readers} could read no frame for {self.part} from {self.corpus.folder};"
                    " use more data, fewer processes or workers, or a wider choice of sequences."
                )
            epoch += 1

    def _epoch(self, epoch: int, reader: int, readers: int) -> Iterator[Item]:
        order = list(range(len(self.shards)))
        generator = None
        if self.shuffle:  # the shards' order is the same for all readers
            order = torch.randperm(len(order), generator=derived_generator(self.seed, 1, epoch)).tolist()
            generator = derived_generator(self.seed, 2, epoch, 1 + reader)
        if len(order) >= readers:
            frames = [self._frames(index, epoch, 0, 1) for index in order[reader::readers]]
        else:
            frames = [self._frames(index, epoch, (reader - index) % readers, readers) for index in order]
        return _shuffled(self._interleaved(frames, generator), self.buffer_size, generator)

    def _frames(self, index: int, epoch: int, first: int, stride: int) -> Iterator[Item]:
        """Frames ``first``, ``first + stride`` ... of one shard, up to its first damage."""
        shard = self.shards[index]
        # Not the reader's own: all readers of a shard must see one order to share it out.
        generator = derived_generator(self.seed, 3, epoch, 1 + index) if self.shuffle else None
        try:
            for number, conformation in enumerate(shard.conformations(generator)):
                if number % stride != first or (self.keep is not None and not self.keep(conformation.sequence)):
                    continue
                item = self._item(shard, conformation)
                if bool(torch.isfinite(item.positions).all()):
                    yield item
                else:
                    self._skipped[1, index] += 1
                    log.warning("%s: a frame of %s is not finite; skipped.", shard.path, conformation.sequence)
        except DamagedShard as error:
            if first == 0:  # once, where several readers share the shard
                self._skipped[0, index] += 1
                log.warning("Skipped the rest of a damaged shard: %s", error)

    def _item(self, shard: Shard, conformation: Conformation) -> Item:
        sequence, positions = conformation
        context = self.context_of(sequence)
        if sequence not in self._numbers:
            raise ValueError(
                f"{shard.path} holds a frame of {sequence}, which is none of the sequences for {self.part}; remove it"
                " or correct the folder."
            )
        if len(positions) != len(context):
            raise ValueError(
                f"{shard.path}: a frame of {sequence} has {len(positions)} atoms, but its PDB file has {len(context)};"
                " the structure is of another peptide or protonation."
            )
        return Item(torch.from_numpy(positions.copy()), context, self._numbers[sequence])

    def _interleaved(self, shards: list[Iterator[Item]], generator: torch.Generator | None) -> Iterator[Item]:
        """Frames of ``open_shards`` shards at a time, now from one, now another; or one shard after the other."""
        waiting = list(reversed(shards))
        limit = self.open_shards if generator is not None else 1
        active: list[Iterator[Item]] = []
        while waiting or active:
            while waiting and len(active) < limit:
                active.append(waiting.pop())
            index = 0 if generator is None else int(torch.randint(len(active), (), generator=generator))
            item = next(active[index], None)
            if item is None:
                active.pop(index)
            else:
                yield item


def _shuffled(items: Iterator[Item], size: int, generator: torch.Generator | None) -> Iterator[Item]:
    """Items drawn at random from a buffer that is kept full."""
    if generator is None:
        yield from items
        return
    buffer: list[Item] = []
    for item in items:
        if len(buffer) < size:
            buffer.append(item)
            continue
        index = int(torch.randint(size, (), generator=generator))
        yield buffer[index]
        buffer[index] = item
    for index in torch.randperm(len(buffer), generator=generator).tolist():
        yield buffer[index]


def _process(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """This process's number and their count."""
    if rank is None or world_size is None:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
        else:
            rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} is none of {world_size} processes.")
    return rank, world_size
