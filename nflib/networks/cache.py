"""The keys and values that decoding keeps: one preallocated block, written in place."""

import torch
from torch import Tensor


class KeyValueCache:
    """Keys and values of all layers, allocated once: ``(layers, 2, batch, heads, length, head_dim)``.

    A cache belongs to one decoding call, which makes it and passes it down; modules keep no reference to it.
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
    ):
        shape = (num_layers, 2, batch_size, num_heads, length, head_dim)
        self.storage = torch.empty(shape, dtype=dtype, device=device)
        self._mask = torch.empty(0, 0, dtype=torch.bool, device=device)

    @property
    def length(self) -> int:
        return self.storage.shape[-2]

    def write(self, layer: int, start: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write keys and values ``(batch, heads, L, head_dim)`` at `start`; return views of all up to there."""
        stop = start + keys.shape[-2]
        all_keys, all_values = self.storage[layer]
        all_keys[..., start:stop, :] = keys
        all_values[..., start:stop, :] = values
        return all_keys[..., :stop, :], all_values[..., :stop, :]

    def mask(self, new: int, total: int) -> Tensor | None:
        """What `causal_mask` gives, made once for all layers and for consecutive sweeps over one window."""
        if self._mask.shape != (new, total):
            mask = causal_mask(new, total, self.storage.device)
            if mask is None:
                return None
            self._mask = mask
        return self._mask


def causal_mask(new: int, total: int, device: torch.device) -> Tensor | None:
    """``(new, total)``, True where the last `new` of `total` tokens may look; None where causality needs no mask.

    It needs none over a whole sequence (new = total), or for one new token.
    """
    if new in (1, total):
        return None
    return torch.ones(new, total, dtype=torch.bool, device=device).tril(total - new)
