"""Velocity networks: for vectors, and for tokens or images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from nflib.events import as_shape
from nflib.networks.conditioning import ClassEmbedding, VectorEmbedding
from nflib.networks.layers import transformer_layers
from nflib.networks.norms import RMSNorm
from nflib.networks.positions import LearnedPositions
from nflib.networks.step import Step
from nflib.transforms.patches import ImagePatches, VectorPatches

__all__ = ["AdaptiveRMSNorm", "MLPVelocity", "TimeFeatures", "TransformerVelocity"]


class TimeFeatures(nn.Module):
    """Features of times ``(B,)``: t itself and sines and cosines of ``pi t, 2 pi t, 4 pi t …``, ``(B, size)``.

    Args:
        num_frequencies: how many frequencies; the attribute `size` is one more than twice as many.
    """

    def __init__(self, num_frequencies: int = 6):
        super().__init__()
        self.num_frequencies = num_frequencies
        self.size = 1 + 2 * num_frequencies

    def forward(self, t: Tensor) -> Tensor:
        angles = t[:, None] * (math.pi * 2.0 ** torch.arange(self.num_frequencies, dtype=t.dtype, device=t.device))
        return torch.cat([t[:, None], angles.sin(), angles.cos()], dim=1)


class ResidualMLP(nn.Module):
    """Residual layers of channels on vectors, given in parts ``(B, …)`` of which some may be None.

    The output starts at zero.
    """

    def __init__(self, inputs: int, outputs: int, channels: int, num_layers: int):
        super().__init__()
        self.proj_in = nn.Linear(inputs, channels)
        # No nn.LayerNorm: its third derivatives, which scores of densities take, are wrong in torch.
        self.layers = nn.ModuleList(
            nn.Sequential(nn.SiLU(), nn.Linear(channels, channels), nn.SiLU(), nn.Linear(channels, channels))
            for _ in range(num_layers)
        )
        self.proj_out = nn.Linear(channels, outputs)
        nn.init.zeros_(self.proj_out.weight)
        nn.init.zeros_(self.proj_out.bias)

    def forward(self, *parts: Tensor | None) -> Tensor:
        hidden = self.proj_in(torch.cat([part for part in parts if part is not None], dim=1))
        for layer in self.layers:
            hidden = hidden + layer(hidden)
        return self.proj_out(hidden)


class MLPVelocity(nn.Module):
    """A velocity network ``v(x, t, context)`` for vectors: residual layers on x, t and a context vector.

    Its output starts at zero.

    Args:
        size: how many numbers x has.
        channels: width of the residual layers.
        num_layers: how many of these.
        context_size: how many numbers the context vector has, 0 for none.

    >>> import torch
    >>> field = MLPVelocity(2, channels=32)
    >>> field(torch.zeros(5, 2), torch.rand(5)).shape
    torch.Size([5, 2])
    """

    def __init__(self, size: int, *, channels: int = 128, num_layers: int = 3, context_size: int = 0):
        super().__init__()
        self.times = TimeFeatures()
        self.uses_context = context_size > 0
        self.context_shape = (context_size,) if context_size else None
        self.network = ResidualMLP(size + self.times.size + context_size, size, channels, num_layers)

    def forward(self, x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        if self.uses_context and context is None:
            raise ValueError("this velocity is conditioned on a vector; pass the flow a context.")
        return self.network(x, self.times(t), context)


class AdaptiveRMSNorm(nn.Module):
    """`RMSNorm` with a gain and a bias from a condition: ``norm(x) * (1 + gain(c)) + bias(c)`` (Peebles & Xie 2023).

    It maps x ``(B, T, channels)`` and a condition ``(B, 1 or T, condition_channels)`` to x's shape. It is made of
    elementary operations, whose derivatives of any order are right; those of `torch.nn.LayerNorm` are not from the
    third on.

    Args:
        channels: of x.
        condition_channels: of the condition.
    """

    def __init__(self, channels: int, condition_channels: int):
        super().__init__()
        self.norm = RMSNorm(channels)
        self.modulation = nn.Linear(condition_channels, 2 * channels)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        gain, bias = self.modulation(condition).chunk(2, dim=-1)
        return self.norm(x) * (1 + gain) + bias


class TransformerVelocity(nn.Module):
    """A velocity network ``v(x, t, context)`` for images and tokens: a transformer without a causal mask.

    Time and context enter by its adaptive norms. The output starts at zero.

    Args:
        event_shape: of x: images ``(C, H, W)``, cut into patches, or any other shape, such as tokens ``(T, C)``, cut in
            raster order into tokens of patch_size numbers; a number is a vector of so many.
        patch_size: height and width of an image's patches, or a number for both; of tokens their number of channels.
        channels: width of the transformer.
        num_layers: how many layers it has.
        head_dim: channels of an attention head; divides channels.
        expansion: hidden channels of the MLP, as a multiple of channels.
        num_classes: where the context holds class labels ``(B,)``, integers, -1 for none: how many classes; else 0.
        context_size: where the context holds vectors: how many numbers they have; else 0.

    Raises:
        ValueError: settings or inputs that do not fit, or a missing context of vectors.

    >>> import torch
    >>> field = TransformerVelocity((1, 4, 4), patch_size=2, channels=16, num_layers=1, head_dim=8, num_classes=3)
    >>> field(torch.zeros(5, 1, 4, 4), torch.rand(5), torch.tensor([0, 1, 2, -1, -1])).shape
    torch.Size([5, 1, 4, 4])
    """

    def __init__(
        self,
        event_shape: Sequence[int] | int,
        *,
        patch_size: int | Sequence[int] = 1,
        channels: int = 128,
        num_layers: int = 4,
        head_dim: int = 32,
        expansion: float = 4,
        num_classes: int = 0,
        context_size: int = 0,
    ):
        super().__init__()
        if num_classes and context_size:
            raise ValueError("a context is class labels (num_classes) or vectors (context_size), not both.")
        event_shape = as_shape(event_shape)
        cut = ImagePatches if len(event_shape) == 3 else VectorPatches
        self.patches = cut(event_shape, patch_size)
        num_tokens, token_size = self.patches.token_shape
        self.embedding: nn.Module | None = None
        self.context_shape: tuple[int, ...] | None = None
        if num_classes:
            self.embedding, self.context_shape = ClassEmbedding(num_classes, channels), ()
        elif context_size:
            self.embedding, self.context_shape = VectorEmbedding(context_size, channels), (context_size,)
        self.uses_context = self.embedding is not None
        times = TimeFeatures()
        self.times = nn.Sequential(times, nn.Linear(times.size, channels), nn.SiLU(), nn.Linear(channels, channels))
        self.proj_in = nn.Linear(token_size, channels)
        self.positions = LearnedPositions(num_tokens, channels)
        norm = partial(AdaptiveRMSNorm, condition_channels=channels)
        self.layers = nn.ModuleList(
            transformer_layers(num_layers, channels, head_dim=head_dim, expansion=expansion, norm=norm)
        )
        self.final_norm = norm(channels)
        self.proj_out = nn.Linear(channels, token_size)
        nn.init.zeros_(self.proj_out.weight)
        nn.init.zeros_(self.proj_out.bias)

    def forward(self, x: Tensor, t: Tensor, context: Any = None) -> Tensor:
        tokens, _ = self.patches(x)
        hidden = self.proj_in(tokens)
        hidden = hidden + self.positions(0, hidden.shape[1])
        condition = self.times(t)[:, None]
        if self.embedding is not None:
            condition = condition + self.embedding(context)
        # A mask of four dimensions stands in place of causality under every backend of attention.
        everywhere = hidden.new_zeros(1, 1, hidden.shape[1], hidden.shape[1])
        step = Step(condition=condition, mask=everywhere)
        for index, layer in enumerate(self.layers):
            hidden = layer(hidden, step, index)
        return self.patches.inverse(self.proj_out(self.final_norm(hidden, condition)))[0]
