"""Where the sweeps of a decoder start: the first guess of every token."""

from __future__ import annotations

import torch
from torch import Tensor


class PreviousFrame:
    """A token's first guess is the token one frame earlier, as decoded by then; in the first frame, its latent.

    Neighbouring frames of a video are alike, so that a frame converges in fewer sweeps (STARFlow-V, arXiv 2511.20462).
    Raises ValueError for a frame_length below 1.
    """

    def __init__(self, frame_length: int):
        if frame_length < 1:
            raise ValueError(f"frame_length must be a positive number of tokens, got {frame_length!r}.")
        self.frame_length = frame_length

    def extend(self, u: Tensor, first: int, stop: int) -> None:
        """Write the guesses of the tokens ``first … stop`` into u ``(B, T, C)``."""
        first = max(first, self.frame_length)
        while first < stop:
            last = min(first + self.frame_length, stop)
            u[:, first:last] = u[:, first - self.frame_length : last - self.frame_length]
            first = last


Start = str | Tensor | PreviousFrame


def first_guess(start: Start, noise: Tensor) -> Tensor:
    """A guess of all tokens, of the noise's shape; what is not finite in a tensor gives way to the latent.

    Raises ValueError where a tensor does not broadcast to the noise.
    """
    if not isinstance(start, Tensor):
        return torch.zeros_like(noise) if start == "zeros" else noise.clone()
    start = start.to(noise)
    try:
        start = start.expand_as(noise)
    except RuntimeError as error:
        raise ValueError(
            f"start of shape {tuple(start.shape)} does not broadcast to tokens {tuple(noise.shape)}."
        ) from error
    return torch.where(start.isfinite(), start, noise)
