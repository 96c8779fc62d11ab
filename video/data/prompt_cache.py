"""Contexts of prompts, each encoded once and kept on disk."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from video.data.cache_folder import damaged, open_cache, read_tensors, write_tensors
from video.data.fingerprints import fingerprint
from video.text.encoders import TextEncoder

DESCRIPTION = "prompts.json"
SHARDS = "prompts-*.safetensors"
CONTEXTS = "contexts"
# Prompts of one file: they stand in its header, which has a limit.
LONGEST = 4096


class PromptCache:
    """Contexts ``(B, L, D)`` of prompts that a text encoder made, kept in a folder and read as they are asked for.

    Called with prompts as the encoder itself is; raises KeyError for one that is not there.

    Args:
        folder: written by `encode_prompts`.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self._places: dict[str, tuple[Tensor, int]] = {}
        for path in sorted(Path(folder).glob(SHARDS)):
            tensors, beside = read_tensors(path)
            try:
                contexts, prompts = tensors[CONTEXTS], beside["prompts"]
            except KeyError as error:
                raise damaged(path, error) from error
            self._places |= {prompt: (contexts, row) for row, prompt in enumerate(prompts)}

    def __contains__(self, prompt: object) -> bool:
        return prompt in self._places

    def __call__(self, prompts: Sequence[str]) -> Tensor:
        rows = (self._places[prompt] for prompt in prompts)
        return torch.stack([contexts[row] for contexts, row in rows]).float()


def encode_prompts(
    prompts: Iterable[str],
    text: TextEncoder,
    folder: str | os.PathLike[str],
    *,
    batch_size: int = 32,
    shard_bytes: int = 1 << 28,
    dtype: torch.dtype = torch.float32,
    renew: bool = False,
) -> PromptCache:
    """Encode each distinct prompt, and the empty one, that is not in a folder yet; interrupted, it goes on there.

    Args:
        prompts: any number of times each.
        text: the encoder.
        folder: made unless it is there.
        batch_size: prompts encoded at once.
        shard_bytes: about how much is held in memory, and then written into one file.
        dtype: in which contexts are kept.
        renew: begin anew where the folder holds contexts of another encoder.

    Raises:
        ValueError: it does, without `renew`, or a file in it is damaged.
        OSError: another run is at work in the folder, or it cannot be written.
    """
    folder = Path(folder)
    wanted = {"encoder": fingerprint(text), "dtype": str(dtype)}
    with open_cache(folder, DESCRIPTION, wanted, SHARDS, renew):
        known = PromptCache(folder)
        missing = sorted({prompt for prompt in [*prompts, ""] if prompt not in known})
        row_bytes = max(math.prod(text.shape) * dtype.itemsize, 1)
        number = max([int(path.stem.rpartition("-")[2]) + 1 for path in folder.glob(SHARDS)], default=0)
        pieces = _pieces(missing, min(max(shard_bytes // row_bytes, 1), LONGEST))
        for piece in tqdm(pieces, "encoding prompts", disable=len(missing) <= 1024):
            contexts = [text(batch).to("cpu", dtype) for batch in _pieces(piece, batch_size)]
            path = folder / SHARDS.replace("*", f"{number:05d}")
            write_tensors(path, {CONTEXTS: torch.cat(contexts).contiguous()}, {"prompts": piece})
            number += 1
    return PromptCache(folder)


def _pieces(prompts: list[str], size: int) -> list[list[str]]:
    return [prompts[start : start + size] for start in range(0, len(prompts), size)]
