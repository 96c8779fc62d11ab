"""Pixels in -1 … 1 of a number of levels, and their dequantisation.

A flow may have them closer to grey, times a scale: the public TARFlows of uniformly dequantised pixels do, where a step
of each of 256 levels, rather than the levels themselves, fill -1 … 1. Their scale is 255 / 256.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from nflib.dtypes import dtype_name


def as_pixels(values: Any, largest: float = math.inf) -> Tensor:
    """Pixels as a tensor.

    Args:
        values: a tensor, or what `torch.as_tensor` takes.
        largest: size of a pixel, at most.

    Raises:
        ValueError: integers, as of 8 bits, NaN, or larger pixels.
    """
    pixels = torch.as_tensor(values)
    if pixels.is_floating_point() and bool((pixels.abs() <= largest).all()):
        return pixels
    got = dtype_name(pixels.dtype)
    if pixels.is_floating_point():
        got = "NaN" if pixels.isnan().any() else f"{float(pixels.min()):g} … {float(pixels.max()):g}"
    raise ValueError(f"pixels must be floats in -1 … 1, got {got}; of levels 0 … 255, divide by 127.5 and subtract 1.")


def snapped(pixels: Tensor, levels: int, scale: float = 1.0) -> Tensor:
    """Round a flow's pixels to the nearest levels, which lie evenly over -1 … 1, the ends among them.

    Args:
        pixels: as a flow has them, times `scale`.
        levels: how many.
        scale: factor on pixels in the flow; the result is without it.
    """
    steps = (levels - 1) / 2
    return ((pixels / scale + 1) * steps).round().clamp(0, levels - 1) / steps - 1


def dequantised(pixels: Tensor, levels: int, generator: torch.Generator, scale: float = 1.0) -> Tensor:
    """Dequantise pixels: each level becomes uniform in a step around it (Theis et al. 2016, arXiv 1511.01844).

    The mean of the log-density of these, in units of a step, is a bound on the log-probability of the levels.

    Args:
        pixels: in -1 … 1.
        levels: how many values a pixel has.
        generator: of the random numbers.
        scale: factor on pixels, as the flow has them.
    """
    place = torch.rand(pixels.shape, generator=generator, device=generator.device).to(pixels)
    return scale * (snapped(pixels, levels) + (place - 0.5) * step(levels))


def step(levels: int) -> float:
    """The distance from one level to the next, in -1 … 1."""
    return 2 / (levels - 1)


def log_step(levels: int | None, scale: float = 1.0) -> float:
    """Added to a log-density, for each pixel, it makes one in units of a step; 0 for numbers without levels."""
    return 0.0 if levels is None else math.log(scale * step(levels))
