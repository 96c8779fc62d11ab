"""How a video flow is inverted by default: a few frames at a time, each from the one before it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from nflib.decoding import GaussSeidelJacobi, Inversion, PreviousFrame, Sequential
from nflib.interfaces import CausalMap

# Of sweeps, on latents of deviation 1: clips come out within 1e-3 of token by token's (benchmarks/video_decoding.py).
TOLERANCE = 2e-5
# A step over one token and a sweep over a few dozen take about the same on a CPU, as long as there are few clips.
FRAMES, LARGEST_BATCH = 4, 2


class FramesAtOnce:
    """The default decoder of video flows: a few frames at once, whose initial guess is the frame before them.

    It inverts the deep map by `GaussSeidelJacobi` with `PreviousFrame` (video-aware Jacobi, STARFlow-V, arXiv
    2511.20462). Maps inside a frame, which all frames of a clip share in one batch, and larger batches of clips go
    token by token, which is faster there.

    Args:
        frame_length: tokens of a frame.
        frames: decoded at once.
        tolerance: as for `GaussSeidelJacobi`.
        largest_batch: more clips than that are decoded token by token.
    """

    def __init__(
        self,
        frame_length: int,
        frames: int = FRAMES,
        tolerance: float = TOLERANCE,
        largest_batch: int = LARGEST_BATCH,
    ):
        self.frame_length = frame_length
        self.largest_batch = largest_batch
        self.sweeps = GaussSeidelJacobi(frames * frame_length, tolerance, initial_guess=PreviousFrame(frame_length))
        self.steps = Sequential()

    def __call__(self, map: CausalMap, noise: Tensor, encoded_context: Any, prefix: Tensor | None = None) -> Inversion:
        is_deep = noise.shape[1] > self.frame_length
        decoder = self.sweeps if is_deep and len(noise) <= self.largest_batch else self.steps
        return decoder(map, noise, encoded_context, prefix)
