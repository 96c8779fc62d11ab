"""Checkpoints: folders that appear whole or not at all, and are read without unpickling anything."""

from __future__ import annotations

import os
import re
import shutil
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.optim import Optimizer

from nflib.errors import first_line
from nflib.io.atomic import PREFIX, complete_folder
from nflib.io.descriptions import changes
from nflib.io.state_dicts import not_finite
from nflib.io.tensors import read_tensors, write_tensors
from nflib.training.ema import ExponentialMovingAverage
from nflib.training.state import RECORDED

FOLDER = "checkpoints"  # in that of a run
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


def has_begun(output: str | os.PathLike[str]) -> bool:
    """Whether the run in a folder, the `output` of `fit`, has a checkpoint to go on from."""
    return latest_checkpoint(Path(output) / FOLDER) is not None


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

    A run killed meanwhile leaves the checkpoint before untouched.

    Args:
        record: A dict of plain tensors, numbers, strings, lists and dicts.

    Raises:
        OSError: Where it cannot be written.
    """
    name = f"step-{step:09d}"
    weights = {MODEL + name: value for name, value in flow.state_dict().items()}
    weights |= {AVERAGE + name: value for name, value in ema.average.items()}
    record = record | {"ema_updates": ema.updates}
    record |= {name: optimizer.state_dict() for name, optimizer in optimizers.items()}
    with complete_folder(folder) as temporary:
        (temporary / name).mkdir()
        write_tensors(temporary / name / WEIGHTS, weights)
        torch.save(record | {"checksum": _checksum(temporary / name / WEIGHTS)}, temporary / name / TRAINING)
    for old in _checkpoints(folder)[:-kept]:
        # Half a checkpoint must not look like one; under this name the next writing removes what is left of it.
        hidden = old.with_name(PREFIX + old.name)
        os.replace(old, hidden)
        shutil.rmtree(hidden, ignore_errors=True)
    return folder / name


def read_checkpoint(
    path: Path,
    flow: nn.Module,
    ema: ExponentialMovingAverage,
    optimizers: dict[str, Optimizer],
    fixed: dict[str, Any],
    described: dict[str, Any] | None,
) -> dict[str, Any]:
    """Load a checkpoint into flow, average and optimisers, and return its record.

    Args:
        fixed: Settings of the run that must be as they were.
        described: The flow's own settings, which must be so too; None where they have no description.

    Raises:
        ValueError: Where it is damaged, belongs to another model, or was made under other settings.
    """
    try:
        weights = read_tensors(path / WEIGHTS)
        with zipfile.ZipFile(path / TRAINING) as archive:  # torch does not compare the checksums in it
            if (part := archive.testzip()) is not None:
                raise ValueError(f"{part} in {TRAINING} is not what was written")
        record: dict[str, Any] = torch.load(path / TRAINING, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes end in errors of every kind
        raise damaged(path, first_line(error)) from error
    wrong = next(_misfits(record, RECORD, TRAINING), None)
    if wrong is not None:
        raise damaged(path, f"{wrong} is missing or of another kind")
    # Versions that knew no other optimiser did not write its name.
    made_with = {"optimizer": "adamw"} | record["config"]
    for name in fixed:
        if made_with.get(name) != fixed[name]:
            raise _made_otherwise(path, name, made_with.get(name), fixed[name])
    wrong = next(_misfits(record, dict.fromkeys(optimizers, OPTIMIZER), TRAINING), None)
    if wrong is not None:
        raise damaged(path, f"{wrong} is missing or of another kind")
    own = {MODEL + name: value for name, value in flow.state_dict().items()}
    own |= {AVERAGE + name: value for name, value in ema.average.items()}
    unlike = sorted(own.keys() ^ weights.keys())
    unlike += sorted(name for name in own.keys() & weights.keys() if not _alike(own[name], weights[name]))
    if unlike:
        raise ValueError(
            f"{path} belongs to another model: {len(unlike)} tensors are missing, unknown, frozen only now or then, or "
            f"of another shape or dtype, for example {unlike[0].removeprefix(MODEL)!r}; choose another output folder."
        )
    # Tensors of the same names and shapes may still be of another architecture. Earlier versions did not tell.
    for name, before, now in changes(record.get("flow") or {}, described or {}):
        raise _made_otherwise(path, name, before, now)
    state = {name.removeprefix(MODEL): tensor for name, tensor in weights.items() if name.startswith(MODEL)}
    averages = {name: weights[AVERAGE + name] for name in ema.average}
    spoilt = not_finite(state, flow) or not_finite(averages, flow)
    if spoilt is not None:
        raise damaged(path, f"{spoilt} is not finite")
    # Earlier versions wrote none.
    if "checksum" in record and record["checksum"] != _checksum(path / WEIGHTS):
        raise damaged(path, f"{WEIGHTS} is not what was written with {TRAINING}")
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
        # How it goes on is the configuration's to say, but states go by a weight's number among all groups.
        own_groups = optimizer.state_dict()["param_groups"]
        regrouped = [group["params"] for group in saved["param_groups"]] != [group["params"] for group in own_groups]
        optimizer.load_state_dict(saved | {"param_groups": own_groups})
        fits = all(
            set(state) == moments
            and all(value.shape == (() if name == "step" else parameter.shape) for name, value in state.items())
            and all(bool(torch.isfinite(value).all()) for value in state.values())
            and all(bool((state[name] >= 0).all()) for name in {"step", "exp_avg_sq"} & moments)
            for parameter, state in optimizer.state.items()
        )
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
        raise damaged(path, f"the optimiser's state: {first_line(error)}") from error
    if regrouped:
        raise ValueError(
            f"{path} was made with other weights decayed or trained than now; resume with the same model, or choose "
            "another output folder."
        )
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


def _checksum(path: Path) -> int:
    """The CRC-32 of a file, which is read in pieces."""
    value = 0
    with path.open("rb") as file:
        while piece := file.read(2**24):
            value = zlib.crc32(piece, value)
    return value


def damaged(path: Path, reason: str) -> ValueError:
    """The error that tells of a damaged checkpoint."""
    return ValueError(f"the checkpoint {path} is damaged ({reason}); remove that folder to use an earlier one.")


def _made_otherwise(path: Path, name: str, before: Any, now: Any) -> ValueError:
    return ValueError(
        f"{path} was made with {name}={before!r}, not {now!r}; resume with the same configuration, or choose another "
        "output folder."
    )


def _alike(own: Tensor, read: Tensor) -> bool:
    return own.shape == read.shape and own.dtype == read.dtype


def save_model(flow: nn.Module, folder: Path) -> None:
    """Write the flow's weights as they are: by its own `save_pretrained` if it has one, else model.safetensors.

    Raises:
        OSError: Where they cannot be written.
    """
    if hasattr(flow, "save_pretrained"):
        flow.save_pretrained(folder)  # type: ignore[operator]
        return
    with complete_folder(folder) as temporary:
        write_tensors(temporary / "model.safetensors", flow.state_dict())


def load_model(flow: nn.Module, folder: Path) -> None:
    """Read what `save_model` wrote back into the flow.

    Raises:
        ValueError: Where it is missing, damaged, or of another model.
    """
    if hasattr(flow, "load_pretrained"):
        flow.load_pretrained(folder)  # type: ignore[operator]
        return
    try:
        flow.load_state_dict(read_tensors(folder / "model.safetensors"))
    except (OSError, SafetensorError, RuntimeError, ValueError) as error:
        raise ValueError(f"{folder} cannot be read ({first_line(error)}); start the run again elsewhere.") from error
