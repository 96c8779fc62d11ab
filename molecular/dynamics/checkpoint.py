"""The state of a simulation on disk, complete enough to go on bit for bit; plain arrays, nothing pickled."""

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from molecular.dynamics.frames import save_npz

CHECKPOINT = "checkpoint.npz"
Settings = dict[str, object]


def save_checkpoint(
    folder: Path, tensors: Mapping[str, Tensor], counters: Mapping[str, float], settings: Settings
) -> None:
    """Replace the checkpoint of ``folder`` atomically."""
    arrays = {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}
    arrays["counters"] = np.array(json.dumps(dict(counters)))
    arrays["settings"] = np.array(json.dumps(settings))
    save_npz(folder / CHECKPOINT, arrays)


def load_checkpoint(folder: Path, settings: Settings) -> tuple[dict[str, Tensor], dict[str, float]] | None:
    """Tensors and counters of the checkpoint of ``folder``, or None when there is none.

    Raises ValueError when it cannot be read, or was made with settings other than ``settings``.
    """
    path = folder / CHECKPOINT
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        counters = json.loads(str(arrays.pop("counters")))
        before = json.loads(str(arrays.pop("settings")))
    except (KeyError, zipfile.BadZipFile, ValueError, EOFError) as error:
        raise ValueError(f"{path} cannot be read ({error}); delete the folder or simulate into another.") from error
    # Through JSON, so that a tuple equals the list it was stored as.
    now = json.loads(json.dumps(settings))
    before.setdefault("hot_steps", 0)  # earlier versions had no hot stage
    changed = [name for name in sorted(now | before) if now.get(name) != before.get(name)]
    if changed:
        differences = ", ".join(f"{name} {before.get(name)} then, {now.get(name)} now" for name in changed)
        raise ValueError(f"{path} belongs to a simulation with other settings ({differences}); use another folder.")
    return {name: torch.from_numpy(array) for name, array in arrays.items()}, counters
