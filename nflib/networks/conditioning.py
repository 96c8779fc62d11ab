"""Modules by which a context conditions a transformer: added to tokens, read before them, or given to its layers."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nflib.dtypes import as_dtype
from nflib.inference import is_traced
from nflib.networks.norms import LayerNorm
from nflib.networks.positions import LearnedPositions, SinusoidalEmbedding


class ClassEmbedding(nn.Module):
    """A learned vector for each class, added to every token; for a label of -1, or none, their mean.

    Called with integer labels ``(B,)``; gives ``(B, 1, channels)``.

    Args:
        num_classes: number of classes.
        channels: size of the vectors.

    Raises:
        ValueError: labels are no integers, or lie outside ``-1 … num_classes - 1``.
    """

    decays = False  # vectors, which `nflib.training.fit` does not decay

    def __init__(self, num_classes: int, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(num_classes, channels) * 1e-2)

    def forward(self, context: Tensor | None) -> Tensor:
        unconditional = self.weight.mean(dim=0)
        if context is None:
            return unconditional.view(1, 1, -1)
        if context.is_floating_point() or context.is_complex() or context.dtype == torch.bool:
            raise ValueError(f"class labels are integers, or -1 for none, got a context of {context.dtype}.")
        labels = context.reshape(-1).long()
        if labels.numel() and not is_traced():
            lowest, highest = int(labels.min()), int(labels.max())
            if lowest < -1 or highest >= len(self.weight):
                raise ValueError(
                    f"class labels must lie in 0 … {len(self.weight) - 1}, or be -1 for none, but run from {lowest} to "
                    f"{highest}."
                )
        embedded = self.weight[labels.clamp_min(0)]
        return torch.where((labels < 0).unsqueeze(-1), unconditional, embedded).unsqueeze(1)


class VectorEmbedding(nn.Module):
    """Embeds a context vector ``(B, size)`` by a small MLP and a norm, added to every token: ``(B, 1, channels)``.

    The norm makes it as large as the embedded tokens are, so that it is not lost to them in the norms that follow, and
    bounds what outliers of the context can do.

    Args:
        size: of the context vector.
        channels: size of the embedding.

    Raises:
        ValueError: there is no context.
    """

    def __init__(self, size: int, channels: int):
        super().__init__()
        self.up = nn.Linear(size, channels)
        self.down = nn.Linear(channels, channels)
        self.norm = LayerNorm(channels)

    def forward(self, context: Tensor | None) -> Tensor:
        if context is None:
            raise ValueError(
                f"this flow is conditioned on a vector of {self.up.in_features} numbers; pass it one, or use given()."
            )
        hidden = nn.functional.gelu(self.up(_as_dtype_of(self.up.weight, context)))
        return self.norm(self.down(hidden)).unsqueeze(1)


class TokenPrefix(nn.Module):
    """Embeds context tokens ``(B, L, size)``, L of any size, as a prefix that all tokens see: ``(B, L, channels)``.

    They get sinusoidal positions. The context may be a pair of tokens and their padding mask ``(B, L)``, True at
    padding; `valid` gives the opposite of it. Whatever stands at padding, NaN too, changes nothing.

    Args:
        size: numbers of each context token.
        channels: size of their embeddings, even.
    """

    def __init__(self, size: int, channels: int):
        super().__init__()
        self.projection = nn.Linear(size, channels)
        self.positions = SinusoidalEmbedding(channels)

    def forward(self, context: Tensor | tuple[Tensor, Tensor]) -> Tensor:
        tokens, mask = (context, None) if isinstance(context, Tensor) else context
        tokens = _as_dtype_of(self.projection.weight, tokens)
        if mask is not None:
            tokens = tokens.masked_fill(mask.bool().unsqueeze(-1), 0.0)
        places = torch.arange(tokens.shape[1], device=tokens.device)
        return self.projection(tokens) + self.positions(places)

    def valid(self, context: Any) -> Tensor | None:
        """Which tokens are no padding, ``(B, L)``; None where there is no padding mask."""
        return None if isinstance(context, Tensor) else ~context[1].bool()


class ImagePrefix(nn.Module):
    """Embeds a context image ``(B, C, H, W)``, by patches, as a prefix that all tokens see: ``(B, patches, channels)``.

    Args:
        shape: ``(C, H, W)``.
        patch_size: side of the square patches; divides H and W.
        channels: size of the patches' embeddings.

    Raises:
        ValueError: patch_size does not divide H and W.
    """

    def __init__(self, shape: Sequence[int], patch_size: int, channels: int):
        super().__init__()
        num_channels, height, width = shape
        if patch_size < 1 or height % patch_size or width % patch_size:
            raise ValueError(
                f"context_patch_size {patch_size} must divide the context's height and width, {tuple(shape)}."
            )
        self.projection = nn.Conv2d(num_channels, channels, patch_size, patch_size)
        self.positions = LearnedPositions(height * width // patch_size**2, channels)

    def forward(self, context: Tensor) -> Tensor:
        patches = self.projection(_as_dtype_of(self.projection.weight, context)).flatten(2).transpose(1, 2)
        return patches + self.positions(0, patches.shape[1])


class Lookahead(nn.Module):
    """Condition of each token: its own features and those of the token that follows, through an MLP.

    The parameters read off token t are those of token t + 1, so that the network knows which token it is to map. Maps
    features ``(B, T, feature_channels)``, in the order of visit, to conditions ``(B, T, channels)``; after the last
    token stands zero.

    Args:
        feature_channels: of the features.
        channels: of the conditions.
    """

    def __init__(self, feature_channels: int, channels: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(2 * feature_channels, channels), nn.GELU(), nn.Linear(channels, channels))

    def forward(self, features: Tensor) -> Tensor:
        following = nn.functional.pad(features[:, 1:], (0, 0, 0, 1))
        return self.mlp(torch.cat([features, following], dim=-1))


def _as_dtype_of(weight: Tensor, context: Tensor) -> Tensor:
    return as_dtype(context, weight.dtype, "contexts").to(weight.dtype)


def distinct_rows(context: Tensor) -> Tensor:
    """The one row of a context that was expanded from one (its rows are one memory), else the context.

    What a network computes from it then broadcasts: many samples of one condition cost its conditioner one row.
    """
    return context[:1] if len(context) > 1 and context.stride(0) == 0 else context
