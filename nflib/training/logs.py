"""Where a run reports to: CSV and TensorBoard files, and a progress bar. Only the first process writes."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from nflib.training.config import TrainingConfig

logger = logging.getLogger(__name__)


class RunLog:
    """Rows of scalars in `output`/logs/version_N/metrics.csv (N counts runs) and beside it as TensorBoard
    events.
    """

    def __init__(self, output: Path, config: TrainingConfig, *, active: bool, step: int, seconds: float) -> None:
        self.config, self.folder = config, output / "logs"
        with _writing(self.folder):
            self.writers: list[Any] = _writers(output, config.tensorboard) if active else []
        self.bar = _progress_bar(config, step, seconds) if active and config.progress_bar else None
        self._first = (step, seconds)

    def metrics(self, scalars: dict[str, float], step: int) -> None:
        """Write one row of scalars."""
        with _writing(self.folder):
            for writer in self.writers:
                writer.log_metrics(scalars, step)

    def progress(self, step: int, seconds: float, scalars: dict[str, float]) -> None:
        """Move the progress bar; `scalars` appear behind it, with the steps per second of this run."""
        if self.bar is None:
            return
        rate = (step - self._first[0]) / max(seconds - self._first[1], 1e-9)
        shown = {name: f"{value:.4g}" for name, value in scalars.items()}
        self.bar.set_postfix(shown | {"steps/s": f"{rate:.3g}"}, refresh=False)
        position = step if self.config.max_steps is not None else seconds
        # tqdm forgets the total of a bar that runs past its end, as the last step of a timed run does.
        self.bar.update(min(position, self.bar.total) - self.bar.n)

    def close(self) -> None:
        """Flush and close everything."""
        if self.bar is not None:
            self.bar.close()
        with _writing(self.folder):
            for writer in self.writers:
                writer.finalize("success")


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Raises what is wrong with the folder being written, most likely a full disk, as an OSError of one sentence."""
    try:
        yield
    except OSError as error:
        raise OSError(
            f"{folder} cannot be written ({error.strerror or error}); make room and start the run again, which goes on "
            "from its last checkpoint, or choose another folder."
        ) from error


def _writers(output: Path, tensorboard: bool) -> list[Any]:
    from lightning_fabric.loggers import CSVLogger, TensorBoardLogger

    csv = CSVLogger(root_dir=output, name="logs", flush_logs_every_n_steps=1)
    writers: list[Any] = [csv]
    csv.experiment  # noqa: B018 - makes the folder, and so fixes the run's number
    if tensorboard:
        try:
            writers.append(TensorBoardLogger(root_dir=output, name="logs", version=csv.version))
        except ModuleNotFoundError:
            logger.warning("tensorboard is not installed: %s gets CSV logs only.", output)
    return writers


def _progress_bar(config: TrainingConfig, step: int, seconds: float) -> tqdm[Any]:
    interval = 0.5 if sys.stderr.isatty() else 30.0  # a log file needs fewer lines than a terminal
    if config.max_steps is not None:
        return tqdm(total=config.max_steps, initial=step, desc="training", unit="step", mininterval=interval)
    layout = "{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} s [{remaining} left{postfix}]"
    return tqdm(total=config.max_seconds, initial=seconds, desc="training", bar_format=layout, mininterval=interval)
