"""Settings of a training run."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np

OPTIMIZERS = ("adamw", "muon")
FREE = {"free": True}  # marks a field that may change between a run and its continuation


@dataclass(frozen=True)
class TrainingConfig:
    """Settings of a training run by `fit`.

    A run is resumed only under the configuration it was started with, and with a flow of the same settings, as far as
    these are known (`nflib.io.Pretrained`). The exceptions are `max_steps` and `max_seconds` (a longer horizon changes
    the rest of the learning-rate schedule) and what leaves the weights alone: intervals, logs, devices.

    Args:
        batch_size: rows of the global batch, shared evenly between the processes.
        accumulation: so many equal parts of each process's batch are computed one after the other, in the memory of
            one, and their gradients added up; the step is that of the whole batch, but for the parts' random numbers.
        checkpoint_activations: transformer layers keep their inputs alone and are computed once more for the backward
            pass: less memory for more time, and the same numbers.
        max_steps: stop after this many optimiser steps, skipped ones included.
        max_seconds: stop after this wall-clock time, summed over this run and those it resumes. The learning-rate
            schedule follows the larger of the two fractions `step / max_steps` and `seconds / max_seconds`.
        optimizer: "adamw", or "muon": matrices move by the orthogonal matrix nearest to their momentum (Jordan et al.
            2024; Liu et al. 2025, arXiv 2502.16982), all else by AdamW.
        learning_rate: peak learning rate.
        final_learning_rate: floor of the cosine schedule, as a fraction of `learning_rate`.
        warmup_steps: steps of the linear warm-up; None takes `warmup_fraction` of the run.
        warmup_fraction: share of the run spent in the linear warm-up, where `warmup_steps` is None.
        betas: decays a step of AdamW's first and second moments.
        epsilon: added to the denominator of AdamW's steps.
        weight_decay: decoupled decay; not applied to biases, norms, embeddings and other vectors, nor in modules whose
            class says ``decays = False``.
        gradient_clip: largest norm of the gradient of all parameters; None leaves it.
        max_skipped_steps: so many steps in a row with a non-finite loss or gradient are skipped; one more is an
            error.
        ema_decay: decay per step of the averaged weights, 0 for none; early on it is at most (1 + n) / (10 + n).
        precision: "32-true", or "bf16-mixed" for bfloat16 autocast.
        seed: seeds the order of the data, augmentation, and whatever the model, the objective or the items of a dataset
            draw, torch's global generator included.
        refresh_interval: steps between calls of the training data's `refresh`; None never calls it.
        num_workers: processes that load items of a torch `Dataset` ahead; 0 loads in this process.
        validation_interval: validate at every multiple of so many steps; None for not by steps. The last step is
            always validated.
        validation_seconds: validate where the last time is so many seconds ago; None for not by the clock.
        validation_batch_size: rows of a validation batch; None takes `batch_size`.
        keep_best: with validation data, the saved model is the one of lowest validation loss, else that of the
            last step.
        checkpoint_interval: write a checkpoint at every multiple of so many steps; None for not by steps. There is one
            at the end too, and when a signal stops the run.
        checkpoint_seconds: write one where the last is so many seconds ago; None for not by the clock. The first comes
            after a minute at the latest.
        checkpoints_kept: how many of the latest checkpoints stay on disk.
        resume: continue from the latest checkpoint in the output folder, if there is one; False raises ValueError
            instead.
        log_interval: steps between rows of the logs.
        tensorboard: also write TensorBoard event files.
        progress_bar: show a tqdm bar.
        accelerator: "auto", "cpu", "cuda" or "mps".
        process_group_backend: torch.distributed backend under torchrun; None lets the accelerator choose.
        find_unused_parameters: as in DistributedDataParallel; needed where some parameters get no gradient.

    Raises:
        ValueError: Where a value makes no sense. NumPy's numbers are taken, and whole numbers such as 1e4 for counts.
    """

    batch_size: int = 256
    accumulation: int = field(default=1, metadata=FREE)
    checkpoint_activations: bool = field(default=False, metadata=FREE)
    max_steps: int | None = field(default=None, metadata=FREE)
    max_seconds: float | None = field(default=None, metadata=FREE)
    optimizer: str = "adamw"
    learning_rate: float = 1e-3
    final_learning_rate: float = 0.01
    warmup_steps: int | None = None
    warmup_fraction: float = 0.05
    betas: tuple[float, float] = (0.9, 0.99)
    epsilon: float = 1e-8
    weight_decay: float = 1e-4
    gradient_clip: float | None = 1.0
    max_skipped_steps: int = 20
    ema_decay: float = 0.999
    precision: str = "32-true"
    seed: int = 0
    refresh_interval: int | None = None
    num_workers: int = field(default=0, metadata=FREE)
    validation_interval: int | None = field(default=1000, metadata=FREE)
    validation_seconds: float | None = field(default=None, metadata=FREE)
    validation_batch_size: int | None = field(default=None, metadata=FREE)
    keep_best: bool = field(default=True, metadata=FREE)
    checkpoint_interval: int | None = field(default=1000, metadata=FREE)
    checkpoint_seconds: float | None = field(default=600.0, metadata=FREE)
    checkpoints_kept: int = field(default=2, metadata=FREE)
    resume: bool = field(default=True, metadata=FREE)
    log_interval: int = field(default=10, metadata=FREE)
    tensorboard: bool = field(default=True, metadata=FREE)
    progress_bar: bool = field(default=True, metadata=FREE)
    accelerator: str = field(default="auto", metadata=FREE)
    process_group_backend: str | None = field(default=None, metadata=FREE)
    find_unused_parameters: bool = field(default=False, metadata=FREE)

    def __post_init__(self) -> None:
        try:
            betas = tuple(map(float, self.betas))  # YAML files give lists
        except (TypeError, ValueError):
            betas = ()
        if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas must be two numbers in [0, 1), not {self.betas!r}.")
        object.__setattr__(self, "betas", betas)
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, np.generic):  # of which checkpoints could not be read without unpickling
                value = value.item()
            kind, _, optional = str(item.type).partition(" | ")
            if kind in ("int", "float") and not (value is None and optional):
                value = _number(item.name, value, whole=kind == "int")
            object.__setattr__(self, item.name, value)
        if self.max_steps is None and self.max_seconds is None:
            raise ValueError("training never ends without max_steps or max_seconds; set one of them.")
        for name in _POSITIVE:
            value = getattr(self, name)
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise ValueError(f"{name} must be positive, not {value!r}.")
        for name in _NOT_NEGATIVE:
            value = getattr(self, name)
            if value is not None and not (value >= 0 and math.isfinite(value)):
                raise ValueError(f"{name} must be zero or more, not {value!r}.")
        for name in ("final_learning_rate", "warmup_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a fraction, between 0 and 1, not {getattr(self, name)!r}.")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must be in [0, 1), not {self.ema_decay!r}.")
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer must be one of {', '.join(OPTIMIZERS)}, not {self.optimizer!r}.")
        if self.precision not in ("32-true", "bf16-mixed"):
            raise ValueError(f'precision must be "32-true" or "bf16-mixed", not {self.precision!r}.')

    def fixed(self) -> dict[str, Any]:
        """The settings that must be the same when a run is resumed."""
        free = {item.name for item in fields(self) if item.metadata.get("free")}
        values = {name: value for name, value in asdict(self).items() if name not in free}
        return values | {"betas": list(self.betas)}


def _number(name: str, value: Any, *, whole: bool) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float) or (whole and value % 1 != 0):
        raise ValueError(f"{name} must be a {'whole ' if whole else ''}number, not {value!r}.")
    return int(value) if whole else value


_POSITIVE = (
    "batch_size",
    "accumulation",
    "max_steps",
    "max_seconds",
    "learning_rate",
    "epsilon",
    "gradient_clip",
    "refresh_interval",
    "validation_interval",
    "validation_seconds",
    "validation_batch_size",
    "checkpoint_interval",
    "checkpoint_seconds",
    "checkpoints_kept",
    "log_interval",
)
_NOT_NEGATIVE = ("warmup_steps", "weight_decay", "max_skipped_steps", "num_workers", "seed")
