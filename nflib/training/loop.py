"""The training loop."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nflib.training import seeds
from nflib.training.checkpoints import (
    latest_checkpoint,
    load_model,
    prepare_output,
    read_checkpoint,
    save_model,
    write_checkpoint,
)
from nflib.training.config import TrainingConfig
from nflib.training.data import Batch, BatchSource, EpochOrder, TensorSource, as_source, prepare, rank_slice
from nflib.training.data import training_batches as batches_from
from nflib.training.ema import ExponentialMovingAverage
from nflib.training.fabric import LossModule, launch
from nflib.training.logs import RunLog
from nflib.training.objectives import Objective, maximum_likelihood
from nflib.training.optimizer import clip_gradient, make_optimizer
from nflib.training.schedule import learning_rate, progress
from nflib.training.state import Callback, TrainingResult, TrainingState

Augmentation = Callable[[Tensor, torch.Generator], Tensor]


def fit(
    flow: nn.Module,
    train: object,
    validation: object = None,
    *,
    config: TrainingConfig,
    objective: Objective = maximum_likelihood,
    output: str | os.PathLike[str],
    augment: Augmentation | None = None,
    callbacks: Sequence[Callback] = (),
) -> TrainingResult:
    """Train a flow, on one device or, unchanged, under `torchrun --nproc_per_node=N`.

    flow: a module with `log_prob(inputs, context=None) -> (B,)`; moved to the device, and trained in place. It ends up
        with the averaged weights that were saved.
    train, validation: a tensor (N, ...), a tuple (inputs, context), a dict of tensors with "inputs", a map-style
        `Dataset` of those, or a `BatchSource`, which may renew its rows during training.
    objective: (flow, batch, generator) -> (loss, scalars to log), where batch is a dict of tensors.
    output: folder that gets `model/` (the saved flow), `checkpoints/` and `logs/`. A run that was stopped is continued
        when called again with the same folder, with the very losses it would have had (on CPU, bit for bit).
    augment: (inputs, generator) -> inputs, applied to every global training batch where the data lie.
    callbacks: called with the `TrainingState` after every step.

    Raises ValueError for a folder that cannot be written, NaN in the data (naming the row), or a checkpoint of another
    model or configuration; RuntimeError where loss or gradient stay non-finite.

    >>> from nflows import distributions, flows, transforms
    >>> flow = flows.Flow(transforms.PointwiseAffineTransform(1.0, 2.0), distributions.StandardNormal([2]))
    >>> fit(flow, torch.randn(8, 2), config=TrainingConfig(max_steps=1), output="run")
    Traceback (most recent call last):
    ValueError: Flow has no trainable parameters; there is nothing to fit.
    """
    run = _Run(flow, train, validation, config, objective, Path(output), augment, callbacks)
    # Dropout and the like draw from torch's global generator: it is seeded before every step, and given back at the end.
    devices = [run.device] if run.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        try:
            return run.train()
        finally:
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
        prepare_output(output)
        self.checkpoints = output / "checkpoints"
        self.model = output / "model"
        found = latest_checkpoint(self.checkpoints)
        if found is not None and not config.resume:
            raise ValueError(
                f"{output} holds an earlier run; set resume=True to continue it, or choose another folder."
            )
        self.config, self.augment, self.callbacks = config, augment, callbacks
        self.source = as_source(train)
        self.validation = None if validation is None else as_source(validation)
        self.order = EpochOrder(len(self.source), config.batch_size, config.seed)

        self.fabric = launch(config)
        self.device: torch.device = self.fabric.device
        self.rank, self.world_size = self.fabric.global_rank, self.fabric.world_size
        flow.to(self.device)
        optimizer = make_optimizer(flow, config, self.device)
        # Distributed wrapping gives all processes the weights of the first, so the average must come after it.
        loss = LossModule(flow, objective, config.precision, self.device.type)
        self.loss, self.optimizer = self.fabric.setup(loss, optimizer)
        self.flow = flow
        self.ema = ExponentialMovingAverage(flow, config.ema_decay)
        self.state = TrainingState(flow, config, output, self.ema)
        stale = False
        if found is not None:
            stale = self._resume(found)
        self.log = RunLog(
            output, config, active=self.rank == 0, step=self.state.step, seconds=self.state.seconds
        )
        self._start = time.monotonic() - self.state.seconds
        if stale:
            self._refresh()

    def train(self) -> TrainingResult:
        """Steps until the end of the budget."""
        state, config = self.state, self.config
        batches = self._batches()
        validated = saved = state.seconds
        self.flow.train()
        while not self._done():
            if config.refresh_interval and state.step and state.step % config.refresh_interval == 0:
                self._refresh()
            self._step(next(batches))
            state.seconds = self._elapsed()
            state.validation_loss = None
            last = self._done()
            if self.validation is not None and (
                last or self._due(config.validation_interval, config.validation_seconds, validated)
            ):
                self._validate()
                validated = state.seconds = self._elapsed()
            self._report(last)
            for callback in self.callbacks:
                callback(state)
            last = self._done()
            if last or self._due(config.checkpoint_interval, config.checkpoint_seconds, saved):
                self._save(last)
                saved = state.seconds
        return self._finish()

    def _step(self, batch: Batch) -> None:
        state, config = self.state, self.config
        torch.manual_seed(seeds.derived_seed(config.seed, seeds.OBJECTIVE, state.step, self.rank))
        generator = self._generator(seeds.OBJECTIVE, state.step, self.rank)
        rate = learning_rate(config, state.step, state.seconds)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss, metrics = self.loss(batch, generator)
        self.fabric.backward(loss)
        norm = clip_gradient(self.flow, config.gradient_clip)
        # One transfer from the device a step; the loss is averaged so that all processes decide alike.
        state.loss, length = torch.stack([self._mean(loss.detach()).double(), norm.double()]).tolist()
        if math.isfinite(state.loss) and math.isfinite(length):
            self.optimizer.step()
            self.ema.update(self.flow)
            state.skipped_in_a_row = 0
        else:
            state.skipped_steps += 1
            state.skipped_in_a_row += 1
        self.optimizer.zero_grad(set_to_none=True)
        self._pending = metrics
        state.metrics = {"gradient_norm": length, "learning_rate": rate}
        if state.skipped_in_a_row > config.max_skipped_steps:
            raise RuntimeError(
                f"loss or gradient was not finite in {state.skipped_in_a_row} steps in a row, up to step {state.step} "
                f"(loss {state.loss}, gradient norm {length}); lower the learning rate or inspect the data."
            )
        state.step += 1

    def _validate(self) -> None:
        """Mean objective over the validation data, with averaged weights."""
        state, source = self.state, self.validation
        assert source is not None
        total, rows = torch.zeros((), dtype=torch.float64), 0
        size = self.config.validation_batch_size or self.config.batch_size
        with self.ema.applied(self.flow), torch.no_grad():
            for start in range(0, len(source), size):
                indices = torch.arange(start, min(start + size, len(source)))
                part = indices[rank_slice(len(indices), self.rank, self.world_size)]
                batch = self._to_device(source, source.batch(part), part)
                loss, _ = self.loss.module(batch, self._generator(seeds.VALIDATION, start, self.rank))
                total += self._mean(loss.detach()).double().cpu() * len(indices)
                rows += len(indices)
        state.validation_loss = float(total / rows)
        if state.best_validation_loss is None or state.validation_loss < state.best_validation_loss:
            state.best_validation_loss, state.best_step = state.validation_loss, state.step
            if self.config.keep_best:
                self._save_model()

    def _report(self, last: bool) -> None:
        state = self.state
        if state.step % self.config.log_interval and not last and state.validation_loss is None:
            return
        state.metrics |= {name: float(value) for name, value in self._pending.items()}
        scalars = {"loss": state.loss, "seconds": state.seconds, "skipped_steps": float(state.skipped_steps)}
        shown = {"loss": state.loss, "lr": state.metrics["learning_rate"]}
        if state.best_validation_loss is not None:
            shown["best"] = state.best_validation_loss
        if state.validation_loss is not None:
            scalars["validation_loss"] = state.validation_loss
        if state.skipped_steps:
            shown["skipped"] = state.skipped_steps
        self.log.metrics(scalars | state.metrics, state.step)
        self.log.progress(state.step, state.seconds, shown)

    def _batches(self) -> Iterator[Batch]:
        """This process's part of the global batches, from the present step on."""
        size, step = self.config.batch_size, self.state.step
        part = rank_slice(size, self.rank, self.world_size)
        # The same random numbers reach the same rows on any number of processes only if all augment the whole batch.
        loaded = slice(0, size) if self.augment is not None else part
        for indices, batch in batches_from(self.source, self.order, step, loaded, self.config.num_workers):
            if self.augment is not None:
                inputs = batch["inputs"]
                generator = seeds.derived_generator(
                    self.config.seed, seeds.AUGMENTATION, self.state.step, device=inputs.device
                )
                batch = batch | {"inputs": self.augment(inputs, generator)}
                batch = {name: value[part] for name, value in batch.items()}
                indices = indices[part]
            yield self._to_device(self.source, batch, indices)

    def _to_device(self, source: BatchSource, batch: Batch, indices: Tensor) -> Batch:
        checked = isinstance(source, TensorSource) and self.augment is None
        moved: Batch = self.fabric.to_device(prepare(batch, None if checked else indices, self.flow))
        return moved

    def _refresh(self) -> None:
        refresh = getattr(self.source, "refresh", None)
        if refresh is None:
            raise ValueError(
                f"refresh_interval is set, but {type(self.source).__name__} has no refresh method."
            )
        step = self.state.step
        with self.ema.applied(self.flow):
            torch.manual_seed(seeds.derived_seed(self.config.seed, seeds.REFRESH, step))
            refresh(self.flow, step, self._generator(seeds.REFRESH, step))
        if len(self.source) != self.order.length:
            self.order.restart(step, len(self.source))

    def _save(self, last: bool) -> None:
        if self.validation is None or not self.config.keep_best or (last and self.state.best_step is None):
            with self.ema.applied(self.flow):
                self._save_model()
        if self.rank == 0:
            state = self.state
            source_state = getattr(self.source, "state_dict", None)
            record = {
                "config": self.config.fixed(),
                "order": self.order.state_dict(),
                "source": None if source_state is None else source_state(),
                "state": {name: getattr(state, name) for name in _SAVED_STATE},
            }
            optimizer = self.optimizer.optimizer
            write_checkpoint(
                self.checkpoints,
                state.step,
                self.flow,
                self.ema,
                optimizer,
                record,
                self.config.checkpoints_kept,
            )
        self.fabric.barrier()

    def _save_model(self) -> None:
        """Write the weights that the flow holds now."""
        if self.rank == 0:
            save_model(self.flow, self.model)

    def _resume(self, checkpoint: Path) -> bool:
        """Load a checkpoint; whether the training data must be renewed, because their state was not saved."""
        record = read_checkpoint(
            checkpoint, self.flow, self.ema, self.optimizer.optimizer, self.config.fixed()
        )
        for name in _SAVED_STATE:
            setattr(self.state, name, record["state"][name])
        restore = getattr(self.source, "load_state_dict", None)
        if restore is not None and record["source"] is not None:
            restore(record["source"])
        self.order.load_state_dict(record["order"])
        stale = record["source"] is None and hasattr(self.source, "refresh") and self.config.refresh_interval
        if not stale and len(self.source) != self.order.length:
            raise ValueError(
                f"{checkpoint} was made with {self.order.length} rows of training data, not {len(self.source)}; resume "
                "with the same data, or choose another output folder."
            )
        return bool(stale) and self.state.step % self.config.refresh_interval != 0  # type: ignore[operator]

    def _finish(self) -> TrainingResult:
        state = self.state
        self.fabric.barrier()
        load_model(self.flow, self.model)
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
        """Seconds of training so far; those of the first process, so that all stop, validate and save together."""
        seconds = time.monotonic() - self._start
        if self.world_size > 1:
            mine = torch.tensor(seconds if self.rank == 0 else 0.0, dtype=torch.float64, device=self.device)
            seconds = float(self.fabric.all_reduce(mine, reduce_op="sum"))
        return seconds

    def _mean(self, value: Tensor) -> Tensor:
        """Mean over the processes."""
        if self.world_size == 1:
            return value
        mean: Any = self.fabric.all_reduce(value.clone(), reduce_op="mean")
        return mean

    def _generator(self, *path: int) -> torch.Generator:
        return seeds.derived_generator(self.config.seed, *path, device=self.device)


_SAVED_STATE = (
    "step",
    "seconds",
    "loss",
    "skipped_steps",
    "skipped_in_a_row",
    "validation_loss",
    "best_validation_loss",
    "best_step",
)
