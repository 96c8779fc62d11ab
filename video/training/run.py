"""The folder of a run: which of its processes writes, and that one that goes on is made as it began."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nflib.io import only_run
from nflib.training.checkpoints import latest_checkpoint
from nflib.training.fabric import is_first_process
from video.data.cache_folder import begin_cache

SETTINGS = "settings.json"


def begin_run(output: Path, wanted: Mapping[str, Any]) -> None:
    """Keep what a run is made with; raises ValueError where one that goes on was made with something else.

    One that has no checkpoint yet has nothing to go on with: it may have failed by these very settings.
    """
    if is_first_process():
        described = {name: json.dumps(value) for name, value in wanted.items()}
        with only_run(output):
            is_new = latest_checkpoint(output / "checkpoints") is None
            begin_cache(output, SETTINGS, described, SETTINGS, renew=is_new)


def check_samples(count: int) -> None:
    """Raise ValueError for a number of samples to show that is none."""
    if count < 0:
        raise ValueError(f"samples, how many are shown at each validation, must be zero or more, got {count}.")


def spread(total: int, count: int) -> Tensor:
    """So many of `total` numbers, evenly over all of them."""
    return torch.arange(count) * total // max(count, 1)
