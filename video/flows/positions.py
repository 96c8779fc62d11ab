"""Where text and patches stand, for rotary positions: coordinates (height, width, time), text along time."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from nflib.devices import table_device
from nflib.networks import Rotary, grid_coordinates

# How many of a head's channel pairs turn with time, where text and frames are told apart; the rest see the picture.
TIME_PAIRS = 8


def axial_coordinates(text_length: int, num_frames: int, height: int, width: int, span: float) -> Tensor:
    """Coordinates ``(text_length + num_frames * height * width, 3)``: of the text, then of each frame's patches.

    A patch stands at ``(row, column) * span / sqrt(height * width)`` and at the number of its frame; so frames of any
    size cover the area ``span²``. Word l stands at ``(0, 0, l * span / text_length)``.
    """
    device = table_device()
    words = torch.zeros(text_length, 3, device=device)
    words[:, 2] = torch.arange(text_length, device=device) * (span / max(text_length, 1))
    places = grid_coordinates((height, width)) * (span / math.sqrt(height * width))
    frames = torch.arange(num_frames, dtype=places.dtype, device=device).repeat_interleave(len(places))
    return torch.cat([words, torch.cat([places.repeat(num_frames, 1), frames.unsqueeze(-1)], dim=-1)])


def axial_rotary(coordinates: Tensor, head_dim: int) -> Rotary:
    """Rotary positions over coordinates ``(T, 3)``, with `TIME_PAIRS` channel pairs for the last axis.

    Raises ValueError where head_dim leaves no equal shares for height and width.
    """
    spatial = head_dim // 2 - TIME_PAIRS
    if head_dim % 4 or spatial < 2:
        raise ValueError(f"head_dim must be a multiple of 4, and at least {2 * TIME_PAIRS + 4}, got {head_dim}.")
    return Rotary(coordinates, head_dim, pairs=[spatial // 2, spatial // 2, TIME_PAIRS])


def picture_rotary(coordinates: Tensor, head_dim: int) -> Rotary:
    """Rotary positions over height and width alone."""
    return Rotary(coordinates[:, :2], head_dim)


def line_rotary(coordinates: Tensor, head_dim: int) -> Rotary:
    """Rotary positions of tokens counted along one line, text first, as language models have them."""
    line = torch.arange(len(coordinates), dtype=coordinates.dtype, device=coordinates.device)
    return Rotary(line.unsqueeze(-1), head_dim)


POSITIONS: dict[str, Callable[[Tensor, int], Rotary]] = {
    "axial": axial_rotary,
    "picture": picture_rotary,
    "line": line_rotary,
}
