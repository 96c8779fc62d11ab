"""Clips with prompts: what sources of them offer, and what a flow is trained on of them."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from video.latents.latents import Latents
from video.text.encoders import TextEncoder


class CaptionedClips(Protocol):
    """Clips with their prompts, as a `ClipSource` gives them.

    Attributes:
        frames: ``(B, T, C, H, W)`` in -1 … 1.
        prompts: one a clip.
        num_given: how many of a clip's first frames are there to be read, not to be learnt, ``(B,)``.
        is_anchored: whether a clip's first frame is the one that a longer clip began with, ``(B,)``.
    """

    @property
    def frames(self) -> Tensor: ...

    @property
    def prompts(self) -> list[str]: ...

    @property
    def num_given(self) -> Tensor: ...

    @property
    def is_anchored(self) -> Tensor: ...


class ClipSource(Protocol):
    """A source of clips with prompts: ``clips(indices)`` gives those of some numbers below ``len(source)``."""

    def __len__(self) -> int: ...

    def clips(self, indices: Tensor) -> CaptionedClips: ...


def encode_clips(
    source: ClipSource,
    latents: Latents,
    text: TextEncoder,
    *,
    noise: float = 0.0,
    seed: int = 0,
    batch_size: int = 256,
) -> dict[str, Tensor]:
    """Encode all clips of a source, and their prompts, as data for `video.training.NoisyLikelihood`.

    All at once: to encode a clip takes about as long as a step of training on it, so each had better be seen often.

    Args:
        source: of N clips.
        latents: the autoencoder.
        text: of prompts.
        noise: standard deviation of what is added to latent frames that are given.
        seed: of that noise.
        batch_size: clips in memory at once.

    Returns:
        "inputs", latents ``(N, t, c, h, w)``, their "context", "num_given" and "is_anchored", both ``(N,)``.
    """
    inputs, prompts, given, is_anchored = [], [], [], []
    numbers = torch.arange(len(source)).split(batch_size)
    for rows in tqdm(numbers, "encoding clips", disable=len(source) <= 1024):
        clips = source.clips(rows)
        inputs.append(latents.encode(clips.frames))
        prompts += clips.prompts
        given.append(clips.num_given)
        is_anchored.append(clips.is_anchored)
    latent, num_given = torch.cat(inputs), torch.cat(given)
    is_given = torch.arange(latent.shape[1]) < num_given[:, None]
    generator = torch.Generator().manual_seed(seed)
    latent += noise * torch.randn(latent.shape, generator=generator) * is_given[..., None, None, None]
    return {
        "inputs": latent,
        "context": text(prompts),
        "num_given": num_given,
        "is_anchored": torch.cat(is_anchored),
    }
