"""The folder of a run: which of its processes writes, and that one that goes on is made as it began."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nflib.errors import ComputationError
from nflib.processes import is_first_process
from nflib.training import TrainingResult, has_begun
from video.data.cache_folder import begin_cache

SETTINGS = "settings.json"


def begin_run(output: Path, wanted: Mapping[str, Any], former: Mapping[str, Any]) -> None:
    """Keep what a run is made with; raises ValueError where one that goes on was made with something else.

    One that has no checkpoint yet has nothing to go on with: it may have failed by these very settings.

    Args:
        output: folder of the run, which is this process's alone (`nflib.training.alone`).
        wanted: what it is made with, by name.
        former: of that, what runs of earlier versions kept in other words.
    """
    if is_first_process():
        described, before = ({name: json.dumps(value) for name, value in part.items()} for part in (wanted, former))
        begin_cache(output, SETTINGS, described, SETTINGS, renew=not has_begun(output), former=before)


def check_validated(result: TrainingResult) -> None:
    """Raise ComputationError for a training of which no validation was finite: it has no model to keep."""
    # A run that a callback ended may not have been validated yet.
    if result.best_validation_loss is None and result.validation_loss is not None:
        raise ComputationError(
            f"no validation was finite in {result.steps} steps, so there is no model to keep; train with a smaller "
            "training.learning_rate, in another output."
        )


def check_samples(count: int) -> None:
    """Raise ValueError for a number of samples to show that is none."""
    if count < 0:
        raise ValueError(f"samples, how many are shown at each validation, must be zero or more, got {count}.")


def spread(total: int, count: int) -> Tensor:
    """So many of `total` numbers, evenly over all of them."""
    return torch.arange(count) * total // max(count, 1)
