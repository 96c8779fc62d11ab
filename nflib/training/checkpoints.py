"""Checkpoints: folders that appear whole or not at all, and are read without unpickling anything."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from nflib.io.state_dicts import not_finite
from nflib.training.ema import ExponentialMovingAverage
from nflib.training.state import RECORDED

WEIGHTS, TRAINING = "weights.safetensors", "training.pt"
MODEL, AVERAGE = "model.", "average."
RECORD: dict[str, Any] = {
    "config": dict,
    "feed": {"order": {"length": int, "first_step": int, "first_epoch": int}, "source": object},
    "state": RECORDED,
    "ema_updates": int,
}
OPTIMIZER: dict[str, Any] = {"state": dict, "param_groups": list}
MOMENTS = {"optimizer": {"step", "exp_avg", "exp_avg_sq"}, "muon": {"momentum_buffer"}}  # by the optimiser's name
_NAME = re.compile(r"step-(\d{9})")


def check_writable(output: Path) -> None:
    """Create the output folder, and try to write into it.

    Raises:
        ValueError: Where the folder cannot be written.
    """
    probe = output / f".probe-{os.getpid()}"
    try:
        output.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        for left in output.glob(".probe-*"):
            left.unlink(missing_ok=True)
    except OSError as error:
        reason = error.strerror or error
        raise ValueError(f"the output folder {output} cannot be written ({reason}); choose another one.") from error


def remove_left_overs(output: Path) -> None:
    """Remove what a killed run left half written."""
    for path in (output / "checkpoints").glob(".step-*.tmp"):
        shutil.rmtree(path, ignore_errors=True)
    for path in (output / "model").glob(".*.tmp"):
        path.unlink(missing_ok=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Whatever goes wrong with a file or folder being written, most likely a full disk, as one sentence.

    Raises:
        OSError: Also for what safetensors and torch raise, which is none.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        raise OSError(
            f"{path} cannot be written ({str(error).splitlines()[0]}); free some space and start the run again: it "
            "goes on from its last checkpoint."
        ) from error


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
    optimizers: dict[str, Optimizer],
    record: dict[str, Any],
    kept: int,
) -> Path:
    """Write `folder`/step-000000123, and remove all but the `kept` latest.

    The files are written under another name and renamed together, so that a run killed meanwhile leaves the
    checkpoint before untouched.

    Args:
        record: A dict of plain tensors, numbers, strings, lists and dicts.

    Raises:
        OSError: Where it cannot be written.
    """
    final = folder / f"step-{step:09d}"
    temporary = _hidden(final)
    weights = {MODEL + name: value for name, value in flow.state_dict().items()}
    weights |= {AVERAGE + name: value for name, value in ema.average.items()}
    record = record | {"ema_updates": ema.updates}
    record |= {name: optimizer.state_dict() for name, optimizer in optimizers.items()}
    with writing(final):
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            _save_tensors(weights, temporary / WEIGHTS)
            torch.save(record, temporary / TRAINING)
            for path in temporary.iterdir():
                _synchronise(path)
            for old in [final] if final.exists() else []:
                shutil.rmtree(old)
            os.replace(temporary, final)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        for old in _checkpoints(folder)[:-kept]:
            os.replace(old, _hidden(old))  # half a checkpoint must not look like one
            shutil.rmtree(_hidden(old))
    return final


def _hidden(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp")


def _save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    # Clones, because safetensors refuses tensors that share their memory (tied weights).
    save_file({name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}, path)


def _synchronise(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def read_checkpoint(
    path: Path,
    flow: nn.Module,
    ema: ExponentialMovingAverage,
    optimizers: dict[str, Optimizer],
    fixed: dict[str, Any],
) -> dict[str, Any]:
    """Load a checkpoint into flow, average and optimisers, and return its record.

    Raises:
        ValueError: Where it is damaged, belongs to another model, or was made under settings other than `fixed`.
    """
    try:
        weights = load_file(path / WEIGHTS)
        record: dict[str, Any] = torch.load(path / TRAINING, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes end in errors of every kind
        raise damaged(path, str(error) or type(error).__name__) from error
    wrong = next(_misfits(record, RECORD, TRAINING), None)
    if wrong is not None:
        raise damaged(path, f"{wrong} is missing or of another kind")
    # Versions that knew no other optimiser did not write its name.
    made_with = {"optimizer": "adamw"} | record["config"]
    changed = [name for name in fixed if made_with.get(name) != fixed[name]]
    if changed:
        name = changed[0]
        raise ValueError(
            f"{path} was made with {name}={made_with.get(name)!r}, not {fixed[name]!r}; resume "
            "with the same configuration, or choose another output folder."
        )
    wrong = next(_misfits(record, dict.fromkeys(optimizers, OPTIMIZER), TRAINING), None)
    if wrong is not None:
        raise damaged(path, f"{wrong} is missing or of another kind")
    own = {MODEL + name: value for name, value in flow.state_dict().items()}
    own |= {AVERAGE + name: value for name, value in ema.average.items()}
    unlike = sorted(own.keys() ^ weights.keys())
    unlike += sorted(name for name in own.keys() & weights.keys() if not _alike(own[name], weights[name]))
    if unlike:
        raise ValueError(
            f"{path} belongs to another model: {len(unlike)} tensors are missing, unknown or of another "
            f"shape or dtype, for example {unlike[0].removeprefix(MODEL)!r}; choose another output folder."
        )
    state = {name.removeprefix(MODEL): tensor for name, tensor in weights.items() if name.startswith(MODEL)}
    averages = {name: weights[AVERAGE + name] for name in ema.average}
    spoilt = not_finite(state, flow) or not_finite(averages, flow)
    if spoilt is not None:
        raise damaged(path, f"{spoilt} is not finite")
    flow.load_state_dict(state)
    for name, average in ema.average.items():
        average.copy_(averages[name])
    ema.updates = record["ema_updates"]
    for name, optimizer in optimizers.items():
        _restore(path, optimizer, record[name], MOMENTS[name])
    return record


def _restore(path: Path, optimizer: Optimizer, saved: dict[str, Any], moments: set[str]) -> None:
    """Load an optimiser's state; `damaged` where it does not hold these moments of the weights."""
    try:
        # How it goes on is the configuration's to say.
        own_groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict(saved | {"param_groups": own_groups})
        fits = all(
            set(state) == moments
            and all(value.shape == (() if name == "step" else parameter.shape) for name, value in state.items())
            and all(bool(torch.isfinite(value).all()) for value in state.values())
            and all(bool((state[name] >= 0).all()) for name in {"step", "exp_avg_sq"} & moments)
            for parameter, state in optimizer.state.items()
        )
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
        raise damaged(path, f"the optimiser's state: {str(error) or type(error).__name__}") from error
    if not fits:
        raise damaged(path, "the optimiser's state does not belong to the weights")


def _misfits(record: Any, kind: Any, name: str) -> Iterator[str]:
    """Names of the parts of a record that are missing, or not of their kind: a type, or a dict of kinds.

    Whole numbers are counts, of which none is negative.
    """
    is_of_kind = isinstance(record, dict if isinstance(kind, dict) else kind)
    if not is_of_kind or (kind is int and (isinstance(record, bool) or record < 0)):
        yield name
    elif isinstance(kind, dict):
        for key, inner in kind.items():
            yield from _misfits(record[key], inner, f"{name}/{key}") if key in record else [f"{name}/{key}"]


def damaged(path: Path, reason: str) -> ValueError:
    """The error that tells of a damaged checkpoint."""
    reason = reason.strip().splitlines()[0].rstrip(".")
    return ValueError(f"the checkpoint {path} is damaged ({reason}); remove that folder to use an earlier one.")


def _alike(own: Tensor, read: Tensor) -> bool:
    return own.shape == read.shape and own.dtype == read.dtype


def save_model(flow: nn.Module, folder: Path) -> None:
    """Write the flow's weights as they are: by its own `save_pretrained` if it has one, else model.safetensors.

    Raises:
        OSError: Where they cannot be written.
    """
    with writing(folder):
        if hasattr(flow, "save_pretrained"):
            flow.save_pretrained(folder)  # type: ignore[operator]
            return
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / ".model.safetensors.tmp"
        _save_tensors(flow.state_dict(), temporary)
        os.replace(temporary, folder / "model.safetensors")


def load_model(flow: nn.Module, folder: Path) -> None:
    """Read what `save_model` wrote back into the flow.

    Raises:
        ValueError: Where it is missing, damaged, or of another model.
    """
    if hasattr(flow, "load_pretrained"):
        flow.load_pretrained(folder)  # type: ignore[operator]
        return
    try:
        flow.load_state_dict(load_file(folder / "model.safetensors"))
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{folder} cannot be read ({reason}); start the run again in another folder.") from error
