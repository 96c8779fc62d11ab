"""The folder of a run: which of its processes writes, and that one that goes on is made as it began."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed

from video.data.cache_folder import begin_cache

SETTINGS = "settings.json"


def is_first_process() -> bool:
    """Whether this process is the only one, or the first that torchrun has started."""
    return not distributed.is_torchelastic_launched() or os.environ["RANK"] == "0"


def begin_run(output: Path, wanted: Mapping[str, Any]) -> None:
    """Keep what a run is made with; raises ValueError where one that goes on was made with something else."""
    if is_first_process():
        output.mkdir(parents=True, exist_ok=True)
        begin_cache(output, SETTINGS, {name: json.dumps(value) for name, value in wanted.items()}, SETTINGS, False)


def spread(total: int, count: int) -> Tensor:
    """So many of `total` numbers, evenly over all of them."""
    return torch.arange(count) * total // max(count, 1)
