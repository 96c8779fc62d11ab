"""Prompts as context: T5's encoder from transformers, or a closed vocabulary of words."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from nflib.io import complete_folder, write_json
from video.errors import first_line

VOCABULARY = "vocabulary.json"
LENGTH = "length.json"
LONGEST = 100_000  # words of a prompt: more is no prompt, and much memory


class TextEncoder(Protocol):
    """Prompts to a context ``(B, length, channels)``; the empty prompt is the context of no prompt."""

    length: int
    channels: int

    def __call__(self, prompts: Sequence[str]) -> Tensor: ...

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


class T5Text:
    """The last hidden states of T5's encoder, zero after the end of a prompt: what released STARFlows take.

    encoder, tokenizer: of transformers. length: to which prompts are padded and cut.
    """

    def __init__(self, encoder: Any, tokenizer: Any, length: int = 128):
        self.encoder = encoder.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.length = length
        self.channels = int(encoder.config.d_model)

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str]) -> Tensor:
        tokens = self.tokenizer(
            list(prompts), padding="max_length", truncation=True, max_length=self.length, return_tensors="pt"
        )
        tokens = {name: tokens[name].to(self.encoder.device) for name in ("input_ids", "attention_mask")}
        hidden: Tensor = self.encoder(**tokens).last_hidden_state
        return (hidden * tokens["attention_mask"].unsqueeze(-1)).float()

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write encoder and tokenizer as transformers does."""
        with complete_folder(folder) as temporary:
            self.encoder.save_pretrained(temporary)
            self.tokenizer.save_pretrained(temporary)
            write_json(temporary / LENGTH, self.length)


def load_text(source: str | os.PathLike[str], length: int | None = None, device: str = "cpu") -> TextEncoder:
    """The text encoder in a folder: a vocabulary, or T5's encoder, which may be a hub name ("google/flan-t5-xl").

    length: to which T5's prompts are padded (default: as it was saved, or 128). Raises FileNotFoundError where there is
    none or the hub cannot be reached, ValueError for a damaged vocabulary.
    """
    path = Path(source) / VOCABULARY
    if path.is_file():
        try:
            return Words(**json.loads(path.read_text(encoding="utf-8")))
        except (TypeError, AttributeError, ValueError, RecursionError) as error:
            raise ValueError(f"{path} is damaged ({first_line(error)}); fetch or save it again.") from error
    try:
        from transformers import AutoTokenizer, T5EncoderModel
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError('T5 takes transformers: pip install "nflib[video]".') from error
    if length is None:
        length = _saved_length(Path(source) / LENGTH)
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(source))
        encoder: Any = T5EncoderModel.from_pretrained(str(source))
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"no T5 encoder with its tokenizer can be read from {str(source)!r} ({first_line(error)}); give a folder "
            "that holds both, or a name on the hub while it can be reached."
        ) from error
    return T5Text(encoder.to(device), tokenizer, length)


def _saved_length(path: Path) -> int:
    """The length in a file, or 128 where there is none; raises ValueError for what is no length."""
    if not path.is_file():
        return 128
    try:
        length = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({first_line(error)}); fetch or save it again.") from error
    if type(length) is not int or not 0 < length <= LONGEST:
        raise ValueError(f"{path} must hold a number of words in 1 … {LONGEST}, got {length!r}.")
    return length


def released_prompt(
    prompt: str, *, frame_rate: int | None = None, noise: float | None = None, aspect_ratio: str | None = None
) -> str:
    """A prompt as released STARFlows were trained on it; what was not part of their training is left out.

    frame_rate: frames a second, 0 for an image. noise: standard deviation on the latents. aspect_ratio: such as "16:9".
    """
    if frame_rate is not None:
        prompt = f"A video with {frame_rate} fps:\n{prompt}\n" if frame_rate else f"An image:\n{prompt}\n"
    if noise is not None:
        prompt = f"Noise Level {int(noise * 1000)}:\n{prompt}"
    if aspect_ratio is not None:
        prompt = f"{prompt}\n in a {aspect_ratio} aspect ratio.\n"
    return prompt
