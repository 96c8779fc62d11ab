"""Causal self-attention, over a whole sequence or over new tokens that follow a cached prefix."""

from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from nflib.networks.cache import KeyValueCache, causal_mask
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
        mask = None
        if cache is not None:
            key, value = cache.write(layer, start, key, value)
            mask = cache.mask(length, key.shape[-2])
        out = causal_attention(query, key, value, mask, grouped=self.grouped)
        return self.proj(out.transpose(1, 2).reshape(batch, length, -1))


def causal_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, *, grouped: bool = False
) -> Tensor:
    """Attention in which the last query sees every key, the one before all but the last, and so on.

    query ``(B, H, L, d)``, key and value ``(B, H or fewer, S, d)`` with S ≥ L. No mask tensor is made where causality
    alone says it: a whole sequence (L = S), or one new token (L = 1). Elsewhere `mask` is used, if given, for what
    `causal_mask` would make.
    """
    new, total = query.shape[-2], key.shape[-2]
    if new not in (1, total):
        mask = causal_mask(new, total, query.device) if mask is None else mask
        return scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=grouped)
    return scaled_dot_product_attention(query, key, value, is_causal=new > 1, enable_gqa=grouped)
