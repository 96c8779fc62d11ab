"""State and result of a training run, for callbacks and callers."""

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
    """State of a training run, given to every callback after every step, on every process.

    An exception that a callback raises ends the run.

    Attributes:
        flow: The flow in training.
        config: The settings.
        output: Folder of the run.
        ema: The averaged weights; see `averaged`.
        step: Steps done so far.
        seconds: Wall-clock time of this run and those it resumes.
        loss: Of this step's global batch, averaged over the processes.
        gradient_norm: Before clipping.
        learning_rate: Of this step.
        metrics: Scalars of the objective at the last logged step.
        skipped_steps: Steps skipped so far, for a loss or gradient that was not finite.
        skipped_in_a_row: How many of the latest steps were skipped.
        validation_loss: None unless this step was validated.
        best_validation_loss: The lowest so far; None before the first validation.
        best_step: The step of that loss.
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
        """The flow with averaged weights, in evaluation mode, within ``with state.averaged() as flow:``."""
        return self.ema.applied(self.flow)


@dataclass(frozen=True)
class TrainingResult:
    """Summary of a finished training run.

    Attributes:
        steps: Steps done, skipped ones included.
        seconds: Wall-clock time of this run and those it resumed.
        loss: Of the last step's batch.
        skipped_steps: Steps skipped for a loss or gradient that was not finite.
        validation_loss: Of the last step; None where it was not validated.
        best_validation_loss: The lowest; None where none was computed.
        best_step: The step of the lowest validation loss.
        model: Folder of the saved weights, which the flow itself now holds, too.
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
