"""Prompts as context: what encoders of text have in common, and a closed vocabulary of words."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from nflib.io import write_json
from video.errors import first_line
from video.text.labels import LABELS, Labels
from video.text.transformers_text import LONGEST, load_transformers_text

VOCABULARY = "vocabulary.json"


class TextEncoder(Protocol):
    """Prompts to a context ``(B, …)``, or None for flows without one; the empty prompt is the context of no prompt.

    shape: ``(length, channels)`` of the context of one, or the number of classes of labels; see a flow's text_shape.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __call__(self, prompts: Sequence[str]) -> Any: ...

    def save(self, folder: str | os.PathLike[str]) -> None: ...


class Words:
    """A closed vocabulary: each word is one-hot, and so is the lack of one after the last.

    length: words of the longest prompt. Case and punctuation do not count. Calling it raises ValueError for a word that
    it does not know, or a prompt that is too long.

    >>> Words(["a", "seven", "moving", "up"], length=5)(["a seven, moving up"]).shape
    torch.Size([1, 5, 5])
    """

    def __init__(self, words: Sequence[str], length: int):
        if type(length) is not int or not 0 < length <= LONGEST:
            raise ValueError(f"prompts have 1 … {LONGEST} words, got {length!r}.")
        if isinstance(words, str) or not words or len({*words}) != len(words) or not all(type(w) is str for w in words):
            raise ValueError("a vocabulary is a list of distinct words.")
        self.words = list(words)
        self.length = length
        self.channels = len(self.words) + 1
        self.shape = (length, self.channels)
        self._numbers = {word: number for number, word in enumerate(self.words, 1)}

    def __call__(self, prompts: Sequence[str]) -> Tensor:
        numbers = torch.zeros(len(prompts), self.length, dtype=torch.long)
        for row, prompt in enumerate(prompts):
            said = re.findall(r"[^\W_]+", prompt.lower())
            unknown = [word for word in said if word not in self._numbers]
            if unknown:
                raise ValueError(
                    f"the prompt {prompt!r} has the unknown word {unknown[0]!r}; known are {', '.join(self.words)}."
                )
            if len(said) > self.length:
                raise ValueError(f"the prompt {prompt!r} has {len(said)} words; at most {self.length} are understood.")
            numbers[row, : len(said)] = torch.tensor([self._numbers[word] for word in said], dtype=torch.long)
        return nn.functional.one_hot(numbers, self.channels).float()

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write vocabulary.json."""
        write_json(Path(folder) / VOCABULARY, {"words": self.words, "length": self.length})


def load_text(
    source: str | os.PathLike[str],
    length: int | None = None,
    device: str = "cpu",
    *,
    embeddings_only: bool = False,
    dtype: torch.dtype | None = None,
) -> TextEncoder:
    """The text encoder in a folder: a vocabulary, labels, or a model of transformers and its tokenizer.

    Args:
        source: the folder, or of transformers a name on the hub ("google/flan-t5-xl").
        length: to which prompts of transformers are padded (default: as it was saved, or 128).
        device: where it is put.
        embeddings_only: take the embeddings of tokens in the place of a model's last hidden states.
        dtype: of a model's weights (default: as saved).

    Raises:
        FileNotFoundError: there is none, or the hub cannot be reached.
        ValueError: a damaged vocabulary.
    """
    for name, kind in ((VOCABULARY, Words), (LABELS, Labels)):
        path = Path(source) / name
        if path.is_file():
            try:
                return kind(**json.loads(path.read_text(encoding="utf-8")))
            except (TypeError, AttributeError, ValueError, RecursionError) as error:
                raise ValueError(f"{path} is damaged ({first_line(error)}); fetch or save it again.") from error
    return load_transformers_text(source, length, device, embeddings_only=embeddings_only, dtype=dtype)
