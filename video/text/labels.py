"""Class labels in the place of prompts."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from nflib.io import write_json

LABELS = "labels.json"


class Labels:
    """A text encoder of class names: a prompt is one of them and becomes its number; the empty prompt becomes -1.

    The number of a class is no prompt, lest "7" be the seventh where classes are "zero" to "nine" in another order.

    Args:
        names: of the classes, in the order of their numbers. None of them: the context is None, for flows that are
            conditioned on nothing.

    Raises:
        ValueError: names that are not distinct; when called, a prompt that names no class.

    >>> Labels(["cat", "dog"])(["dog", "cat", ""])
    tensor([ 1,  0, -1])
    """

    is_costly = False

    def __init__(self, names: Sequence[str] = ()):
        if isinstance(names, str) or len({*names}) != len(names) or not all(type(name) is str for name in names):
            raise ValueError("labels are a list of distinct names.")
        self.names = list(names)
        self.shape = (len(self.names),)
        self._numbers = {"": -1} | {composed(name): number for number, name in enumerate(self.names)}

    @property
    def vocabulary(self) -> list[str]:
        return self.names

    def __call__(self, prompts: Sequence[str]) -> Tensor | None:
        prompts = [composed(prompt) for prompt in prompts]
        unknown = [prompt for prompt in prompts if prompt not in self._numbers]
        if unknown:
            known = ", ".join(self.names[:10]) + (" …" if len(self.names) > 10 else "") or "no class"
            raise ValueError(f"the prompt {unknown[0]!r} names no class of this model, which knows {known}.")
        numbers = [self._numbers[prompt] for prompt in prompts]
        return torch.tensor(numbers, dtype=torch.long) if self.names else None

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write labels.json."""
        write_json(Path(folder) / LABELS, {"names": self.names})


def composed(name: str) -> str:
    """A name with accents as keyboards write them, since some file systems take them apart."""
    return unicodedata.normalize("NFC", name)
