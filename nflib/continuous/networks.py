"""Velocity networks for vectors."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

__all__ = ["MLPVelocity", "TimeFeatures"]


class TimeFeatures(nn.Module):
    """Times ``(B,)`` in [0, 1] as ``t`` itself and sines and cosines of ``pi t, 2 pi t, 4 pi t …``, ``(B, size)``."""

    frequencies: Tensor

    def __init__(self, num_frequencies: int = 6):
        super().__init__()
        self.size = 1 + 2 * num_frequencies
        self.register_buffer("frequencies", math.pi * 2.0 ** torch.arange(num_frequencies), persistent=False)

    def forward(self, t: Tensor) -> Tensor:
        angles = t[:, None] * self.frequencies
        return torch.cat([t[:, None], angles.sin(), angles.cos()], dim=1)


class MLPVelocity(nn.Module):
    """``v(x, t, context)`` of vectors ``(B, size)``: residual layers on x, times and a context vector.

    Args:
        size: of x.
        channels, num_layers: of the residual layers.
        context_size: of the context vector, 0 for none.

    The output starts at zero.

    >>> field = MLPVelocity(2, channels=32)
    >>> field(torch.zeros(5, 2), torch.rand(5)).shape
    torch.Size([5, 2])
    """

    def __init__(self, size: int, *, channels: int = 128, num_layers: int = 3, context_size: int = 0):
        super().__init__()
        self.times = TimeFeatures()
        self.uses_context = context_size > 0
        self.proj_in = nn.Linear(size + self.times.size + context_size, channels)
        # No nn.LayerNorm: its third derivatives, which scores of densities take, are wrong in torch.
        self.layers = nn.ModuleList(
            nn.Sequential(nn.SiLU(), nn.Linear(channels, channels), nn.SiLU(), nn.Linear(channels, channels))
            for _ in range(num_layers)
        )
        self.proj_out = nn.Linear(channels, size)
        nn.init.zeros_(self.proj_out.weight)
        nn.init.zeros_(self.proj_out.bias)

    def forward(self, x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        if self.uses_context and context is None:
            raise ValueError("this velocity is conditioned on a vector; pass the flow a context.")
        hidden = self.proj_in(torch.cat([x, self.times(t), *([] if context is None else [context])], dim=1))
        for layer in self.layers:
            hidden = hidden + layer(hidden)
        return self.proj_out(hidden)
