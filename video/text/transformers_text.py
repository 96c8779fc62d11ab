"""Prompts as context by the models of transformers: hidden states of any encoder or decoder, or token embeddings."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nflib.errors import first_line
from nflib.io import complete_folder, write_json
from nflib.io.tensors import read_tensors, write_tensors
from nflib.optional import require

LENGTH = "length.json"
LONGEST = 100_000  # words of a prompt: more is no prompt, and much memory
EMBEDDINGS = "embeddings.safetensors"


class _Tokenized:
    """Prompts as tokens, padded and cut to a length."""

    is_costly = True
    vocabulary = None

    def __init__(self, tokenizer: Any, length: int, channels: int):
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        self.tokenizer = tokenizer
        self.length = length
        self.channels = channels

    @property
    def shape(self) -> tuple[int, ...]:
        return self.length, self.channels

    def _tokens(self, prompts: Sequence[str], device: torch.device) -> dict[str, Tensor]:
        tokens = self.tokenizer(
            list(prompts), padding="max_length", truncation=True, max_length=self.length, return_tensors="pt"
        )
        return {name: tokens[name].to(device) for name in ("input_ids", "attention_mask")}

    def _save(self, folder: Path) -> None:
        self.tokenizer.save_pretrained(folder)
        write_json(folder / LENGTH, self.length)


class HiddenStates(_Tokenized):
    """A text encoder of last hidden states, zero at padding: what released STARFlows take of T5.

    Args:
        encoder: an encoder or decoder of transformers.
        tokenizer: of transformers.
        length: tokens to which prompts are padded and cut.
    """

    def __init__(self, encoder: Any, tokenizer: Any, length: int = 128):
        super().__init__(tokenizer, length, int(encoder.config.get_text_config().hidden_size))
        self.encoder = encoder.eval().requires_grad_(False)

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str]) -> Tensor:
        tokens = self._tokens(prompts, self.encoder.device)
        hidden: Tensor = self.encoder(**tokens).last_hidden_state
        return (hidden * tokens["attention_mask"].unsqueeze(-1)).float()

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write encoder and tokenizer as transformers does."""
        with complete_folder(folder) as temporary:
            self.encoder.save_pretrained(temporary)
            self._save(temporary)


class TokenEmbeddings(_Tokenized):
    """A text encoder of token embeddings, of deviation 1, as a language model has them below its layers.

    What released STARFlows take whose top block is a language model (Gemma).

    Args:
        weight: embeddings ``(tokens, channels)``; contexts are ``sqrt(channels)`` times these.
        tokenizer: of transformers.
        length: tokens to which prompts are padded and cut.
    """

    def __init__(self, weight: Tensor, tokenizer: Any, length: int = 128):
        super().__init__(tokenizer, length, weight.shape[1])
        self.weight = weight

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str]) -> Tensor:
        tokens = self._tokens(prompts, self.weight.device)["input_ids"]
        return self.weight[tokens].float() * math.sqrt(self.channels)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the embeddings and the tokenizer."""
        with complete_folder(folder) as temporary:
            write_tensors(temporary / EMBEDDINGS, {"weight": self.weight})
            self._save(temporary)


def load_transformers_text(
    source: str | os.PathLike[str],
    length: int | None = None,
    device: str = "cpu",
    *,
    embeddings_only: bool = False,
    dtype: torch.dtype | None = None,
) -> HiddenStates | TokenEmbeddings:
    """Load a text encoder of transformers with its tokenizer, from one folder, a pipeline's subfolders, or the hub.

    Args:
        source: as of `load_text`.
        length: as of `load_text`.
        device: as of `load_text`.
        embeddings_only: as of `load_text`.
        dtype: as of `load_text`.

    Raises:
        FileNotFoundError: there is none, or the hub cannot be reached.
        ValueError: a damaged length.json.
    """
    transformers = require("transformers", "encoders of text need", extra="video")
    folder = Path(source)
    length = _saved_length(folder / LENGTH) if length is None else length
    is_pipeline = (folder / "text_encoder").is_dir() and (folder / "tokenizer").is_dir()
    model, words = (str(folder / name) for name in ("text_encoder", "tokenizer")) if is_pipeline else 2 * [str(source)]
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(words)
        if (folder / EMBEDDINGS).is_file():
            return TokenEmbeddings(read_tensors(folder / EMBEDDINGS)["weight"].to(device), tokenizer, length)
        config = transformers.AutoConfig.from_pretrained(model)
        family = transformers.AutoModelForTextEncoding
        family = family if type(config) in family._model_mapping else transformers.AutoModel
        encoder: Any = family.from_pretrained(model, dtype=dtype or "auto")
    except Exception as error:  # of damaged files each of several libraries raises its own
        raise FileNotFoundError(
            f"no encoder of text with its tokenizer can be read from {str(source)!r} ({first_line(error)}); give a "
            "folder that holds both, or a name on the hub while it can be reached."
        ) from error
    if embeddings_only:
        return TokenEmbeddings(encoder.get_input_embeddings().weight.detach().to(device), tokenizer, length)
    return HiddenStates(encoder.to(device), tokenizer, length)


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
