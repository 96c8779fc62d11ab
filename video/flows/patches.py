"""How clips become tokens and come back, and the noise that they are made from; log-determinant zero."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from nflib.distributions import NormalNoise
from nflib.dtypes import widened
from nflib.transforms import ClosedForm, ImagePatches


class VideoPatches(ClosedForm):
    """Clips ``(B, T, C, H, W)`` of any number of frames, each cut into patches: ``(B, T * frame_length, C p²)``.

    Args:
        frame_shape: ``(C, H, W)``.
        patch_size: p, side of a patch.

    Raises:
        ValueError: in use, frames of another shape.
    """

    def __init__(self, frame_shape: Sequence[int], patch_size: int):
        super().__init__()
        self.frame = ImagePatches(frame_shape, patch_size)

    @property
    def token_shape(self) -> tuple[int, int]:
        """How many tokens a frame has, and how many numbers a token."""
        return self.frame.token_shape

    def input_shape(self, output_shape: Sequence[int]) -> tuple[int, ...]:
        return (output_shape[0] // self.token_shape[0], *self.frame.event_shape)

    def forward(self, inputs: Tensor, context: Any = None) -> tuple[Tensor, Tensor]:
        if inputs.dim() != 5 or tuple(inputs.shape[2:]) != self.frame.event_shape or not inputs.shape[1]:
            raise ValueError(
                f"expected clips of shape (batch, frames, {', '.join(map(str, self.frame.event_shape))}), got "
                f"{tuple(inputs.shape)}."
            )
        tokens, _ = self.frame(inputs.flatten(0, 1))
        return tokens.reshape(len(inputs), inputs.shape[1] * tokens.shape[1], tokens.shape[-1]), inputs.new_zeros(
            len(inputs)
        )

    def inverse(self, inputs: Tensor, context: Any = None) -> tuple[Tensor, Tensor]:
        frame_length, token_size = self.token_shape
        frames, _ = self.frame.inverse(inputs.reshape(-1, frame_length, token_size))
        shape = (len(inputs), inputs.shape[1] // frame_length)
        return frames.unflatten(0, shape), inputs.new_zeros(len(inputs))


class FrameNoise(NormalNoise):
    """The standard normal on tokens of any number of whole frames, ``(B, n * frame_length, token_size)``.

    Args:
        num_frames: that a draw has.
        frame_length: tokens of a frame.
        token_size: numbers of a token.

    Raises:
        ValueError: in use, other tokens.
    """

    def __init__(self, num_frames: int, frame_length: int, token_size: int):
        super().__init__()
        self.num_frames = num_frames
        self.frame_length = frame_length
        self.token_size = token_size

    def of(self, num_frames: int) -> FrameNoise:
        """The same of another number of frames."""
        return FrameNoise(num_frames, self.frame_length, self.token_size).to(self.location)

    def event_shape(self, context: Any) -> tuple[int, ...]:
        return (self.num_frames * self.frame_length, self.token_size)

    def log_prob(self, inputs: Tensor, context: Any = None) -> Tensor:
        if inputs.dim() != 3 or inputs.shape[1] % self.frame_length or inputs.shape[2] != self.token_size:
            raise ValueError(
                f"expected tokens of shape (batch, frames × {self.frame_length}, {self.token_size}), got "
                f"{tuple(inputs.shape)}."
            )
        inputs = widened(inputs)
        return -0.5 * (inputs.square().flatten(1).sum(-1) + inputs.shape[1:].numel() * math.log(2 * math.pi))
