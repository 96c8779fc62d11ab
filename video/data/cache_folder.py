"""A folder of what takes long to make: what it was made of decides whether it can be used again."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, distributed

from nflib.errors import first_line
from nflib.io import complete_file, only_run, write_json


@contextmanager
def open_cache(folder: Path, name: str, wanted: dict[str, str], files: str, renew: bool) -> Iterator[None]:
    """`begin_cache` of a folder that is this process's alone while the block lasts.

    The processes of torchrun wait for each other: one fills the folder, the others find it full.

    Args:
        folder: as of `begin_cache`.
        name: as of `begin_cache`.
        wanted: as of `begin_cache`.
        files: as of `begin_cache`.
        renew: as of `begin_cache`.

    Raises:
        ValueError: as `begin_cache`.
        OSError: another run is at work in the folder.
    """
    with only_run(folder, waits=distributed.is_torchelastic_launched()):
        begin_cache(folder, name, wanted, files, renew)
        yield


def write_tensors(path: Path, tensors: dict[str, Tensor], beside: dict[str, Any]) -> None:
    """A file of a cache: tensors, and beside them what JSON can tell."""
    with complete_file(path) as temporary:
        save_file(tensors, temporary, {name: json.dumps(value) for name, value in beside.items()})


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `write_tensors` wrote, mapped into memory: nothing is read before it is looked at.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        tensors = load_file(path)
        with safe_open(path, "pt") as file:
            return tensors, {name: json.loads(value) for name, value in (file.metadata() or {}).items()}
    except (SafetensorError, OSError, TypeError, json.JSONDecodeError) as error:
        raise damaged(path, error) from error


def damaged(path: Path, error: Exception) -> ValueError:
    return ValueError(f"{path} is damaged ({first_line(error)}); remove its folder, and it is made again.")


def begin_cache(
    folder: Path, name: str, wanted: dict[str, str], files: str, renew: bool, former: Mapping[str, str] | None = None
) -> None:
    """Write into a cache what it is made of, or see that it is made of that already.

    Args:
        folder: of the cache.
        name: of the description's file.
        wanted: the description.
        files: the pattern of what it describes.
        renew: remove what was made of something else.
        former: as earlier versions described some of it, which is as good.

    Raises:
        ValueError: the folder holds files that were made of something else, or whose description is damaged.
    """
    path = folder / name
    can_begin = renew or not any(folder.glob(files))
    if path.is_file():
        try:
            found = dict(json.loads(path.read_text()))
        except (ValueError, TypeError) as error:
            if not can_begin:
                reason = f"{path} is damaged ({first_line(error)})"
                raise ValueError(f"{reason}; remove the folder, or choose another.") from error
            found = {}
        others = [part for part in wanted if found.get(part) not in (wanted[part], {**wanted, **(former or {})}[part])]
        if not others:
            return
        if not can_begin:
            raise ValueError(
                f"what is kept in {folder} was made with another {' and another '.join(others)}; remove the folder, or "
                "choose another."
            )
        path.unlink()
    # A run that is killed between these leaves no description, and what it left is removed by the next.
    for old in folder.glob(files):
        old.unlink()
    write_json(path, wanted)
