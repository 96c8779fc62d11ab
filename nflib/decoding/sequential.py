"""Token-by-token inversion with a preallocated key-value cache: exact, T steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from nflib.transforms.autoregressive import AutoregressiveTransform


class Sequential:
    """Solves ``u_t = shift_t(u_<t) + scale_t(u_<t) z_t`` for one token after the other.

    Called with the transform, z ``(B, T, C)`` and the context; returns u and ``sum log scale`` ``(B,)``. Every token
    passes through the network once; the cache lives for this call alone. No
    gradient flows through the result.
    """

    @torch.no_grad()
    def __call__(
        self, transform: AutoregressiveTransform, noise: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        network = transform.network
        batch_size, num_tokens, _ = noise.shape
        embedded = network.embed(context)
        device_type = noise.device.type
        compute_dtype = (
            torch.get_autocast_dtype(device_type)
            if torch.is_autocast_enabled(device_type)
            else network.proj_in.weight.dtype
        )
        cache = network.new_cache(batch_size, num_tokens, dtype=compute_dtype, device=noise.device)
        tokens: list[Tensor] = []
        logabsdet = torch.zeros(batch_size, dtype=torch.promote_types(noise.dtype, torch.float32), device=noise.device)
        previous = noise[:, :0]
        for t in range(num_tokens):
            parameters = network.extend(previous, t, cache, embedded)
            shift, log_scale = transform.shift_and_log_scale(parameters)
            previous = shift + noise[:, t : t + 1] * torch.exp(log_scale)
            tokens.append(previous)
            logabsdet = logabsdet + log_scale.flatten(1).sum(-1)
        return torch.cat(tokens, dim=1), logabsdet
