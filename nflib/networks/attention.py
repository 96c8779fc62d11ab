"""Causal self-attention, over a whole sequence or over new tokens that follow a cached prefix."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from nflib.networks.backends import causal_attention, check_backend
from nflib.networks.step import WHOLE_SEQUENCE, Step


class CausalSelfAttention(nn.Module):
    """Multi-head causal self-attention, with grouped-query heads and query/key norms where asked for.

    `forward(x, step, layer)`: x ``(B, L, channels)`` stands at the positions that the step says; with a cache, their
    keys and values are written into it, at this layer, and those before them are read from it.

    Args:
        channels: of inputs and outputs.
        head_dim: channels of each head.
        num_heads: query heads (default: ``channels / head_dim``).
        num_key_value_heads: fewer of them share each key head among several query heads (default: num_heads).
        query_key_norm: makes a norm of ``(B, L, width)``, given the width of all query (or key) heads together
            (default: none).
        rotary: turns queries and keys by their positions (default: none).
        bias: whether both linear maps have one.
        backend: what computes attention, "torch" or "xformers"; `nflib.networks.use_attention_backend` changes it in
            all layers at once.

    Raises:
        ValueError: head_dim does not divide channels where num_heads is not given, query heads cannot share the
            key-value heads evenly, or the backend is unknown.
        ModuleNotFoundError: the backend is not installed.

    >>> CausalSelfAttention(channels=32, head_dim=16)(torch.randn(2, 5, 32)).shape
    torch.Size([2, 5, 32])
    """

    def __init__(
        self,
        channels: int,
        head_dim: int,
        *,
        num_heads: int | None = None,
        num_key_value_heads: int | None = None,
        query_key_norm: Callable[[int], nn.Module] | None = None,
        rotary: nn.Module | None = None,
        bias: bool = True,
        backend: str = "torch",
    ):
        super().__init__()
        if num_heads is None and channels % head_dim:
            raise ValueError(f"channels ({channels}) must be a multiple of head_dim ({head_dim}).")
        self.head_dim = head_dim
        self.num_heads = num_heads or channels // head_dim
        self.num_key_value_heads = num_key_value_heads or self.num_heads
        if self.num_heads % self.num_key_value_heads:
            raise ValueError(
                f"the {self.num_heads} query heads cannot share {self.num_key_value_heads} key-value heads evenly."
            )
        self.qkv = nn.Linear(channels, (self.num_heads + 2 * self.num_key_value_heads) * head_dim, bias=bias)
        self.proj = nn.Linear(self.num_heads * head_dim, channels, bias=bias)
        self.query_norm = query_key_norm and query_key_norm(self.num_heads * head_dim)
        self.key_norm = query_key_norm and query_key_norm(self.num_key_value_heads * head_dim)
        self.rotary = rotary
        self.attention_backend = check_backend(backend)

    def forward(self, x: Tensor, step: Step = WHOLE_SEQUENCE, layer: int = 0) -> Tensor:
        # Few views: at one token a step, each costs as much as its arithmetic.
        count = self.num_heads + 2 * self.num_key_value_heads
        heads = self.qkv(x).view(*x.shape[:2], count, self.head_dim).transpose(1, 2)
        if self.query_norm is None and self.rotary is None:
            query, *key_value = heads[:, : self.num_heads], heads[:, self.num_heads :]
        else:
            query, *key_value = self._placed(heads, step)
        if step.temperature is not None:
            query = query / step.temperature.to(query.dtype)
        if step.cache is not None:
            key_value = [step.cache.write(layer, step.start, *key_value)]
        key, value = key_value if len(key_value) == 2 else key_value[0].chunk(2, dim=1)
        attended = causal_attention(query, key, value, step.mask, self.attention_backend)
        return self.proj(attended.transpose(1, 2).flatten(2))

    def _placed(self, heads: Tensor, step: Step) -> list[Tensor]:
        """Queries, keys and values ``(B, heads, L, head_dim)``, the first two normalised and turned by positions."""
        turned = self.num_heads + self.num_key_value_heads
        counts = [self.num_heads, self.num_key_value_heads]
        query_key, value = heads[:, :turned], heads[:, turned:]
        if self.query_norm is not None and self.key_norm is not None:
            query, key = query_key.split(counts, dim=1)
            query_key = torch.cat([self._normed(query, self.query_norm), self._normed(key, self.key_norm)], dim=1)
        if self.rotary is not None:
            query_key = self.rotary(query_key, step.start)
        query, key = query_key.split(counts, dim=1)
        return [query, key, value]

    def _normed(self, heads: Tensor, norm: nn.Module) -> Tensor:
        return norm(heads.transpose(1, 2).flatten(2)).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)


class HeadwiseNorm(nn.Module):
    """Applies one norm to the channels of each head: ``(B, L, heads * head_dim)``, in groups of head_dim.

    Args:
        norm: normalises ``(..., head_dim)``.
        head_dim: channels of each head.
    """

    def __init__(self, norm: nn.Module, head_dim: int):
        super().__init__()
        self.norm = norm
        self.head_dim = head_dim

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.unflatten(-1, (-1, self.head_dim))).flatten(-2)
