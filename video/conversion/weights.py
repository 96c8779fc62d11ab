"""Released weights in the files that people keep them in: one, or shards, bare or wrapped by a trainer."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nflib.io import read_state_dict
from video.errors import first_line

INDEX = ".index.json"
CONFIGURATIONS = (".yaml", ".yml", ".json")
# Under which trainers keep a model's weights, and what they put before each key.
WRAPPERS = ("model", "state_dict", "module", "model_state_dict", "ema")
PREFIXES = ("module.", "model.", "_orig_mod.", "_fsdp_wrapped_module.")


def read_released_weights(checkpoint: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors of a `.pth` or `.safetensors` file, or of the shards that an `.index.json` names.

    They are mapped: no more is in memory than has been used. The files must stay as they are in the meantime.
    A state dict under a key of a trainer's ("model", "state_dict" …) is found, and prefixes that wrappers put before
    all keys ("module." …) are taken off. Nothing but tensors is ever unpickled.

    Raises:
        FileNotFoundError: there is no such file, or a shard is missing.
        ValueError: a file that is damaged or holds something else.
    """
    path = Path(checkpoint)
    if path.name.endswith(INDEX):
        return unwrapped(_read_shards(path))
    if path.suffix in CONFIGURATIONS:
        raise ValueError(f"{path} is a configuration, not weights: pass the configuration first, then the checkpoint.")
    return unwrapped(_read_file(path))


def _read_file(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors" or not path.is_file():
        return read_state_dict(path)
    try:
        document = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except OSError:
        raise
    except Exception as error:  # of a file that is none of its own, torch.load raises errors of a dozen kinds
        raise ValueError(f"{path} is damaged or no state dict of tensors; fetch it again.") from error
    state = _state_in(document)
    if state is None:
        raise ValueError(f"{path} holds no state dict of tensors; fetch it again.")
    return state


def unwrapped(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict without what wrappers put before all of its keys."""
    found = dict(state)
    for prefix in PREFIXES * 2:
        if found and all(key.startswith(prefix) for key in found):
            found = {key.removeprefix(prefix): value for key, value in found.items()}
    return found


def _state_in(document: Any) -> dict[str, Tensor] | None:
    """The state dict that a checkpoint is, or has in it."""
    if not isinstance(document, Mapping) or not document:
        return None
    if all(isinstance(key, str) and isinstance(value, Tensor) for key, value in document.items()):
        return dict(document)
    for name in WRAPPERS:
        state = _state_in(document.get(name))
        if state is not None:
            return state
    return None


def _read_shards(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}; give the path of a .pth or .safetensors file.")
    try:
        places = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        shards = sorted({str(name) for name in places.values()})
    except (LookupError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no index of shards ({first_line(error)}); fetch it again.") from error
    state: dict[str, Tensor] = {}
    for name in shards:
        if Path(name).name != name:
            raise ValueError(f"{path} names a shard {name!r} that is not beside it; fetch it again.")
        state |= _read_file(path.parent / name)
    missing = sorted(places.keys() - state.keys())
    if missing:
        raise ValueError(
            f"the shards of {path.name} lack {len(missing)} tensors, such as {missing[0]!r}; fetch them again."
        )
    return state
