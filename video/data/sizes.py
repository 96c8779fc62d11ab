"""The sizes in which frames are learnt: buckets of shapes, and how frames come to fit one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from nflib.events import per_row


class Bucket(NamedTuple):
    """The shape of clips that make a batch.

    Args:
        frames: of a clip.
        height: pixels.
        width: pixels.
    """

    frames: int
    height: int
    width: int


def buckets(
    height: int, width: int, multiple: int = 16, frames: Sequence[int] = (1,), largest_aspect: float = 1.0
) -> list[Bucket]:
    """Buckets for clips of several aspect ratios: shapes of about the area of ``height × width``.

    Args:
        height: of the first shape, pixels.
        width: of the first shape, pixels.
        multiple: of which all sides are multiples.
        frames: lengths of clips; each goes with each shape.
        largest_aspect: of the longer side to the shorter one; 1 leaves the first shape alone.

    Raises:
        ValueError: sides that are no multiples, or numbers that are not positive.

    >>> [bucket[1:] for bucket in buckets(64, 64, 16, largest_aspect=2.0)]
    [(64, 64), (48, 80), (80, 48)]
    """
    if multiple < 1 or min(height, width) < 1 or height % multiple or width % multiple:
        raise ValueError(f"sides must be positive multiples of {multiple}, got {height} × {width} pixels.")
    if not frames or min(frames) < 1:
        raise ValueError(f"clips have one frame or more, got {list(frames)}.")
    if largest_aspect < 1:
        raise ValueError(f"largest_aspect, the longer side to the shorter one, is at least 1, got {largest_aspect}.")
    area, shapes = height * width, [(height, width)]
    for short in range(int(math.sqrt(area)) // multiple * multiple, 0, -multiple):
        long = round(area / short / multiple) * multiple
        for shape in ((short, long), (long, short)):
            is_new = all(shape[0] * other[1] != shape[1] * other[0] for other in shapes)
            if is_new and 1 < largest_aspect >= long / short:
                shapes.append(shape)
    return [Bucket(count, *shape) for count in sorted(set(frames)) for shape in shapes]


def nearest_bucket(choices: Sequence[Bucket], frames: int, height: int, width: int) -> Bucket | None:
    """The bucket that a clip goes to: of the longest that it fills, the one of the nearest aspect ratio.

    Args:
        choices: the buckets.
        frames: that the clip has.
        height: of its frames, pixels.
        width: of its frames, pixels.

    Returns:
        None if the clip fills no bucket.
    """
    filled = [bucket for bucket in choices if bucket.frames <= frames]
    if not filled:
        return None
    length = max(bucket.frames for bucket in filled)
    return min(
        (bucket for bucket in filled if bucket.frames == length),
        key=lambda bucket: abs(math.log(bucket.height / bucket.width * width / height)),
    )


def windows(frames: int, length: int) -> list[int]:
    """The first frames of the consecutive windows of a clip; what is left at its end is too short for one.

    >>> windows(11, 4)
    [0, 4]
    """
    return list(range(0, frames - length + 1, length))


def fit_frame(pixels: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Resize a frame, without aliasing, until it just covers ``height × width``, and crop its centre.

    Where nothing needs to be resized, the pixels are those of the frame.

    Args:
        pixels: ``(H, W, 3)``.
        height: wanted.
        width: wanted.
    """
    own_height, own_width = pixels.shape[:2]
    scale = max(height / own_height, width / own_width)
    if scale == 1:
        top, left = (own_height - height) // 2, (own_width - width) // 2
        return pixels[top : top + height, left : left + width]
    # The part of the frame that is to be seen, in its own pixels, beginning at a whole one of the new.
    tall, wide = min(height / scale, own_height), min(width / scale, own_width)
    top, left = ((own_height * scale - height) // 2 / scale, (own_width * scale - width) // 2 / scale)
    top, left = (
        min(max(first, 0.0), own - size) for first, own, size in ((top, own_height, tall), (left, own_width, wide))
    )
    box = (left, top, left + wide, top + tall)
    fitted = Image.fromarray(np.ascontiguousarray(pixels)).resize((width, height), Image.Resampling.BICUBIC, box=box)
    return np.asarray(fitted)


def as_clip(frames: Sequence[NDArray[np.uint8]], channels: int = 3) -> Tensor:
    """Frames ``(H, W, 3)`` as a clip ``(T, C, H, W)`` in -1 … 1; one channel is ITU-R 601's luma, as in Pillow."""
    if channels == 1:
        levels = np.stack([np.asarray(Image.fromarray(np.ascontiguousarray(frame)).convert("L")) for frame in frames])
        levels = levels[..., None]
    else:
        levels = np.stack(frames)
    return torch.from_numpy(levels).permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1


def random_flip(clips: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror each of some clips left to right with a chance of one half; for `fit`'s `augment`.

    Args:
        clips: ``(B, …, H, W)``.
        generator: of the random numbers.
    """
    chance = torch.rand(len(clips), generator=generator, device=generator.device)
    is_flipped = per_row((chance < 0.5).to(clips.device), clips)
    return torch.where(is_flipped, clips.flip(-1), clips)
