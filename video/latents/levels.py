"""Pixels in -1 … 1 of a number of levels, and their dequantisation.

A flow may have them closer to grey, times a scale: the public TARFlows of uniformly dequantised pixels do, where a step
of each of 256 levels, rather than the levels themselves, fill -1 … 1. Their scale is 255 / 256.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def snapped(pixels: Tensor, levels: int, scale: float = 1.0) -> Tensor:
    """The nearest of so many levels, evenly over -1 … 1, the ends among them, to a flow's pixels of this scale."""
    steps = (levels - 1) / 2
    return ((pixels / scale + 1) * steps).round().clamp(0, levels - 1) / steps - 1


def dequantised(pixels: Tensor, levels: int, generator: torch.Generator, scale: float = 1.0) -> Tensor:
    """Pixels whose level is uniform in a step around it (Theis et al. 2016, arXiv 1511.01844), as the flow has them.

    The mean of the log-density of these, in units of a step, is a bound on the log-probability of the levels.
    """
    place = torch.rand(pixels.shape, generator=generator, device=generator.device).to(pixels)
    return scale * (snapped(pixels, levels) + (place - 0.5) * step(levels))


def step(levels: int) -> float:
    """From one level to the next."""
    return 2 / (levels - 1)


def log_step(levels: int | None, scale: float = 1.0) -> float:
    """What a log-density a pixel takes to be one in units of a step; 0 for numbers that have no levels."""
    return 0.0 if levels is None else math.log(scale * step(levels))
