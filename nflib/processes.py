"""The processes of `torchrun`, as its environment tells them; of a program without it there is one."""

from __future__ import annotations

import os

from torch import distributed


def from_torchrun(name: str, alone: int) -> int:
    """A number in the environment of `torchrun`, such as "RANK"; without `torchrun` the one of a process alone."""
    return int(os.environ.get(name, alone)) if distributed.is_torchelastic_launched() else alone


def is_first_process() -> bool:
    """Whether this process is the only one, or the first of `torchrun`, whether or not they are launched."""
    return from_torchrun("RANK", 0) == 0
