"""What a training run knows about itself, for callbacks and callers."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from nflib.training.config import TrainingConfig
from nflib.training.ema import ExponentialMovingAverage


@dataclass
class TrainingState:
    """Handed to every callback after every step, on every process; what a callback raises ends the run.

    Attributes:
        step: Steps done so far.
        seconds: Wall-clock time of this run and those it resumes.
        loss: Of this step's global batch, averaged over the processes.
        gradient_norm: Before clipping.
        metrics: Scalars of the objective at the last logged step.
        validation_loss: None unless this step was validated.
        stop: Setting it ends the run after this step, with a checkpoint; under torchrun every process must set it
            alike. It is not kept: `fit` called again goes on from there until a callback sets it again.
    """

    flow: nn.Module
    config: TrainingConfig
    output: Path
    ema: ExponentialMovingAverage
    step: int = 0
    seconds: float = 0.0
    loss: float = float("nan")
    gradient_norm: float = float("nan")
    learning_rate: float = float("nan")
    metrics: dict[str, float] = field(default_factory=dict)
    skipped_steps: int = 0
    skipped_in_a_row: int = 0
    validation_loss: float | None = None
    best_validation_loss: float | None = None
    best_step: int | None = None
    stop: bool = False

    def record(self) -> dict[str, Any]:
        """The numbers that a checkpoint keeps."""
        return {name: getattr(self, name) for name in RECORDED}

    def restore(self, record: dict[str, Any]) -> None:
        """Take over the numbers of a checkpoint."""
        for name in RECORDED:
            setattr(self, name, record[name])

    def averaged(self) -> AbstractContextManager[nn.Module]:
        """`with state.averaged() as flow:` gives the flow with averaged weights, in evaluation mode."""
        return self.ema.applied(self.flow)


@dataclass(frozen=True)
class TrainingResult:
    """Summary of a finished run; `model` is the folder of the saved weights, which the flow itself holds now
    too.
    """

    steps: int
    seconds: float
    loss: float
    skipped_steps: int
    validation_loss: float | None
    best_validation_loss: float | None
    best_step: int | None
    model: Path


RECORDED: dict[str, Any] = {
    "step": int,
    "seconds": float,
    "loss": float,
    "skipped_steps": int,
    "skipped_in_a_row": int,
    "validation_loss": float | None,
    "best_validation_loss": float | None,
    "best_step": int | None,
}
Callback = Callable[[TrainingState], None]
