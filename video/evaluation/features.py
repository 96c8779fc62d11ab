"""Features of clips, by which distances between sets of clips are measured."""

from __future__ import annotations

import os
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from nflib.errors import first_line
from nflib.optional import require
from video.latents.vision import load_vision_tower
from video.media import as_bytes

POOLED_SIDE = 8


class ClipFeatures(Protocol):
    """Features ``(B, d)`` of clips ``(B, T, C, H, W)`` in -1 … 1; `description` says for a reader what these are."""

    description: str

    def __call__(self, clips: Tensor) -> Tensor: ...


class PooledPixels:
    """Features without an encoder: pixels, averaged down to at most 8 × 8 and over a clip's frames."""

    description = f"pixels averaged down to at most {POOLED_SIDE} × {POOLED_SIDE} and over the frames of a clip"

    def __call__(self, clips: Tensor) -> Tensor:
        height, width = (min(side, POOLED_SIDE) for side in clips.shape[-2:])
        return adaptive_avg_pool2d(clips.mean(1), (height, width)).flatten(1).double().cpu()


class EncodedFrames:
    """Features of frames by a vision encoder of transformers, averaged over the frames of a clip.

    A frame's features are the encoder's pooled output, where it has one that was trained, else the mean of its tokens,
    or of the places of its map. The mean over frames does not know their order.

    Args:
        model: of transformers.
        processor: of its images.
        is_pooled: whether the pooled output is taken.
        name: for `description`.
        batch_size: frames encoded at once.
    """

    def __init__(self, model: Any, processor: Any, is_pooled: bool, name: str, batch_size: int = 64):
        self.model = model.eval().requires_grad_(False)
        self.processor = processor
        self.is_pooled = is_pooled
        self.batch_size = batch_size
        how = "pooled output" if is_pooled else "mean of the tokens"
        self.description = f"{type(model).__name__} in {name}, {how}, averaged over the frames of a clip"

    @torch.no_grad()
    def __call__(self, clips: Tensor) -> Tensor:
        frames = list(as_bytes(clips.flatten(0, 1)))
        pieces = [self._encode(frames[k : k + self.batch_size]) for k in range(0, len(frames), self.batch_size)]
        return torch.cat(pieces).unflatten(0, clips.shape[:2]).mean(1)

    def _encode(self, frames: list[Any]) -> Tensor:
        pixels = self.processor(images=frames, return_tensors="pt")["pixel_values"]
        output = self.model(pixel_values=pixels.to(device=self.model.device, dtype=self.model.dtype))
        if self.is_pooled:
            features = output.pooler_output.flatten(1)
        else:
            last = output.last_hidden_state
            features = last.mean(1) if last.dim() == 3 else last.flatten(2).mean(2)
        return features.double().cpu()


def load_features(source: str | os.PathLike[str] | None, device: str = "cpu") -> ClipFeatures:
    """Load what gives features of clips: a vision encoder of transformers, or `PooledPixels`.

    Of models with a tower of text as well (CLIP, SigLIP), the vision tower is taken.

    Args:
        source: a folder, or a name on the hub; None for `PooledPixels`.
        device: where it is put.

    Raises:
        FileNotFoundError: no encoder with its image processor can be read.
        ValueError: one whose weights are not all there.
    """
    if source is None:
        return PooledPixels()
    transformers = require("transformers", "features need", extra="video")
    try:
        processor = transformers.AutoImageProcessor.from_pretrained(str(source))
    except (OSError, ValueError, ImportError) as error:
        raise FileNotFoundError(
            f"no vision encoder with its image processor can be read from {str(source)!r} ({first_line(error)}); give "
            "a folder that holds both, as save_pretrained writes them."
        ) from error
    tower, missing = load_vision_tower(source)
    pixels = processor(images=[np.zeros((32, 32, 3), np.uint8)], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        output = tower(pixel_values=pixels.to(tower.dtype))
    is_pooled = getattr(output, "pooler_output", None) is not None and not any("pooler" in name for name in missing)
    return EncodedFrames(tower.to(device), processor, is_pooled, str(source))
