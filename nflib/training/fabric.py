"""Devices, processes and precision: the one place that talks to Lightning Fabric's constructor."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nflib.io import only_run
from nflib.optional import require
from nflib.processes import from_torchrun, is_first_process
from nflib.training.config import TrainingConfig
from nflib.training.objectives import Objective, objective_at

# Folders that blocks of `alone` hold around this one, by the process, for forked ones hold none.
_taken: ContextVar[frozenset[tuple[int, Path]]] = ContextVar("taken", default=frozenset())


def launch(config: TrainingConfig) -> Any:
    """A launched Fabric: on one device, or on all processes of `torchrun`; raises ValueError for an unknown
    device, and ModuleNotFoundError without lightning-fabric.
    """
    require("lightning_fabric", "fit needs", extra="training")
    from lightning_fabric import Fabric
    from lightning_fabric.strategies import DDPStrategy
    from lightning_fabric.utilities.exceptions import MisconfigurationException

    processes = from_torchrun("WORLD_SIZE", 1)
    settings: dict[str, Any] = {"devices": 1}
    if processes > 1:
        local = int(os.environ["LOCAL_WORLD_SIZE"])
        strategy = DDPStrategy(
            process_group_backend=config.process_group_backend,
            find_unused_parameters=config.find_unused_parameters,
        )
        settings = {"devices": local, "num_nodes": processes // local, "strategy": strategy}
    parts = processes * config.accumulation
    if config.batch_size % parts:
        what = f"by {processes} processes" if config.accumulation == 1 else f"in {parts} parts, for accumulation"
        raise ValueError(f"batch_size={config.batch_size} cannot be shared evenly {what}.")
    try:
        fabric = Fabric(accelerator=config.accelerator, **settings)
    except (ValueError, RuntimeError, MisconfigurationException) as error:
        raise ValueError(f"accelerator={config.accelerator!r} cannot be used here: {error}") from error
    fabric.launch()
    return fabric


@contextmanager
def alone(output: str | os.PathLike[str]) -> Iterator[None]:
    """No other run is at work in a folder, the `output` of `fit`, while the block lasts; the first process sees to it.

    Blocks for one folder may lie in each other, as `fit` lies in what prepares it.

    Raises OSError, as the block begins, where another run is at work.
    """
    mine = os.getpid(), Path(output).resolve()
    if not is_first_process() or mine in _taken.get():
        yield
        return
    with only_run(output):
        token = _taken.set(_taken.get() | {mine})
        try:
            yield
        finally:
            _taken.reset(token)


def process_mean(fabric: Any, value: Tensor) -> Tensor:
    """Mean of a tensor without gradient over the processes, equal on all of them."""
    if fabric.world_size == 1:
        return value
    mean: Tensor = fabric.all_reduce(value.clone(), reduce_op="mean")
    return mean


class LossModule(nn.Module):
    """The objective as a `forward`, which is what DistributedDataParallel wraps; autocasts the flow if asked
    to.

    Autocast is ours and not Fabric's, which would round the data themselves to bfloat16.
    """

    def __init__(self, flow: nn.Module, objective: Objective, precision: str, device_type: str) -> None:
        super().__init__()
        self.flow = flow
        self.objective = objective
        self.mixed = precision == "bf16-mixed"
        self.device_type = device_type

    def forward(
        self, batch: dict[str, Tensor], generator: torch.Generator, progress: float = 1.0
    ) -> tuple[Tensor, dict[str, Any]]:
        objective = objective_at(self.objective, progress)
        with torch.autocast(self.device_type, dtype=torch.bfloat16, enabled=self.mixed):
            found = objective(self.flow, batch, generator)
        match found:
            case (Tensor() as loss, dict() as metrics) if loss.numel() == 1:
                return loss, metrics
        raise ValueError(
            f"the objective must return (loss, scalars), one number and a dict of what is logged; got {_kind(found)}."
        )


def _kind(value: Any) -> str:
    if isinstance(value, tuple | list):
        return f"({', '.join(map(_kind, value))})"
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"{type(value).__name__}"
