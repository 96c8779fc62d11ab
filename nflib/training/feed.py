"""From a data source to the batches of one process, step by step."""

from __future__ import annotations

import io
from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from itertools import repeat
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from nflib.contexts import map_context
from nflib.random import seeded_generator
from nflib.training.config import TrainingConfig
from nflib.training.data import (
    Batch,
    EpochOrder,
    Preparation,
    rank_slice,
    training_batches,
)
from nflib.training.seeds import AUGMENTATION, REFRESH
from nflib.training.state import TrainingState

Augmentation = Callable[[Tensor, torch.Generator], Tensor]


class Feed:
    """Deals the global batches of a run out to its processes, augments them, and renews the data when due.

    Without preparation, for an objective that needs no data, batches are empty.
    """

    def __init__(
        self, preparation: Preparation | None, config: TrainingConfig, fabric: Any, augment: Augmentation | None
    ) -> None:
        self.preparation, self.config, self.fabric, self.augment = preparation, config, fabric, augment
        self.source: Any = None if preparation is None else preparation.source
        self.order = EpochOrder(self._length(), config.batch_size, config.seed)
        self.stale = False
        if config.refresh_interval is not None and not hasattr(self.source, "refresh"):
            raise ValueError(f"refresh_interval is set, but {type(self.source).__name__} has no method refresh.")

    def _length(self) -> int:
        return 0 if self.source is None else len(self.source)

    def batches(self, state: TrainingState) -> Generator[Batch, None, None]:
        """This process's part of the global batches from the present step on, on its device; never ends."""
        if self.preparation is None:
            yield from repeat({})
            return
        config, first = self.config, state.step
        part = rank_slice(config.batch_size, self.fabric.global_rank, self.fabric.world_size)
        # The same random numbers reach the same rows on any number of processes only if all of them augment
        # the whole batch.
        loaded = part if self.augment is None else slice(0, config.batch_size)
        with closing(training_batches(self.source, self.order, first, loaded, config.num_workers)) as batches:
            for step, (indices, batch) in enumerate(batches, first):
                batch = self.preparation(batch, indices)
                if self.augment is not None:
                    inputs = batch["inputs"]
                    path = config.seed, AUGMENTATION, step
                    inputs = self.augment(inputs, seeded_generator(*path, device=inputs.device))
                    batch |= {"inputs": inputs}
                    batch = {name: map_context(itemgetter(part), value) for name, value in batch.items()}
                yield self.fabric.to_device(batch)

    def refresh_if_due(self, state: TrainingState) -> None:
        """Let the source renew its rows before steps `refresh_interval`, twice that, and so on."""
        interval, step = self.config.refresh_interval, state.step
        due = interval is not None and step > 0 and step % interval == 0
        if self.preparation is None or not (due or self.stale):
            return
        self.stale = False
        path = self.config.seed, REFRESH, step
        with state.averaged() as flow:
            generator = seeded_generator(*path, device=self.fabric.device)
            self.source.refresh(flow, step, generator)
        self.preparation.forget()
        if self._length() != self.order.length:
            self.order.restart(step, self._length())

    def state_dict(self) -> dict[str, Any]:
        """Where the epochs stand, and the source's own state if it has one; raises ValueError for one that could not
        be read again.
        """
        own = getattr(self.source, "state_dict", None)
        state = None if own is None else own()
        try:
            file = io.BytesIO()
            torch.save(tree_map_only(Tensor, lambda _: torch.empty(0), state), file)
            torch.load(io.BytesIO(file.getvalue()), weights_only=True)
        except Exception as error:  # of objects of any kind
            raise ValueError(
                f"the state_dict of {type(self.source).__name__} holds more than tensors and Python's own numbers, "
                "strings, lists and dicts, which a checkpoint does not keep (a NumPy number n is one as n.item())."
            ) from error
        return {"order": self.order.state_dict(), "source": state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue there; raises ValueError where the data now have another number of rows."""
        restore = getattr(self.source, "load_state_dict", None)
        if restore is not None and state["source"] is not None:
            own = self.source.state_dict()
            names = sorted(own.keys() | state["source"].keys())
            unlike = [name for name in names if not _alike(name, own, state["source"])]
            if unlike:
                raise TypeError(f"{unlike[0]} is missing, unknown or of another kind")
            restore(state["source"])
        else:
            self.stale = self.config.refresh_interval is not None
        self.order.load_state_dict(state["order"])
        if not self.stale and self._length() != self.order.length:
            raise ValueError(
                f"the run was begun with {self.order.length} rows of training data, not {self._length()}; "
                "resume with the same data, or choose another output folder."
            )


def _alike(name: str, own: Mapping[str, Any], stored: Mapping[str, Any]) -> bool:
    """Whether a name stands for values of one kind: lengths may differ, since sources grow, and numbers
    be whole or not; None stands for what was not there yet.
    """
    if name not in own or name not in stored:
        return False
    mine, other = own[name], stored[name]
    if isinstance(mine, Tensor) and isinstance(other, Tensor):
        return mine.dtype == other.dtype and not bool(other.isnan().any())
    numbers = isinstance(mine, int | float) and isinstance(other, int | float)
    return numbers or mine is None or other is None or type(mine) is type(other)
