"""Checkpoints: folders that appear whole or not at all, and are read without unpickling anything."""

from __future__ import annotations

import os
import pickle
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from nflib.training.ema import ExponentialMovingAverage

WEIGHTS, TRAINING = "weights.safetensors", "training.pt"
MODEL, AVERAGE = "model.", "average."
_NAME = re.compile(r"step-(\d{9})")


def prepare_output(output: Path) -> None:
    """Create the output folder and try to write into it; raises ValueError where that fails."""
    probe = output / f".probe-{os.getpid()}"
    try:
        output.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        reason = error.strerror or error
        raise ValueError(f"the output folder {output} cannot be written ({reason}); choose another one.") from error


def latest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of the highest step in `folder`, or None."""
    return max(_checkpoints(folder), default=None)


def _checkpoints(folder: Path) -> list[Path]:
    """Oldest first: their names sort as their steps do."""
    return sorted(path for path in folder.glob("step-*") if _NAME.fullmatch(path.name))


def write_checkpoint(
    folder: Path,
    step: int,
    flow: nn.Module,
    ema: ExponentialMovingAverage,
    optimizer: Optimizer,
    record: dict[str, Any],
    kept: int,
) -> Path:
    """Write `folder`/step-000000123, and remove all but the `kept` latest.

    record: a dict of plain tensors, numbers, strings, lists and dicts.
    The files are written under another name and renamed together, so that a run killed meanwhile leaves the
    checkpoint before untouched.
    """
    final = folder / f"step-{step:09d}"
    temporary = folder / f".{final.name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    weights = {MODEL + name: value for name, value in flow.state_dict().items()}
    weights |= {AVERAGE + name: value for name, value in ema.average.items()}
    # Clones, because safetensors refuses tensors that share their memory (tied weights).
    save_file(
        {name: value.detach().cpu().clone().contiguous() for name, value in weights.items()},
        temporary / WEIGHTS,
    )
    torch.save(record | {"optimizer": optimizer.state_dict(), "ema_updates": ema.updates}, temporary / TRAINING)
    for path in temporary.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    if final.exists():
        shutil.rmtree(final)
    os.replace(temporary, final)
    for path in _checkpoints(folder)[:-kept]:
        shutil.rmtree(path)
    return final


def read_checkpoint(
    path: Path, flow: nn.Module, ema: ExponentialMovingAverage, optimizer: Optimizer, fixed: dict[str, Any]
) -> dict[str, Any]:
    """Load a checkpoint into flow, average and optimiser, and return its record.

    Raises ValueError where it is damaged, belongs to another model, or was made under settings other than
    `fixed`.
    """
    try:
        weights = load_file(path / WEIGHTS)
        record: dict[str, Any] = torch.load(path / TRAINING, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError, RuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise ValueError(
            f"the checkpoint {path} is damaged ({error}); remove that folder to use an earlier one."
        ) from error
    changed = [name for name in fixed if record["config"].get(name) != fixed[name]]
    if changed:
        name = changed[0]
        raise ValueError(
            f"{path} was made with {name}={record['config'].get(name)!r}, not {fixed[name]!r}; resume "
            "with the same configuration, or choose another output folder."
        )
    own = {MODEL + name: value for name, value in flow.state_dict().items()}
    own |= {AVERAGE + name: value for name, value in ema.average.items()}
    unlike = sorted(own.keys() ^ weights.keys())
    unlike += sorted(name for name in own.keys() & weights.keys() if own[name].shape != weights[name].shape)
    if unlike:
        raise ValueError(
            f"{path} belongs to another model: {len(unlike)} tensors are missing, unknown or of another "
            f"shape, for example {unlike[0].removeprefix(MODEL)!r}; choose another output folder."
        )
    flow.load_state_dict({name.removeprefix(MODEL): t for name, t in weights.items() if name.startswith(MODEL)})
    for name, average in ema.average.items():
        average.copy_(weights[AVERAGE + name])
    ema.updates = int(record["ema_updates"])
    optimizer.load_state_dict(record["optimizer"])
    return record


def save_model(flow: nn.Module, folder: Path) -> None:
    """Write the flow's weights as they are: by its own `save_pretrained` if it has one, else
    model.safetensors.
    """
    if hasattr(flow, "save_pretrained"):
        flow.save_pretrained(folder)  # type: ignore[operator]
        return
    folder.mkdir(parents=True, exist_ok=True)
    state: dict[str, Tensor] = {name: value.detach().cpu().clone() for name, value in flow.state_dict().items()}
    temporary = folder / ".model.safetensors.tmp"
    save_file({name: value.contiguous() for name, value in state.items()}, temporary)
    os.replace(temporary, folder / "model.safetensors")


def load_model(flow: nn.Module, folder: Path) -> None:
    """Read what `save_model` wrote back into the flow."""
    if hasattr(flow, "load_pretrained"):
        flow.load_pretrained(folder)  # type: ignore[operator]
        return
    flow.load_state_dict(load_file(folder / "model.safetensors"))
