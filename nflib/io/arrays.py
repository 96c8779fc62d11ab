"""Arrays in .npz files: written whole or not at all, and read without unpickling anything or believing a header."""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from nflib.errors import first_line, no_file
from nflib.io.atomic import complete_file

DAMAGED = "{path} is damaged or no .npz file of this kind ({reason}); fetch or write it again."
KINDS = {"f": "floating-point numbers", "iu": "integers", "fiu": "numbers", "U": "text"}


def write_arrays(path: str | os.PathLike[str], arrays: Mapping[str, Any]) -> None:
    """Write an .npz file, whole or not at all (`complete_file`).

    Args:
        path: of the file.
        arrays: what NumPy makes arrays of numbers or text of, by name.
    """
    with complete_file(path) as temporary, temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **dict(arrays))


def read_arrays(
    path: str | os.PathLike[str],
    needed: Mapping[str, str] | None = None,
    optional: Mapping[str, str] | None = None,
    message: str = DAMAGED,
    renamed: Mapping[str, str] | None = None,
) -> dict[str, NDArray]:
    """Read all arrays of an .npz file, by name.

    Args:
        path: of the file.
        needed: names that must be there, each with the kind of its numbers: "f" floating-point, "iu" integers, "fiu"
            either, "U" text.
        optional: the same for names that may be missing.
        message: the sentence for a file that is none, with places for path and reason.
        renamed: names that earlier versions wrote, each with the current one, by which it is checked and returned.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, holds objects or promises more than it has (no memory is taken for that), or a name
            is missing or of another kind.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_arrays(f"{folder}/a.npz", {"x": np.zeros((2, 3))})
    ...     read_arrays(f"{folder}/a.npz", {"x": "f"})["x"].shape
    (2, 3)
    """
    path = Path(path)
    if not path.is_file():
        raise no_file(path, "give an .npz file")
    try:
        with path.open("rb") as file:
            _check_headers(file)
            file.seek(0)
            with np.load(file, allow_pickle=False) as stored:
                arrays = dict(stored)
        needed, optional, renamed = needed or {}, optional or {}, renamed or {}
        arrays = {renamed.get(name, name): array for name, array in arrays.items()}
        for name, kinds in {**optional, **needed}.items():
            if name not in arrays and name in needed:
                raise ValueError(f"it lacks {name!r}")
            if name in arrays and arrays[name].dtype.kind not in kinds:
                raise ValueError(f"its {name!r} holds {arrays[name].dtype}, not {KINDS[kinds]}")
    except Exception as error:  # zipfile and numpy raise a dozen kinds for what they cannot read
        raise ValueError(message.format(path=path, reason=first_line(error))) from error
    return arrays


def within(group: str, arrays: Mapping[str, NDArray]) -> dict[str, NDArray]:
    """Those of the arrays that were written as ``group.name``, by name."""
    return {name.removeprefix(f"{group}."): value for name, value in arrays.items() if name.startswith(f"{group}.")}


def _check_headers(file: IO[bytes]) -> None:
    """Refuse arrays whose headers tell of more bytes than the file has, before memory is taken for them."""
    with zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            with archive.open(member) as array:
                version = np.lib.format.read_magic(array)
                first = version == (1, 0)
                read = np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0
                shape, _, dtype = read(array)
                if dtype.hasobject:
                    raise ValueError(f"its {member.filename} holds objects, not numbers")
                if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize + array.tell() > member.file_size:
                    raise ValueError(f"its {member.filename} has fewer bytes than an array of shape {shape} needs")
