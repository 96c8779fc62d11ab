"""Causal self-attention, over a whole sequence or over new tokens that follow a cached prefix."""

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from nflib.networks.cache import KeyValueCache
from nflib.networks.norms import RMSNorm


class CausalSelfAttention(nn.Module):
    """Multi-head causal self-attention, with grouped-query heads and query/key norm where asked for.

    x ``(B, L, channels)``. With a cache, the L tokens stand at positions ``start … start + L`` of a sequence whose
    earlier keys and values the cache holds; theirs are written into it. `num_key_value_heads` < heads shares each key
    head among several query heads. `rotary` turns queries and keys by their positions.
    """

    def __init__(
        self,
        channels: int,
        head_dim: int,
        *,
        num_key_value_heads: int | None = None,
        query_key_norm: bool = False,
        rotary: nn.Module | None = None,
        bias: bool = True,
    ):
        super().__init__()
        if channels % head_dim:
            raise ValueError(f"channels ({channels}) must be a multiple of head_dim ({head_dim}).")
        self.head_dim = head_dim
        self.num_heads = channels // head_dim
        self.num_key_value_heads = num_key_value_heads or self.num_heads
        if self.num_heads % self.num_key_value_heads:
            raise ValueError(
                f"the {self.num_heads} query heads cannot share {self.num_key_value_heads} key-value heads evenly."
            )
        self.grouped = self.num_key_value_heads != self.num_heads
        self.qkv = nn.Linear(channels, (self.num_heads + 2 * self.num_key_value_heads) * head_dim, bias=bias)
        self.proj = nn.Linear(channels, channels, bias=bias)
        self.query_norm = RMSNorm(head_dim) if query_key_norm else nn.Identity()
        self.key_norm = RMSNorm(head_dim) if query_key_norm else nn.Identity()
        self.rotary = rotary

    def forward(self, x: Tensor, cache: KeyValueCache | None = None, layer: int = 0, start: int = 0) -> Tensor:
        batch, length, _ = x.shape
        heads = self.qkv(x).view(batch, length, -1, self.head_dim).transpose(1, 2)
        query, key, value = heads.split([self.num_heads, self.num_key_value_heads, self.num_key_value_heads], dim=1)
        query, key = self.query_norm(query), self.key_norm(key)
        if self.rotary is not None:
            query, key = self.rotary(query, start), self.rotary(key, start)
        if cache is not None:
            key, value = cache.write(layer, start, key, value)
        out = causal_attention(query, key, value, grouped=self.grouped)
        return self.proj(out.transpose(1, 2).reshape(batch, length, -1))


def causal_attention(query: Tensor, key: Tensor, value: Tensor, *, grouped: bool = False) -> Tensor:
    """Attention in which the last query sees every key, the one before all but the last, and so on.

    query ``(B, H, L, d)``, key and value ``(B, H or fewer, S, d)`` with S ≥ L. No mask tensor is made where causality
    alone says it: a whole sequence (L = S), or one new token (L = 1).
    """
    new, total = query.shape[-2], key.shape[-2]
    if new == 1:
        return scaled_dot_product_attention(query, key, value, enable_gqa=grouped)
    if new == total and query.device.type == "cpu" and query.dtype == torch.bfloat16 and not grouped:
        return blocked_causal_attention(query, key, value)
    if new == total:
        return scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=grouped)
    mask = torch.ones(new, total, dtype=torch.bool, device=query.device).tril(total - new)
    return scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=grouped)


def blocked_causal_attention(query: Tensor, key: Tensor, value: Tensor, block_size: int = 64) -> Tensor:
    """Causal attention of a whole sequence, ``(B, H, L, d)`` each, by plain products of blocks of queries.

    On a CPU, torch's fused kernel is slower in bfloat16 than in float32, and these products are twice as fast
    (benchmarks/likelihood.py). Keys behind a block are not touched, so half of the square is saved as there.
    """
    batch, heads, length, head_dim = query.shape
    query = (query * head_dim**-0.5).flatten(0, 1)
    key, value = key.flatten(0, 1).mT, value.flatten(0, 1)
    hidden = torch.ones(block_size, block_size, dtype=torch.bool, device=query.device).triu(1)
    outputs = []
    for start in range(0, length, block_size):
        stop = min(start + block_size, length)
        scores = query[:, start:stop] @ key[..., :stop]
        scores[..., start:].masked_fill_(hidden[: stop - start, : stop - start], float("-inf"))
        outputs.append(scores.softmax(-1) @ value[:, :stop])
    return torch.cat(outputs, dim=1).unflatten(0, (batch, heads))
