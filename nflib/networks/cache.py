"""The keys and values that decoding keeps: one preallocated block, written in place."""

import math

import torch
from torch import Tensor


class KeyValueCache:
    """Keys and values of all layers, allocated once: ``(layers, batch, 2 heads, length, head_dim)``, keys first.

    A cache belongs to one decoding call, which makes it and passes it down; modules keep no reference to it.

    Args:
        num_layers: layers of the transformer.
        batch_size: samples decoded at once.
        num_heads: key-value heads of a layer.
        length: tokens that it holds.
        head_dim: channels of each head.
        dtype: of keys and values.
        device: of keys and values.
        memory: what a network's `TokenFeatures` keep beside them, if it has any.
    """

    def __init__(
        self,
        num_layers: int,
        batch_size: int,
        num_heads: int,
        length: int,
        head_dim: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
        memory: Tensor | None = None,
    ):
        shape = (num_layers, batch_size, 2 * num_heads, length, head_dim)
        self.storage = torch.empty(shape, dtype=dtype, device=device)
        self.memory = memory
        self._mask = torch.empty(0, 0, dtype=dtype, device=device)

    @property
    def length(self) -> int:
        """How many tokens it holds."""
        return self.storage.shape[-2]

    @property
    def dtype(self) -> torch.dtype:
        """Of keys and values."""
        return self.storage.dtype

    def write(self, layer: int, start: int, *key_value: Tensor) -> Tensor:
        """Write keys and values of L tokens; return a view of all up to the last of them.

        Args:
            layer: number of the layer.
            start: position of the first of these tokens.
            key_value: one tensor ``(batch, 2 heads, L, head_dim)``, keys first; or the keys and then the values.
        """
        stop = start + key_value[0].shape[-2]
        stored = self.storage[layer]
        first = 0
        for part in key_value:
            stored[:, first : first + part.shape[1], start:stop] = part
            first += part.shape[1]
        return stored[:, :, :stop]

    def mask(self, new: int, total: int) -> Tensor | None:
        """`causal_mask` for the last `new` of `total` tokens, made once for consecutive sweeps over one window."""
        if self._mask.shape != (new, total):
            mask = causal_mask(new, total, self.storage)
            if mask is None:
                return None
            self._mask = mask
        return self._mask


def causal_mask(new: int, total: int, like: Tensor) -> Tensor | None:
    """``(new, total)``, 0 where the last `new` of `total` tokens may look, else -inf; None where no mask is needed.

    It is needed neither over a whole sequence (new = total), nor for one new token. Dtype and device are those of
    `like`: attention adds the mask to its scores, and would make this of a boolean one in every layer.
    """
    if new in (1, total):
        return None
    return torch.full((new, total), -math.inf, dtype=like.dtype, device=like.device).triu(total - new + 1)


def padded_causal_mask(new: int, total: int, valid: Tensor, like: Tensor) -> Tensor:
    """``(B, 1, new, total)``: as `causal_mask`, and -inf at the tokens of the prefix that are padding.

    valid: ``(B, P)``, which of the first P tokens are no padding. Every token sees itself, padding too: its own values
    are finite, and nobody reads them.
    """
    rows = torch.arange(total - new, total, device=like.device).unsqueeze(-1)
    columns = torch.arange(total, device=like.device)
    visible = _extended(valid, total) & (columns <= rows) | (columns == rows)
    return (
        torch.zeros(visible.shape, dtype=like.dtype, device=like.device).masked_fill(~visible, -math.inf).unsqueeze(1)
    )


def _extended(valid: Tensor, total: int) -> Tensor:
    """``(B, 1, total)``: True beyond the prefix."""
    return torch.nn.functional.pad(valid[:, :total], (0, max(total - valid.shape[1], 0)), value=True).unsqueeze(1)
