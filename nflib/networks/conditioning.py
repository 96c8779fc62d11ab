"""What conditions a transformer: embeddings of a context, added to its tokens or handed to its layers."""

import math

import torch
from torch import Tensor, nn


class ClassEmbedding(nn.Module):
    """A learned vector for each class, added to every token; a label of -1, or none, means their mean.

    context: integer labels ``(B,)``; returns ``(B, 1, channels)``. Raises ValueError for a label outside
    ``-1 … num_classes - 1``.
    """

    def __init__(self, num_classes: int, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(num_classes, channels) * 1e-2)

    def forward(self, context: Tensor | None) -> Tensor:
        unconditional = self.weight.mean(dim=0)
        if context is None:
            return unconditional.view(1, 1, -1)
        labels = context.reshape(-1).long()
        if labels.numel() and not -1 <= int(labels.min()) <= int(labels.max()) < len(self.weight):
            raise ValueError(
                f"class labels must lie in 0 … {len(self.weight) - 1}, or be -1 for none, but run from "
                f"{int(labels.min())} to {int(labels.max())}."
            )
        embedded = self.weight[labels.clamp_min(0)]
        return torch.where((labels < 0).unsqueeze(-1), unconditional, embedded).unsqueeze(1)


class SinusoidalEmbedding(nn.Module):
    """Sines and cosines of numbers, interleaved, at the rates ``base^(-2i / channels)``: ``(…) -> (…, channels)``.

    Integers, too. Raises ValueError for an odd number of channels.
    """

    rates: Tensor

    def __init__(self, channels: int, base: float = 10_000.0):
        super().__init__()
        if channels % 2:
            raise ValueError(f"a sinusoidal embedding needs an even number of channels, got {channels}.")
        rates = torch.exp(torch.arange(0, channels, 2) * (-math.log(base) / channels))
        self.register_buffer("rates", rates, persistent=False)

    def forward(self, numbers: Tensor) -> Tensor:
        phase = numbers.unsqueeze(-1) * self.rates
        return torch.stack([phase.sin(), phase.cos()], dim=-1).flatten(-2)


class Lookahead(nn.Module):
    """What a token is conditioned on: its own features and those of the token that follows, through an MLP.

    The parameters read off token t are those of token t + 1, which so knows what it is about to be. Features
    ``(B, T, feature_channels)`` in the order of visit -> conditions ``(B, T, channels)``; after the last token
    stands zero.
    """

    def __init__(self, feature_channels: int, channels: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(2 * feature_channels, channels), nn.GELU(), nn.Linear(channels, channels))

    def forward(self, features: Tensor) -> Tensor:
        following = nn.functional.pad(features[:, 1:], (0, 0, 0, 1))
        return self.mlp(torch.cat([features, following], dim=-1))


def distinct_rows(context: Tensor) -> Tensor:
    """The one row of a context that was expanded from one (its rows are one memory), else the context.

    What a network computes from it then broadcasts: many samples of one condition cost its conditioner one row.
    """
    return context[:1] if len(context) > 1 and context.stride(0) == 0 else context
