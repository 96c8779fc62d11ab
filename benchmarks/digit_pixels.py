"""Handwritten digits as what flows are trained on: pixels, dequantised and Gaussianised."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from examples.digits.data import LEVELS
from nflib.training.feed import Augmentation

PIXELS, SIDE = 64, 8


def dequantised(levels: Tensor, generator: torch.Generator) -> Tensor:
    return levels + torch.rand(levels.shape, generator=generator)


def dequantising(prepare: Callable[[Tensor], Tensor]) -> Augmentation:
    """Levels with fresh noise of dequantisation in every batch, prepared."""
    return lambda levels, generator: prepare(dequantised(levels, generator))


class Gaussianize:
    """Normal quantiles of each pixel; returns z and the log-determinant.

    The histogram of a pixel over the 17 levels, add-half smoothed, gives the distribution function of the dequantised
    pixel, which is piecewise linear and exact.
    """

    def __init__(self, train: Tensor, smoothing: float = 0.5):
        counts = nn.functional.one_hot(train.long(), LEVELS).sum(0).double() + smoothing
        self.mass = counts / counts.sum(-1, keepdim=True)
        self.below = self.mass.cumsum(-1) - self.mass

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        level = x.long().clamp(0, LEVELS - 1)
        mass, below = (t.expand(len(x), -1, -1).gather(-1, level[..., None])[..., 0] for t in (self.mass, self.below))
        z = torch.special.ndtri((below + mass * (x.double() - level)).clamp(1e-9, 1 - 1e-9))
        slope = mass.log() + 0.5 * (z.square() + math.log(2 * math.pi))
        return z.float(), slope.sum(-1).float()
