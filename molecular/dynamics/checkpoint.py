"""The state of a simulation on disk, complete enough to go on bit for bit; plain arrays, nothing pickled."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from molecular.dynamics.former_names import with_current_names
from nflib.io import differences, read_arrays, write_arrays

CHECKPOINT = "checkpoint.npz"
MESSAGE = "{path} cannot be read ({reason}); delete the folder or simulate into another."
DOCUMENTS = {"counters": "U", "settings": "U"}
COUNTERS: dict[str, Any] = {"step": int, "num_shards": int, "wall_seconds": (int, float)}
Settings = dict[str, object]


def save_checkpoint(
    folder: Path, tensors: Mapping[str, Tensor], counters: Mapping[str, float], settings: Settings
) -> None:
    """Replace the checkpoint of ``folder`` atomically."""
    arrays = {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}
    arrays["counters"] = np.array(json.dumps(dict(counters)))
    arrays["settings"] = np.array(json.dumps(settings))
    write_arrays(folder / CHECKPOINT, arrays)


def load_checkpoint(
    folder: Path, settings: Settings, expected: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, float]] | None:
    """Tensors and counters of the checkpoint of ``folder``, or None when there is none.

    Raises ValueError when it cannot be read, was made with settings other than ``settings``, or its tensors have other
    names, shapes or dtypes than those expected, or numbers that are not finite.
    """
    path = folder / CHECKPOINT
    if not path.exists():
        return None
    arrays = read_arrays(path, DOCUMENTS, message=MESSAGE)
    numbers, before = _documents(path, arrays)
    if changed := differences(before, settings):
        raise ValueError(f"{path} belongs to a simulation with other settings ({changed}); use another folder.")
    lacking = expected.keys() - arrays.keys()
    if lacking:
        raise ValueError(f"{path} lacks {', '.join(sorted(lacking))}: another version wrote it; use another folder.")
    tensors = {}
    for name, current in expected.items():
        if arrays[name].dtype.kind not in "fiub":
            raise ValueError(f"{path} holds {name} as {arrays[name].dtype}, which are no numbers; use another folder.")
        stored = tensors[name] = torch.from_numpy(arrays[name])
        if stored.shape != current.shape or stored.dtype != current.dtype:
            raise ValueError(
                f"{path} holds {name} {tuple(stored.shape)} {stored.dtype} but this simulation"
                f" has {tuple(current.shape)} {current.dtype}; use another folder."
            )
        if not bool(torch.isfinite(stored).all()):
            raise ValueError(f"{path} is damaged: its {name} is not finite; use another folder.")
    return tensors, numbers


def stored_step(folder: Path) -> int:
    """The step that the checkpoint of ``folder`` was made at; 0 where there is none. Raises as `load_checkpoint`."""
    path = folder / CHECKPOINT
    return _documents(path, read_arrays(path, DOCUMENTS, message=MESSAGE))[0]["step"] if path.exists() else 0


def _documents(path: Path, arrays: dict[str, NDArray]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Counters and settings, taken out of a checkpoint's arrays; raises ValueError where they are none."""
    try:
        counters, before = (json.loads(str(arrays.pop(name))) for name in ("counters", "settings"))
        numbers = {name: counters[name] for name in COUNTERS}
        if not all(isinstance(numbers[name], kind) and numbers[name] >= 0 for name, kind in COUNTERS.items()):
            raise TypeError("its counters are none")
        if not isinstance(before, dict):
            raise TypeError("its settings are none")
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(MESSAGE.format(path=path, reason=repr(error))) from error
    return numbers, with_current_names(before)
