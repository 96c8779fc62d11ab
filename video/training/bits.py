"""Bits per dimension of pixels or latents: what flows of a user's own folder are trained on, and judged by."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from video.flows.images import as_clips
from video.latents.levels import dequantised, log_step, snapped
from video.training.likelihood import NoisyLikelihood


@dataclass(frozen=True)
class BitsPerDimension:
    """The loss of a `NoisyLikelihood`, in bits per dimension, of clips ``(B, T, c, h, w)`` of any size.

    A flow that has another size takes them as its `resized` one, on the same weights. Of pixels, a dimension is counted
    in steps of their levels: without noise they are dequantised, each level becoming uniform in its step, and the bits
    are a bound on those of a lossless code (Theis et al. 2016, arXiv 1511.01844).

    Args:
        likelihood: with its noise and prompt_dropout.
        levels: of pixels, 256 of those of 8 bits; None: of latents.
        scale: factor on dequantised pixels before the flow: see `video.latents.levels`.
    """

    likelihood: NoisyLikelihood
    levels: int | None = None
    scale: float = 1.0

    @property
    def unit(self) -> str:
        """What the bits are of, in words."""
        noise = f"noise of deviation {self.likelihood.noise:g}" if self.likelihood.noise else ""
        if self.levels is None:
            return f"latents with {noise}" if noise else "latents"
        pixels = "8-bit pixels" if self.levels == 256 else f"pixels of {self.levels} levels"
        return f"{pixels} with {noise}" if noise else f"{pixels}, uniformly dequantised"

    def __call__(
        self, flow: nn.Module, batch: dict[str, Tensor], generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        inputs, clips = batch["inputs"], _of_shape(flow, batch["inputs"])
        if self.levels is not None:
            # As they may have been kept in half precision.
            inputs = snapped(inputs, self.levels)
            if not self.likelihood.noise:
                inputs = dequantised(inputs, self.levels, generator, self.scale)
        nats, metrics = self.likelihood(clips, batch | {"inputs": inputs}, generator)
        return (nats - log_step(self.levels, self.scale)) / math.log(2), metrics


def _of_shape(flow: Any, inputs: Tensor) -> Any:
    """The flow as one of clips of this height and width."""
    clips = as_clips(flow)
    if inputs.shape[2:] != tuple(clips.frame_shape):
        clips = clips.resized((clips.max_frames, *inputs.shape[2:]))
    clips.training = flow.training
    return clips
