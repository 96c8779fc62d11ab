"""Devices, processes and precision: the one place that talks to Lightning Fabric's constructor."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor, distributed, nn

from nflib.optional import require
from nflib.training.config import TrainingConfig
from nflib.training.objectives import Objective


def launch(config: TrainingConfig) -> Any:
    """A launched Fabric: on one device, or on all processes of `torchrun`; raises ValueError for an unknown
    device, and ModuleNotFoundError without lightning-fabric.
    """
    require("lightning_fabric", "fit needs", extra="training")
    from lightning_fabric import Fabric
    from lightning_fabric.strategies import DDPStrategy
    from lightning_fabric.utilities.exceptions import MisconfigurationException

    processes = _from_torchrun("WORLD_SIZE", 1)
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


def is_first_process() -> bool:
    """Whether this process is the only one, or the first of `torchrun`, whether or not they are launched."""
    return _from_torchrun("RANK", 0) == 0


def _from_torchrun(name: str, alone: int) -> int:
    return int(os.environ.get(name, alone)) if distributed.is_torchelastic_launched() else alone


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
        objective = self.objective.at(progress) if hasattr(self.objective, "at") else self.objective
        with torch.autocast(self.device_type, dtype=torch.bfloat16, enabled=self.mixed):
            loss, metrics = objective(self.flow, batch, generator)
        return loss, metrics
