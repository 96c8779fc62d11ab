"""An error for users, and words for errors of other libraries."""

from __future__ import annotations

import math
import operator
import os
from typing import Any

LONGEST_LINE = 300  # characters


class ComputationError(RuntimeError):
    """A computation came to no result, for a reason that the message gives; not a mistake in the program."""


def check_object(name: str, value: Any, example: str, *methods: str) -> None:
    """Raise ValueError unless a value is an object, not a class, with some methods.

    Args:
        name: of the argument.
        value: what was passed for it.
        example: of what may be passed, for the message.
        methods: which the object must have.

    >>> check_object("solver", "rk4", "Heun(4)", "advance")
    Traceback (most recent call last):
    ValueError: solver must be an object such as Heun(4), got 'rk4'.
    """
    if isinstance(value, type) or not all(hasattr(value, method) for method in methods):
        got = repr(value).partition("\n")[0]  # a network's fills a page
        raise ValueError(f"{name} must be an object such as {example}, got {got}.")


def is_whole(number: Any, least: int) -> bool:
    """Whether a number is an integer, of whatever library, of `least` or more."""
    try:
        return not isinstance(number, bool) and operator.index(number) >= least
    except TypeError:
        return False


def at_least(least: int, name: str, number: Any) -> int:
    """The number of an argument as an int; raises ValueError unless it is an integer of `least` or more.

    >>> at_least(1, "num_samples", 1e3)
    Traceback (most recent call last):
    ValueError: num_samples must be an integer of 1 or more, got 1000.0.
    """
    if not is_whole(number, least):
        raise ValueError(f"{name} must be an integer of {least} or more, got {number!r}.")
    return int(number)


def as_number(value: Any) -> float:
    """The value as a float; NaN, which no range holds, for what is no number."""
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        return math.nan


def no_file(path: str | os.PathLike[str], advice: str) -> FileNotFoundError:
    """The error of a path where there is no file, or a folder, with what to do about it."""
    found = f"{path} is a folder" if os.path.isdir(path) else f"there is no file {path}"
    return FileNotFoundError(f"{found}; {advice}.")


def first_line(error: BaseException) -> str:
    """The first line of an error's message, without its full stop; the name of an error that has none.

    >>> first_line(ValueError("no such file.\\nTry again."))
    'no such file'
    """
    line = str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
    return line if len(line) <= LONGEST_LINE else f"{line[:LONGEST_LINE]} ..."
