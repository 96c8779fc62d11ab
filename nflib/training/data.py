"""Where batches come from: tensors, torch datasets, or an object of the user's that may change during
training.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sized
from itertools import count
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, default_collate

from nflib.training.seeds import EPOCH, derived_generator

Batch = dict[str, Tensor]
CHECKED = ("inputs", "context")  # energies may be infinite: objectives give such rows no weight


@runtime_checkable
class BatchSource(Protocol):
    """Data that makes its own batches.

    Optional methods: `refresh(flow, step, generator)` replaces rows (the flow then holds averaged weights, in
    evaluation mode; `len` may change); `state_dict()` and `load_state_dict(state)`, a dict of tensors and
    numbers, make a resumed run exact. Without them a resumed run calls `refresh` once more.
    """

    def __len__(self) -> int: ...

    def batch(self, indices: Tensor) -> Batch:
        """Rows `indices` (a 1-D int64 tensor): "inputs" (B, ...), optionally "context" (B, ...) and further
        tensors.
        """
        ...


class TensorSource:
    """Rows of tensors that lie in memory."""

    def __init__(self, tensors: Batch) -> None:
        lengths = {name: len(tensor) for name, tensor in tensors.items()}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"the tensors of a dataset must have equally many rows, but have {lengths}.")
        self.tensors = tensors
        for name in CHECKED:
            if name in tensors:
                check_finite(name, tensors[name], None)

    def __len__(self) -> int:
        return len(self.tensors["inputs"])

    def batch(self, indices: Tensor) -> Batch:
        return {name: tensor[indices.to(tensor.device)] for name, tensor in self.tensors.items()}


class DatasetSource:
    """Items of a map-style torch `Dataset`: each a tensor, a tuple (inputs, context) or a dict of tensors."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(cast(Sized, self.dataset))

    def batch(self, indices: Tensor) -> Batch:
        return as_batch(default_collate([self.dataset[index] for index in indices.tolist()]))


def as_batch(data: object) -> Batch:
    """A tensor, a tuple (inputs,) or (inputs, context), or a dict, as a dict; raises ValueError for anything
    else.
    """
    if isinstance(data, Tensor):
        return {"inputs": data}
    if isinstance(data, tuple | list) and 1 <= len(data) <= 2 and all(isinstance(part, Tensor) for part in data):
        return dict(zip(("inputs", "context"), data, strict=False))
    if isinstance(data, Mapping) and "inputs" in data and all(isinstance(part, Tensor) for part in data.values()):
        return dict(data)
    raise ValueError(
        "training data must be a tensor, a tuple (inputs, context), a dict of tensors with 'inputs', a "
        "map-style Dataset of those, or an object with __len__ and batch(indices), not "
        f"{type(data).__name__}."
    )


def as_source(data: object) -> BatchSource:
    """Anything that `fit` accepts as data, as a `BatchSource`; raises ValueError for an unknown kind or no
    rows.
    """
    source: BatchSource
    if isinstance(data, Dataset) and not hasattr(data, "batch"):
        source = DatasetSource(data)
    elif isinstance(data, BatchSource):
        source = data
    else:
        source = TensorSource(as_batch(data))
    if len(source) == 0:
        raise ValueError("the dataset is empty; it needs at least one row.")
    return source


def check_finite(name: str, tensor: Tensor, indices: Tensor | None) -> None:
    """Raise ValueError naming the first row of `tensor` that holds NaN or infinity; `indices` are its rows'
    numbers.
    """
    if not tensor.is_floating_point():
        return
    for start in range(0, len(tensor), 65536):  # in pieces: a mask of the whole set may not fit into memory
        bad = ~torch.isfinite(tensor[start : start + 65536]).flatten(1 if tensor.ndim > 1 else 0)
        rows = bad.any(dim=1) if bad.ndim > 1 else bad
        if rows.any():
            row = start + int(rows.nonzero()[0])
            row = row if indices is None else int(indices[row])
            raise ValueError(f"row {row} of the data's {name!r} is NaN or infinite; remove or repair it.")


class EpochOrder:
    """Row numbers of every batch: each epoch a permutation drawn from (seed, epoch), batches running on
    across epochs.

    `batch(step)` depends on the step alone, which is what makes resuming exact.
    """

    def __init__(self, length: int, batch_size: int, seed: int) -> None:
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self.first_step, self.first_epoch = 0, 0
        self._cached: dict[int, Tensor] = {}

    def batch(self, step: int) -> Tensor:
        """The `batch_size` row numbers of a step, int64."""
        position = (step - self.first_step) * self.batch_size
        parts, missing = [], self.batch_size
        while missing:
            epoch, offset = divmod(position, self.length)
            part = self._permutation(self.first_epoch + epoch)[offset : offset + missing]
            parts.append(part)
            missing -= len(part)
            position += len(part)
        return torch.cat(parts)

    def restart(self, step: int, length: int) -> None:
        """The data has `length` rows from `step` on: begin a new epoch there."""
        self.first_epoch += (step - self.first_step) * self.batch_size // self.length + 1
        self.first_step, self.length, self._cached = step, length, {}

    def state_dict(self) -> dict[str, int]:
        return {"length": self.length, "first_step": self.first_step, "first_epoch": self.first_epoch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.length, self.first_step, self.first_epoch = (
            state["length"],
            state["first_step"],
            state["first_epoch"],
        )

    def _permutation(self, epoch: int) -> Tensor:
        if epoch not in self._cached:
            order = torch.randperm(self.length, generator=derived_generator(self.seed, EPOCH, epoch))
            self._cached = {epoch: order}
        return self._cached[epoch]


def rank_slice(rows: int, rank: int, world_size: int) -> slice:
    """The rows of a global batch that belong to a process; all of them where they cannot be shared evenly."""
    if rows % world_size:
        return slice(0, rows)
    return slice(rank * rows // world_size, (rank + 1) * rows // world_size)


def training_batches(
    source: BatchSource, order: EpochOrder, step: int, part: slice, num_workers: int
) -> Iterator[tuple[Tensor, Batch]]:
    """Rows `part` of the batches from `step` on, each with its row numbers; workers load a torch Dataset
    ahead.
    """
    numbers = (order.batch(now)[part] for now in count(step))
    if num_workers and isinstance(source, DatasetSource):
        ahead = (order.batch(now)[part].tolist() for now in count(step))
        loader = DataLoader(source.dataset, batch_sampler=cast(Any, ahead), num_workers=num_workers)
        for indices, items in zip(numbers, loader, strict=False):
            yield indices, as_batch(items)
    else:
        for indices in numbers:
            yield indices, source.batch(indices)


def prepare(batch: Batch, indices: Tensor | None, flow: nn.Module) -> Batch:
    """Give a batch's floating-point inputs and context the dtype of the flow's weights.

    Given the row numbers `indices`, raises ValueError naming the first row that holds NaN or infinity.
    """
    dtype = next(parameter.dtype for parameter in flow.parameters())
    dtype = torch.float64 if dtype == torch.float64 else torch.float32
    prepared = dict(batch)
    for name in CHECKED:
        if name in batch and batch[name].is_floating_point():
            if indices is not None:
                check_finite(name, batch[name], indices)
            prepared[name] = batch[name].to(dtype)
    return prepared
