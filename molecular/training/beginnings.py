"""What a run was begun with, so that it goes on with the same."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from torch import Tensor

from nflib.io import only_run, read_json, write_json
from nflib.training.checkpoints import latest_checkpoint
from nflib.training.fabric import is_first_process

# In the folder of a run.
CONFORMATIONS = "conformations.json"
FINGERPRINTED = 1000


def some_rows(count: int) -> Tensor:
    """Numbers of some of so many rows, evenly spaced: those by which data are told from others."""
    return torch.linspace(0, count - 1, min(count, FINGERPRINTED), dtype=torch.float64).long()


def fingerprint(tensors: Iterable[Tensor]) -> str:
    """The SHA-256 of what is in tensors."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def alone(output: str | Path) -> AbstractContextManager[object]:
    """No other run is at work in a folder meanwhile; as in `nflib.training.fit`, the first process sees to it."""
    return only_run(output) if is_first_process() else nullcontext()


def refuse_another_beginning(output: Path, data: str | Path, conformations: str | None, initial: str | None) -> None:
    """Raise ValueError where the run in a folder was begun with others than these; a new run's are written down.

    Other conformations, of another temperature or force field, may well be as many. Runs of earlier versions tell none.

    Args:
        output: folder of the run.
        data: where conformations are from, for the message.
        conformations: their fingerprint; None where they have none.
        initial: the fingerprint of the flow that it starts from; None for a new one.
    """
    now = {"fingerprint": conformations, "initial": initial}
    path = output / CONFORMATIONS
    if latest_checkpoint(output / "checkpoints") is None:
        write_json(path, now)
        return
    begun = read_json(path) if path.is_file() else {}
    changed = [name for name, value in now.items() if None not in (begun.get(name), value) and begun[name] != value]
    if "fingerprint" in changed:
        raise ValueError(
            f"the run in {output} was begun with other conformations than those in {data}, as of another temperature, "
            "force field or seed; go on with the same data, or choose another output."
        )
    if changed:
        raise ValueError(
            f"the run in {output} was begun from another flow than this one; go on from the same, or choose another "
            "output."
        )
