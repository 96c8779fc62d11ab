"""Closed intervals as floating-point numbers have them: the ends are rounded, and so are data that lie on them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from nflib.events import flattened
from nflib.inference import is_traced
from nflib.transforms.domain import OutsideDomain


def rounded_outward(low: float, high: float) -> tuple[np.float32, np.float32]:
    """The smallest float32 interval that holds [low, high]."""
    with np.errstate(over="ignore"):
        ends = np.float32(low), np.float32(high)
    # As Python's floats: NumPy would compare in float32, where nothing has been rounded.
    return (
        np.nextafter(ends[0], np.float32(-np.inf)) if float(ends[0]) > low else ends[0],
        np.nextafter(ends[1], np.float32(np.inf)) if float(ends[1]) < high else ends[1],
    )


def closed(low: Tensor, high: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """[low, high], wide enough for the ends rounded to `dtype`, that of the data: float16 has no 0.1, only 0.09998."""
    if not dtype.is_floating_point:
        return low, high
    return torch.minimum(low, low.to(dtype).to(low.dtype)), torch.maximum(high, high.to(dtype).to(high.dtype))


def clamped(name: str, x: Tensor, low: Tensor, high: Tensor, bounded: Tensor, dtype: torch.dtype) -> Tensor:
    """x ``(B, *event)`` with numbers of bounded coordinates in [low, high]; all but x broadcast to x.

    Numbers beyond an end by no more than the rounding of `dtype`, in which they were given, are put on it. Further ones
    are `OutsideDomain`, a ValueError; compiled and exported programs, and torch.func, cannot branch on data: there they
    become NaN.
    """
    lowest, highest = closed(low, high, dtype)
    outside = bounded & ((x < lowest) | (x > highest))
    inside = torch.where(bounded, torch.maximum(torch.minimum(x, high), low), x)
    if is_traced():
        return inside.masked_fill(outside, torch.nan)
    if outside.any():
        place = tuple(int(i) for i in outside.nonzero()[0])
        value, least, largest = (number.expand(x.shape)[place].item() for number in (x, low, high))
        raise OutsideDomain(
            f"{name}: coordinate {place[1:]} of sample {place[0]} is {value:g}, outside its interval "
            f"[{least:g}, {largest:g}]; wrap or drop such values first.",
            ~flattened(outside).any(dim=1),
        )
    return inside
