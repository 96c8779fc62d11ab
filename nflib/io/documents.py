"""JSON and text: written whole or not at all; whatever cannot be read becomes one sentence that names the file."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nflib.errors import no_file
from nflib.io.atomic import complete_file


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Write a JSON file, indented, whole or not at all (`complete_file`).

    Args:
        path: of the file.
        content: what `json.dumps` takes.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_json(f"{folder}/a.json", {"steps": 3})
    ...     read_json(f"{folder}/a.json")
    {'steps': 3}
    """
    with complete_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def finite_or_none(value: float) -> float | None:
    """The number, or None where it is not finite: JSON has neither NaN nor Infinity."""
    return value if math.isfinite(value) else None


def read_json(path: str | os.PathLike[str], advice: str = "fetch or write it again") -> dict[str, Any]:
    """Read the object in a JSON file.

    Args:
        path: of the file.
        advice: what the user can do where it is missing or damaged, for the error's message.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no JSON, or no object.
    """
    path = Path(path)
    if not path.is_file():
        raise no_file(path, advice)
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:  # JSON's and Unicode's errors are ValueErrors
        raise ValueError(f"{path} is damaged ({error}); {advice}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is damaged (it holds no object); {advice}.")
    return content


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """In words, in which settings a run that is on disk differs from one that would go on with it; empty if in none.

    Args:
        before: as read from a JSON file.
        now: what `json.dumps` takes.

    >>> differences({"shape": [2, 3], "seed": 0}, {"shape": (2, 3), "seed": 1})
    'seed 0 then, 1 now'
    """
    now = json.loads(json.dumps(now))  # a tuple equals the list that it was stored as
    changed = [name for name in sorted({*before, *now}) if before.get(name) != now.get(name)]
    return ", ".join(f"{name} {before.get(name)} then, {now.get(name)} now" for name in changed)


def read_lines(path: str | os.PathLike[str], what: str) -> list[str]:
    """Read the lines of a text file in UTF-8; a byte order mark, which some editors write, is left out.

    Args:
        path: of the file.
        what: a line is, for the error's message.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no text.
    """
    path = Path(path)
    advice = f"give a text file with {what} a line"
    if not path.is_file():
        raise no_file(path, advice)
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8; {advice}.") from error
