"""metadata.jsonl and metadata.csv, as the image and video folders of Hugging Face's datasets have them."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

NAMES = ("metadata.jsonl", "metadata.csv")
FILE = "file_name"
CAPTIONS = ("text", "caption", "prompt")
LABELS = ("label",)


class Description(NamedTuple):
    """What is said of an image or a clip."""

    caption: str | None
    label: str | None


def described(columns: Mapping[str, Any]) -> Description:
    """The caption and the label among named values; what is empty was not said."""
    caption, label = (_first(columns, names) for names in (CAPTIONS, LABELS))
    # Where a number is missing among whole ones, pandas writes the others as 1.0.
    return Description(caption, label and re.sub(r"(?<=\d)\.0$", "", label))


def nothing_said(name: str) -> str:
    """That a file describes none of what it names, in a sentence."""
    return f"{name} has nothing of its files in {', '.join(CAPTIONS)} or {LABELS[0]}: call a column so."


def read_metadata(path: Path) -> list[tuple[str, Description]]:
    """File names, relative to the folder of `path`, and what is said of each, row by row.

    Raises:
        ValueError: no column file_name, or a line that cannot be read.
    """
    rows = []
    for line, columns in _lines(path) if path.suffix.lower() == ".jsonl" else _rows(path):
        name = columns.get(FILE)
        if not isinstance(name, str) or not name:
            raise ValueError(f'line {line} of {path} names no file; give each line a "{FILE}".')
        rows.append((name, described(columns)))
    return rows


def _first(columns: Mapping[str, Any], names: tuple[str, ...]) -> str | None:
    return next(filter(None, (_said(columns.get(name)) for name in names)), None)


def _said(value: Any) -> str:
    """A value in words, of a list its first one; empty if it has none."""
    if isinstance(value, list):
        return next(filter(None, map(_said, value)), "")
    if isinstance(value, float) and not math.isfinite(value):
        return ""
    return str(value).strip() if isinstance(value, str | int | float) else ""


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                columns = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"line {number} of {path} is no JSON ({error}); repair or remove it.") from error
            if not isinstance(columns, dict):
                raise ValueError(f"line {number} of {path} is no JSON object with a {FILE!r}; repair or remove it.")
            yield number, columns


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        table = csv.DictReader(file)
        try:
            for columns in table:
                yield table.line_num, columns
        except csv.Error as error:
            raise ValueError(f"line {table.line_num} of {path} cannot be read ({error}); repair it.") from error
