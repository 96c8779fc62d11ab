"""How a video flow is inverted by default: a few frames at a time, each from the one before it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from nflib.decoding import GaussSeidelJacobi, PreviousFrame, Sequential

if TYPE_CHECKING:
    from nflib.transforms.autoregressive import Autoregressive

# Of sweeps, on latents of deviation 1: clips come out within 1e-3 of token by token's (benchmarks/video_decoding.py).
TOLERANCE = 2e-5
# A step over one token and a sweep over a few dozen take about the same on a CPU, as long as there are few clips.
FRAMES, LARGEST_BATCH = 4, 2


class FramesAtOnce:
    """Inverts the deep map by sweeps over the next `frames` frames, whose first guess is the frame before them.

    That is `GaussSeidelJacobi` with `PreviousFrame` (video-aware Jacobi, STARFlow-V, arXiv 2511.20462). Maps inside a
    frame, which all frames of a clip share in one batch, and more than `largest_batch` clips go token by token, which
    is faster there. tolerance: as for `GaussSeidelJacobi`.
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
        self.sweeps = GaussSeidelJacobi(frames * frame_length, tolerance, start=PreviousFrame(frame_length))
        self.steps = Sequential()

    def __call__(
        self, transform: Autoregressive, noise: Tensor, context: Any = None, prefix: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        is_deep = noise.shape[1] > self.frame_length
        decoder = self.sweeps if is_deep and len(noise) <= self.largest_batch else self.steps
        return decoder(transform, noise, context, prefix)
