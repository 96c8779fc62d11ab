"""Packages of the extras, imported where they are needed."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def require(module: str, purpose: str, extra: str) -> Any:
    """The module of an optional package.

    Args:
        module: its name.
        purpose: what needs it, with the verb.
        extra: of nflib's, which brings it; several with commas.

    Raises:
        ModuleNotFoundError: it, or a package that it needs, is not installed.

    >>> require("no_such_package", "clips need", extra="video")
    Traceback (most recent call last):
    ModuleNotFoundError: clips need no_such_package: pip install "nflib[video]".
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        message = f'{purpose} {error.name}: pip install "nflib[{extra}]".'
        raise ModuleNotFoundError(message, name=error.name) from error
