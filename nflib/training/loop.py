"""The training loop."""

from __future__ import annotations

import logging
import math
import os
import signal
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

import nflib.training.checkpoints as checkpoints
from nflib.contexts import map_context
from nflib.errors import ComputationError, check_object
from nflib.interfaces import stated
from nflib.io.descriptions import description_of
from nflib.networks import checkpoint_activations
from nflib.random import seeded_generator
from nflib.training.config import TrainingConfig
from nflib.training.data import Batch, Preparation, as_source, name_of
from nflib.training.ema import ExponentialMovingAverage
from nflib.training.fabric import LossModule, alone, launch, process_mean
from nflib.training.feed import Augmentation, Feed
from nflib.training.interruption import Interruption
from nflib.training.logs import RunLog
from nflib.training.objectives import Demands, Objective, maximum_likelihood
from nflib.training.optimizer import clip_gradient, make_optimizers
from nflib.training.schedule import learning_rate, progress
from nflib.training.seeds import OBJECTIVE
from nflib.training.state import Callback, TrainingResult, TrainingState
from nflib.training.validation import mean_loss

FIRST_CHECKPOINT_SECONDS = 60.0
logger = logging.getLogger(__name__)


def fit(
    flow: nn.Module,
    train: object = None,
    validation: object = None,
    *,
    config: TrainingConfig,
    objective: Objective = maximum_likelihood,
    output: str | os.PathLike[str],
    augment: Augmentation | None = None,
    callbacks: Sequence[Callback] = (),
) -> TrainingResult:
    """Train a flow, on one device or, unchanged, under `torchrun --nproc_per_node=N`.

    A run that was stopped is continued when called again with the same folder, with the very losses it would have had
    (on CPU, bit for bit). Ctrl-C and SIGTERM stop it after the present step, with a checkpoint; a second Ctrl-C stops
    it at once. After an error, in a callback or because the disk is full, it goes on from its last checkpoint.

    Args:
        flow: A module with `log_prob(inputs, context=None) -> (B,)`; moved to the device, and trained in place. It ends
            up in evaluation mode with the averaged weights that were saved.
        train: A tensor or array (N, ...), a tuple (inputs, context), a dict of tensors with "inputs", a map-style
            `Dataset` of those, or a `BatchSource`, which may renew its rows during training. A context may be a tuple
            of tensors, such as tokens and their padding mask. A dict may hold "weights"
            (N,), zero or more, of which the mean is divided out: the loss is ``sum w loss / sum w``. Integers and half
            precision are converted to the flow's dtype, and float32 to float64. None for an objective that draws its
            own samples.
        validation: Data of the same kinds, or None.
        config: The settings.
        objective: (flow, batch, generator) -> (loss, scalars to log), where batch is a dict of tensors.
        output: Folder that gets `model/` (the saved flow), `checkpoints/` and `logs/`.
        augment: (inputs, generator) -> inputs, applied to every global training batch where the data lie.
        callbacks: Called with the `TrainingState` after every step. A run that one of them ended by `state.stop` goes
            on too when `fit` is called again, until one does so again or the budget of `config` is spent.

    Returns:
        A summary; the flow itself is trained in place.

    Raises:
        ValueError: For data that do not fit, naming the row or key, an objective of other flows, a checkpoint that is
            damaged or of another model or configuration, or processes that see other checkpoints or data.
        ComputationError: Where loss or gradient stay non-finite.
        OSError: Where the folder cannot be written, the disk is full, or another run is at work in the folder.
        ModuleNotFoundError: Without lightning-fabric, which the extra nflib[training] brings.

    >>> import tempfile
    >>> from nflows import distributions, flows, transforms
    >>> transform = transforms.MaskedAffineAutoregressiveTransform(2, 8)
    >>> flow = flows.Flow(transform, distributions.StandardNormal([2]))
    >>> config = TrainingConfig(batch_size=32, max_steps=100, progress_bar=False, tensorboard=False)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     fit(flow, torch.randn(1000, 2), config=config, output=folder).steps
    100
    """
    # Absolute, for callbacks and the like may change the working directory.
    output = Path(output).absolute()
    # Taken before anything that another run may be at work on is read, removed or written.
    with alone(output):
        run = _Run(flow, train, validation, config, objective, output, augment, callbacks)
        # Dropout and the like draw from torch's global generator: it is seeded before every step, and given back.
        devices = [run.device] if run.device.type == "cuda" else []
        recomputing = checkpoint_activations(flow, enabled=config.checkpoint_activations)
        with run.interruption, recomputing, torch.random.fork_rng(devices=devices):
            try:
                return run.train()
            finally:
                run.batches.close()
                run.log.close()


class _Run:
    """One call of `fit`: everything that its steps share."""

    def __init__(
        self,
        flow: nn.Module,
        train: object,
        validation: object,
        config: TrainingConfig,
        objective: Objective,
        output: Path,
        augment: Augmentation | None,
        callbacks: Sequence[Callback],
    ) -> None:
        self.checkpoints, self.model = output / checkpoints.FOLDER, output / "model"
        found = checkpoints.latest_checkpoint(self.checkpoints)
        if found is not None and not config.resume:
            raise ValueError(
                f"{output} holds an earlier run; set resume=True to continue it, or choose another folder."
            )
        check_object("objective", objective, "FlowMatching()", "__call__")
        demands = stated(Demands, objective)
        for attribute, kind in demands.needs_flow.items():
            if not hasattr(flow, attribute):
                raise ValueError(
                    f"the objective {name_of(objective)} needs a flow with {attribute!r}, which {type(flow).__name__} "
                    f"does not have; train {kind}."
                )
        if demands.needs_data:
            if train is None:
                raise ValueError(f"the objective {name_of(objective)} needs training data; give them after the flow.")
        elif train is not None or validation is not None:
            raise ValueError(f"the objective {name_of(objective)} draws its own samples; leave the data out.")
        if config.accumulation > 1 and demands.whole_batch:
            raise ValueError(f"the objective {name_of(objective)} takes whole batches; set accumulation=1.")
        self.validation = None if validation is None else Preparation(as_source(validation), flow, objective)
        preparation = None if train is None else Preparation(as_source(train), flow, objective)
        self.config, self.callbacks = config, callbacks
        self.interruption = Interruption()
        self.interrupted = False  # by a signal to any of the processes

        self.fabric = launch(config)
        self.device: torch.device = self.fabric.device
        self.rank: int = self.fabric.global_rank
        self.feed = Feed(preparation, config, self.fabric, augment)
        self.flow = flow.to(self.device)
        # Before callbacks change any of it, such as a rate of dropout.
        self.description = description_of(flow)
        self.parameters = list(self.flow.parameters())
        self.named_optimizers = make_optimizers(flow, config, self.device)
        # Distributed wrapping gives all processes the weights of the first, so the average must come after.
        loss = LossModule(flow, objective, config.precision, self.device.type)
        self.loss, *self.optimizers = self.fabric.setup(loss, *self.named_optimizers.values())
        self.ema = ExponentialMovingAverage(flow, config.ema_decay)
        self.state = state = TrainingState(flow, config, output, self.ema)
        if found is not None:
            record = checkpoints.read_checkpoint(
                found, flow, self.ema, self.named_optimizers, config.fixed(), self.description
            )
            state.restore(record["state"])
            try:
                self.feed.load_state_dict(record["feed"])
            except (AttributeError, IndexError, KeyError, TypeError, RuntimeError) as error:
                raise checkpoints.damaged(found, f"the state of the data: {error!r}") from error
        self.has_checkpoint = found is not None
        self._check_alike(output)
        self.batches = self.feed.batches(state)
        self.log = RunLog(output, config, active=self.rank == 0, step=state.step, seconds=state.seconds)

    def _check_alike(self, output: Path) -> None:
        """Raise ValueError, on all processes, unless they begin at one step with as many rows of data.

        Nobody gets further, and so writes a checkpoint, before all have read theirs.
        """
        seen_by = torch.zeros(self.fabric.world_size, 2, dtype=torch.long, device=self.device)
        seen_by[self.rank] = torch.tensor([self.state.step, self.feed.order.length])
        first, *others = self.fabric.all_reduce(seen_by, reduce_op="sum").tolist()
        for number, other in enumerate(others, 1):
            if other[0] != first[0]:
                seen, seen_first = (f"step {step}" if step else "no checkpoint" for step in (other[0], first[0]))
                raise ValueError(
                    f"process {number} sees {seen} in {output}, process 0 {seen_first}; give a folder that all "
                    "processes share."
                )
            if other[1] != first[1]:
                raise ValueError(
                    f"process {number} has {other[1]} rows of training data, process 0 {first[1]}; give all processes "
                    "the same data."
                )

    def train(self) -> TrainingResult:
        """Steps until the end of the budget, or a signal."""
        state, config = self.state, self.config
        self._start = time.monotonic() - state.seconds
        validated = saved = state.seconds
        self.flow.train()
        while not (self._done() or self.interrupted):
            self.feed.refresh_if_due(state)
            metrics = self._step(next(self.batches))
            state.seconds, state.validation_loss = self._elapsed(), None
            due = self._due(config.validation_interval, config.validation_seconds, validated)
            if self.validation is not None and (due or self._done()):
                self._validate()
                validated = state.seconds = self._elapsed()
            if state.step % config.log_interval == 0 or state.validation_loss is not None or self._done():
                self._report(metrics)
            for callback in self.callbacks:
                callback(state)
            seconds = config.checkpoint_seconds
            if not self.has_checkpoint:
                seconds = min(seconds or math.inf, FIRST_CHECKPOINT_SECONDS)
            if self._done() or self.interrupted or self._due(config.checkpoint_interval, seconds, saved):
                self._save()
                saved = state.seconds
        if self.interrupted and self.rank == 0:
            logger.warning("stopped by a signal after step %d; start the run again to continue it.", state.step)
        return self._finish()

    def _step(self, batch: Batch) -> dict[str, torch.Tensor]:
        """One optimiser step, or a skipped one; returns the objective's scalars."""
        state, config = self.state, self.config
        path = config.seed, OBJECTIVE, state.step, self.rank
        rate = learning_rate(config, state.step, state.seconds)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
        generator = seeded_generator(*path, device=self.device)
        loss, metrics = self._gradient(batch, generator)
        norm = clip_gradient(self.parameters, config.gradient_clip)
        # One transfer from the device a step; the loss is averaged so that all processes decide alike.
        numbers = torch.stack([process_mean(self.fabric, loss), norm.to(loss.dtype)])
        state.loss, state.gradient_norm = numbers.tolist()
        state.learning_rate = rate
        state.step += 1
        if math.isfinite(state.loss) and math.isfinite(state.gradient_norm):
            for optimizer in self.optimizers:
                optimizer.step()
            self.ema.update(self.flow)
            state.skipped_in_a_row = 0
        else:
            state.skipped_steps += 1
            state.skipped_in_a_row += 1
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        if state.skipped_in_a_row > config.max_skipped_steps:
            raise ComputationError(
                f"loss or gradient was not finite in {state.skipped_in_a_row} steps in a row, up to step "
                f"{state.step} (loss {state.loss}, gradient norm {state.gradient_norm}); lower the learning "
                "rate or inspect the data."
            )
        return metrics

    def _gradient(self, batch: Batch, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Loss and scalars of a batch, whose gradients are then in the weights."""
        count, done = self.config.accumulation, progress(self.config, self.state.step, self.state.seconds)
        parts = [
            {name: map_context(lambda rows: rows.chunk(count)[number], value) for name, value in batch.items()}  # noqa: B023
            for number in range(count)
        ]
        found = []
        for number, part in enumerate(parts, 1):
            # Processes share their gradients once, when all parts are done.
            waits = number < count and self.fabric.world_size > 1
            with self.fabric.no_backward_sync(self.loss) if waits else nullcontext():
                loss, metrics = self.loss(part, generator, done)
                self.fabric.backward(loss / count)
            found.append((loss.detach(), metrics))
        # Scalars may be Python's numbers or counts: what is averaged, here and over processes, is as the loss.
        means = {
            name: torch.stack([torch.as_tensor(metrics[name]).detach().to(loss) for _, metrics in found]).mean()
            for name in found[0][1]
        }
        return torch.stack([loss for loss, _ in found]).mean(), means

    def _validate(self) -> None:
        """Mean objective over the validation data, with averaged weights."""
        state, config = self.state, self.config
        assert self.validation is not None
        size = config.validation_batch_size or config.batch_size
        with state.averaged():
            loss = mean_loss(self.loss.module, self.validation, size, config.seed, self.fabric)
            state.validation_loss = loss
            best = state.best_validation_loss
            if math.isfinite(loss) and (best is None or loss < best):
                state.best_validation_loss, state.best_step = loss, state.step
                if config.keep_best:
                    self._save_model()

    def _report(self, metrics: dict[str, torch.Tensor]) -> None:
        state = self.state
        state.metrics = {name: float(process_mean(self.fabric, value)) for name, value in metrics.items()}
        row = {
            "loss": state.loss,
            "gradient_norm": state.gradient_norm,
            "learning_rate": state.learning_rate,
            "skipped_steps": float(state.skipped_steps),
            "seconds": state.seconds,
        }
        shown: dict[str, float] = {"loss": state.loss, "lr": state.learning_rate}
        if state.validation_loss is not None:
            row["validation_loss"] = state.validation_loss
        if state.best_validation_loss is not None:
            shown["best"] = state.best_validation_loss
        if state.skipped_steps:
            shown["skipped"] = state.skipped_steps
        self.log.metrics(row | state.metrics, state.step)
        self.log.progress(state.step, state.seconds, shown)

    def _save(self) -> None:
        """Write a checkpoint, and the model unless that is kept at its best validation."""
        state, config = self.state, self.config
        if not config.keep_best or state.best_step is None:
            with state.averaged():
                self._save_model()
        if self.rank == 0:
            record: dict[str, Any] = {
                "config": config.fixed(),
                "flow": self.description,
                "feed": self.feed.state_dict(),
                "state": state.record(),
            }
            checkpoints.write_checkpoint(
                self.checkpoints,
                state.step,
                self.flow,
                self.ema,
                self.named_optimizers,
                record,
                config.checkpoints_kept,
            )
        self.has_checkpoint = True
        self.fabric.barrier()

    def _save_model(self) -> None:
        """Write the weights that the flow holds now."""
        if self.rank == 0:
            checkpoints.save_model(self.flow, self.model)

    def _finish(self) -> TrainingResult:
        state = self.state
        self.fabric.barrier()
        checkpoints.load_model(self.flow, self.model)
        self.flow.eval()
        return TrainingResult(
            steps=state.step,
            seconds=state.seconds,
            loss=state.loss,
            skipped_steps=state.skipped_steps,
            validation_loss=state.validation_loss,
            best_validation_loss=state.best_validation_loss,
            best_step=state.best_step,
            model=self.model,
        )

    def _done(self) -> bool:
        return self.state.stop or progress(self.config, self.state.step, self.state.seconds) >= 1

    def _due(self, interval: int | None, seconds: float | None, since: float) -> bool:
        by_steps = interval is not None and self.state.step % interval == 0
        return by_steps or (seconds is not None and self.state.seconds - since >= seconds)

    def _elapsed(self) -> float:
        """Seconds of training by the clock of the first process, so that all stop and save together.

        Signals are looked at here too, for the same reason.
        """
        seconds, signals = time.monotonic() - self._start, float(self.interruption.signal is not None)
        if self.fabric.world_size > 1:
            mine = torch.tensor([seconds if self.rank == 0 else 0.0, signals], device=self.device)
            seconds, signals = self.fabric.all_reduce(mine, reduce_op="sum").tolist()
        if signals:
            self.interrupted = True
            self.interruption.signal = self.interruption.signal or signal.SIGTERM
        return seconds
