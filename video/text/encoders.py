"""Prompts as context: what encoders of text have in common, and a closed vocabulary of words."""

from __future__ import annotations

import json
import os
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from nflib.errors import first_line
from nflib.io import write_json
from video.text.labels import LABELS, Labels, composed
from video.text.transformers_text import LONGEST, load_transformers_text

VOCABULARY = "vocabulary.json"


class TextEncoder(Protocol):
    """What every text encoder offers: called with B prompts, it gives a context ``(B, …)``.

    The empty prompt has the context of no prompt. For flows without a context it gives None.

    Attributes:
        shape: ``(length, channels)`` of the context of a prompt, or ``(number of classes,)`` of labels; see a flow's
            text_shape.
        vocabulary: the words or labels that it knows; None for any text.
        is_costly: whether contexts are worth keeping.
    """

    is_costly: bool

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def vocabulary(self) -> list[str] | None: ...

    def __call__(self, prompts: Sequence[str]) -> Any: ...

    def save(self, folder: str | os.PathLike[str]) -> None: ...


class Words:
    """A text encoder of a closed vocabulary: each word is one-hot, and so is the lack of one after the last.

    Case and punctuation do not count.

    Args:
        words: distinct ones.
        length: words of the longest prompt.

    Raises:
        ValueError: no vocabulary; when called, a word that it does not know, or a prompt that is too long.

    >>> Words(["a", "seven", "moving", "up"], length=5)(["a seven, moving up"]).shape
    torch.Size([1, 5, 5])
    """

    is_costly = False

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

    @classmethod
    def of_prompts(cls, prompts: Iterable[str], most: int) -> Words:
        """The vocabulary of all words in some prompts.

        Args:
            prompts: whose words to take.
            most: distinct words that there may be.

        Raises:
            ValueError: more words, or none.
        """
        said = [_words(prompt) for prompt in prompts]
        words = sorted({word for prompt in said for word in prompt})
        if len(words) > most:
            raise ValueError(f"the prompts have {len(words)} distinct words, too many for a vocabulary of their own.")
        return cls(words, max(map(len, said)))

    @property
    def vocabulary(self) -> list[str]:
        return self.words

    def __call__(self, prompts: Sequence[str]) -> Tensor:
        numbers = torch.zeros(len(prompts), self.length, dtype=torch.long)
        for row, prompt in enumerate(prompts):
            said = _words(prompt)
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


def _words(prompt: str) -> list[str]:
    """Letters and numbers with the marks on them, of which scripts such as Devanagari make vowels, however composed."""
    said = ""
    for letter in composed(prompt.lower()):
        is_mark = unicodedata.category(letter).startswith("M") and said[-1:].strip()
        said += letter if letter.isalnum() or is_mark else " "
    return said.split()


def load_text(
    source: str | os.PathLike[str],
    length: int | None = None,
    device: str = "cpu",
    *,
    embeddings_only: bool = False,
    dtype: torch.dtype | None = None,
) -> TextEncoder:
    """Load a text encoder: a vocabulary, labels, or a model of transformers and its tokenizer.

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
