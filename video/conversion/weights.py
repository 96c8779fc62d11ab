"""Released weights in the files that people keep them in: one, or shards, bare or wrapped by a trainer."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from nflib.errors import first_line
from nflib.io import read_state_dict

INDEX = ".index.json"
CONFIGURATIONS = (".yaml", ".yml", ".json")
# What wrappers of a model put before each key, and those of its parts too into keys; and what an average of one counts.
PREFIXES = ("module.", "model.")
INFIXES = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
COUNT = "n_averaged"


def read_released_weights(checkpoint: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors of a `.pth` or `.safetensors` file, or of the shards that an `.index.json` names.

    Each file is read as by `nflib.io.read_state_dict`; what wrappers put before all keys ("module." …) or into some
    ("_orig_mod." …) is taken out.

    Raises:
        FileNotFoundError: there is no such file, or a shard is missing.
        ValueError: a file that is damaged or holds something else.
    """
    path = Path(checkpoint)
    if path.name.endswith(INDEX):
        return unwrapped(_read_shards(path))
    if path.suffix in CONFIGURATIONS:
        raise ValueError(f"{path} is a configuration, not weights: pass the configuration first, then the checkpoint.")
    return unwrapped(read_state_dict(path))


def unwrapped(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict without what wrappers put before or into its keys."""
    found = {key: value for key, value in state.items() if key != COUNT}
    for infix in INFIXES:
        found = {key.replace(infix, ""): value for key, value in found.items()}
    for prefix in PREFIXES * 2:
        if found and all(key.startswith(prefix) for key in found):
            found = {key.removeprefix(prefix): value for key, value in found.items()}
    return found


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
        state |= read_state_dict(path.parent / name)
    missing = sorted(places.keys() - state.keys())
    if missing:
        raise ValueError(
            f"the shards of {path.name} lack {len(missing)} tensors, such as {missing[0]!r}; fetch them again."
        )
    return state
