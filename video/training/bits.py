"""Bits per dimension of pixels or latents: what flows of a user's own folder are trained on, and judged by."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from video.flows.images import as_clips
from video.training.likelihood import NoisyLikelihood

# Pixels in -1 … 1 have 256 levels; so many of their steps make one.
STEPS = 127.5


@dataclass(frozen=True)
class BitsPerDimension:
    """The loss of a `NoisyLikelihood`, in bits per dimension, of clips ``(B, T, c, h, w)`` of any size.

    A flow that has another size takes them as its `resized` one, on the same weights. Of pixels, a dimension is counted
    in steps of their 8 bits: without noise they are dequantised, each level becoming uniform in its step, and the bits
    are a bound on those of a lossless code (Theis et al. 2016, arXiv 1511.01844).

    Args:
        likelihood: with its noise and dropout.
        of_pixels: rather than latents.
    """

    likelihood: NoisyLikelihood
    of_pixels: bool = False

    @property
    def unit(self) -> str:
        """What the bits are of, in words."""
        noise = f"noise of deviation {self.likelihood.noise:g}" if self.likelihood.noise else ""
        if not self.of_pixels:
            return f"latents with {noise}" if noise else "latents"
        return f"8-bit pixels with {noise}" if noise else "8-bit pixels, uniformly dequantised"

    def __call__(
        self, flow: nn.Module, batch: dict[str, Tensor], generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        inputs, clips = batch["inputs"], _of_shape(flow, batch["inputs"])
        if self.of_pixels:
            # As they may have been kept in half precision.
            inputs = ((inputs + 1) * STEPS).round() / STEPS - 1
            if not self.likelihood.noise:
                place = torch.rand(inputs.shape, generator=generator, device=inputs.device, dtype=inputs.dtype)
                inputs = inputs + (place - 0.5) / STEPS
        nats, metrics = self.likelihood(clips, batch | {"inputs": inputs}, generator)
        return nats / math.log(2) + (math.log2(STEPS) if self.of_pixels else 0.0), metrics


def _of_shape(flow: Any, inputs: Tensor) -> Any:
    """The flow as one of clips of this height and width."""
    clips = as_clips(flow)
    if inputs.shape[2:] != tuple(clips.frame_shape):
        clips = clips.resized((clips.max_frames, *inputs.shape[2:]))
    clips.training = flow.training
    return clips
