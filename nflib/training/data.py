"""Sources of training batches: tensors, torch datasets, or an object of the user's that may change during training."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sized
from itertools import count, tee
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from nflib.contexts import map_context, num_rows
from nflib.dtypes import as_dtype, as_tensor
from nflib.interfaces import stated
from nflib.random import derived_generator, derived_seed, seed_torch
from nflib.training.interruption import ignore_signals
from nflib.training.objectives import Demands
from nflib.training.seeds import DATA, EPOCH

Batch = dict[str, Any]
"""Tensors of as many rows; a "context" may be a tuple of them, such as tokens and their padding mask."""
CHECKED = ("inputs", "context")  # energies may be infinite: objectives give such rows no weight


@runtime_checkable
class BatchSource(Protocol):
    """Training data that make their own batches: any object with `__len__`, the number of rows, and `batch`.

    Optional methods: `refresh(flow, step, generator)` replaces rows (the flow then holds averaged weights, in
    evaluation mode; `len` may change); `state_dict()` and `load_state_dict(state)`, a dict of tensors and
    numbers, make a resumed run exact. Without them a resumed run calls `refresh` once more. Where rows are of several
    shapes, sorted by them, `shape_ends` are the numbers of rows up to the end of each: no batch of validation data
    crosses one.
    """

    def __len__(self) -> int: ...

    def batch(self, indices: Tensor) -> Batch:
        """Some rows of the data.

        Args:
            indices: their numbers, a 1-D int64 tensor of B numbers.

        Returns:
            A dict of "inputs" (B, ...), optionally "context" (B, ...), "weights" (B,) and further tensors that the
            objective reads.
        """
        ...


class TensorSource:
    """Rows of tensors that lie in memory."""

    def __init__(self, tensors: Batch) -> None:
        single = [name for name, value in tensors.items() if any(part.ndim == 0 for part in _parts(value))]
        if single:
            raise ValueError(f"the data's {single[0]!r} are a single number; give one row a sample.")
        lengths = {name: num_rows(value) for name, value in tensors.items()}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"the tensors of a dataset must have equally many rows, but have {lengths}.")
        self.tensors = tensors
        for name in CHECKED:
            for part in _parts(tensors.get(name, ())):
                check_finite(name, part, None)

    def __len__(self) -> int:
        return len(self.tensors["inputs"])

    def batch(self, indices: Tensor) -> Batch:
        return {
            name: map_context(lambda part: part[indices.to(part.device)], value) for name, value in self.tensors.items()
        }


class DatasetSource:
    """Items of a map-style torch `Dataset`: each a tensor, a tuple (inputs, context) or a dict of tensors."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(cast(Sized, self.dataset))

    def batch(self, indices: Tensor) -> Batch:
        return as_batch(default_collate(_items(self.dataset, indices.tolist())))


class _Seeded(Dataset[Any]):
    """Items of a dataset for `DataLoader`, by batches of a seed and row numbers, whichever worker loads them."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __getitems__(self, batch: tuple[int, list[int]]) -> list[Any]:
        torch.default_generator.manual_seed(batch[0])  # a forked worker must leave accelerators alone
        return _items(self.dataset, batch[1])


def _items(dataset: Any, indices: list[int]) -> list[Any]:
    many = getattr(dataset, "__getitems__", None)  # as DataLoader asks for them
    return [dataset[index] for index in indices] if many is None else many(indices)


def as_batch(data: object) -> Batch:
    """A tensor, a tuple (inputs,) or (inputs, context), or a dict with "inputs", as a batch.

    Raises:
        ValueError: For anything else. What `nflib.dtypes.as_tensor` takes as an array counts as a tensor.
    """
    parts: dict[Any, object] = {}
    if hasattr(data, "__array__"):
        parts = {"inputs": data}
    elif isinstance(data, tuple | list) and len(data) in (1, 2):
        parts = dict(zip(("inputs", "context"), data, strict=False))
    elif isinstance(data, Mapping) and "inputs" in data:
        parts = dict(data)
    if not parts:
        raise _no_data(data)
    return {name: _as_tensors(name, values) for name, values in parts.items()}


def _no_data(data: object) -> ValueError:
    return ValueError(
        "training data must be a tensor, a tuple (inputs, context), a dict of tensors with 'inputs', a map-style "
        f"Dataset of those, or an object with __len__ and batch(indices), not {type(data).__name__}."
    )


def _parts(values: Any) -> tuple[Any, ...]:
    return values if isinstance(values, tuple) else (values,)


def _as_tensors(name: Any, values: Any) -> Any:
    if name == "context" and isinstance(values, tuple | list) and values:  # collated, a tuple is a list
        return tuple(_as_tensor(name, part) for part in values)
    return _as_tensor(name, values)


def _as_tensor(name: Any, values: Any) -> Tensor:
    if not hasattr(values, "__array__"):
        raise _no_data(values)
    return as_tensor(values, f"the data's {name!r}")


def as_source(data: object) -> BatchSource:
    """Anything that `fit` accepts as data, as a `BatchSource`.

    Raises:
        ValueError: For an unknown kind, a stream, or no rows.
    """
    source: BatchSource
    if isinstance(data, IterableDataset):
        raise ValueError(
            f"{type(data).__name__} is a stream, whose rows have no numbers, so that a run could not be resumed; give "
            "a map-style Dataset, or an object with __len__ and batch(indices)."
        )
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
) -> Generator[tuple[Tensor, Batch], None, None]:
    """Rows `part` of the batches from `step` on, each with its row numbers; workers load a torch Dataset
    ahead.

    What items draw from torch's global generator, such as random crops, depends on the step and the part alone.
    """
    numbers: Iterator[tuple[int, Tensor]] = (
        (derived_seed(order.seed, DATA, now, part.start), order.batch(now)[part]) for now in count(step)
    )
    if num_workers and isinstance(source, DatasetSource):
        numbers, ahead = tee(numbers)
        loader = DataLoader(
            _Seeded(source.dataset),
            batch_sampler=cast(Any, ((seed, indices.tolist()) for seed, indices in ahead)),
            num_workers=num_workers,
            worker_init_fn=ignore_signals,
        )
        loaded: Any = iter(loader)
        try:
            for (_, indices), items in zip(numbers, loaded, strict=False):
                yield indices, as_batch(items)
        finally:
            # An error that is kept or printed would keep the workers, for which Python waits at its end for ever.
            loaded._shutdown_workers()
    else:
        for seed, indices in numbers:
            seed_torch(seed)
            yield indices, source.batch(indices)


def working_dtype(flow: nn.Module) -> torch.dtype:
    """The dtype of a flow's data: that of its weights, or float32 for weights of half precision."""
    weights = next(parameter.dtype for parameter in flow.parameters() if parameter.is_floating_point())
    return torch.promote_types(weights, torch.float32)


def name_of(objective: object) -> str:
    """What messages call an objective: the name of the function or class."""
    return str(getattr(objective, "__name__", type(objective).__name__))


def check_keys(batch: Batch, objective: object) -> None:
    """Raise ValueError for tensors that an objective does not read, by its attribute `keys`."""
    keys = stated(Demands, objective).keys
    # Weights that nobody reads would be ignored silently, so they are the one key that must be declared.
    unknown = sorted(batch.keys() - set(keys)) if keys is not None else [name for name in batch if name == "weights"]
    if unknown:
        known = "has no attribute 'keys' that lists it" if keys is None else f"reads {', '.join(map(repr, keys))}"
        raise ValueError(f"the data have {unknown[0]!r}, but the objective {name_of(objective)} {known}.")


def mean_weight(source: BatchSource) -> float:
    """Mean of the "weights" of all rows of a source.

    Raises:
        ValueError: For weights that are negative, NaN, infinite or all zero, or that are not one number a row.
    """
    total = 0.0
    for indices in torch.arange(len(source)).split(1024):
        weights = source.batch(indices)["weights"]
        if weights.shape != indices.shape:
            raise ValueError(f"the data's 'weights' must be one number a row, not of shape {tuple(weights.shape[1:])}.")
        weights = weights.cpu().double()
        wrong = indices[~(weights.isfinite() & (weights >= 0))]
        if len(wrong):
            raise ValueError(f"row {int(wrong[0])} of the data's 'weights' is negative, NaN or infinite; repair it.")
        total += float(weights.sum())
    if total == 0:
        raise ValueError("the data's 'weights' are all zero; at least one row must count.")
    return total / len(source)


class Preparation:
    """Makes the batches of a source what the flow and the objective take.

    They have no keys but the objective's; "inputs" and a floating-point "context" have the flow's dtype and are finite;
    "weights" have mean one over the rows of the source, so that the mean over a batch of weight times loss has the
    expectation ``sum w loss / sum w``, which no normalisation within a batch would have.
    """

    def __init__(self, source: BatchSource, flow: nn.Module, objective: object) -> None:
        self.source, self.flow, self.objective = source, flow, objective
        self.mean_weight: float | None = None

    def __call__(self, batch: Batch, indices: Tensor) -> Batch:
        """The batch of rows `indices`; raises ValueError for what does not fit, naming the row that is not finite."""
        check_keys(batch, self.objective)
        prepared, dtype = dict(batch), working_dtype(self.flow)
        for name in CHECKED:
            if name in batch:
                prepared[name] = map_context(lambda part: self._checked(name, part, indices, dtype), batch[name])  # noqa: B023
        if "weights" in batch:
            if self.mean_weight is None:
                self.mean_weight = mean_weight(self.source)
            prepared["weights"] = (batch["weights"].cpu().double() / self.mean_weight).to(dtype)
        return prepared

    def _checked(self, name: str, values: Tensor, indices: Tensor, dtype: torch.dtype) -> Tensor:
        if name == "context" and not values.is_floating_point():
            return values  # labels, or padding
        if not isinstance(self.source, TensorSource):
            check_finite(name, values, indices)
        return as_dtype(values, dtype, f"the data's {name!r}")

    def forget(self) -> None:
        """The rows of the source have changed."""
        self.mean_weight = None
