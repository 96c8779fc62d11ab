"""Pixels in -1 … 1 of a number of levels, and their dequantisation."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def snapped(pixels: Tensor, levels: int) -> Tensor:
    """The nearest of so many levels, evenly over -1 … 1, the ends among them."""
    steps = (levels - 1) / 2
    return ((pixels + 1) * steps).round().clamp(0, levels - 1) / steps - 1


def dequantised(pixels: Tensor, levels: int, generator: torch.Generator) -> Tensor:
    """Pixels whose level is uniform in a step around it (Theis et al. 2016, arXiv 1511.01844).

    The mean of the log-density of these, in units of a step, is a bound on the log-probability of the levels.
    """
    place = torch.rand(pixels.shape, generator=generator, device=generator.device).to(pixels)
    return snapped(pixels, levels) + (place - 0.5) * step(levels)


def step(levels: int) -> float:
    """From one level to the next."""
    return 2 / (levels - 1)


def log_step(levels: int | None) -> float:
    """What a log-density a pixel takes to be one in units of a step; 0 for numbers that have no levels."""
    return 0.0 if levels is None else math.log(step(levels))
