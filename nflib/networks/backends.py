"""Backends that compute attention: torch's own kernels, or those of xformers, with the same results."""

from __future__ import annotations

import importlib.util
import math
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from nflib.networks.cache import causal_mask
from nflib.networks.kernels import differentiable

BACKENDS = ("torch", "xformers")


def check_backend(name: str) -> str:
    """The name, if it is that of a backend; raises ValueError, or ModuleNotFoundError where it is not installed."""
    if name not in BACKENDS:
        raise ValueError(f"an attention backend must be one of {', '.join(BACKENDS)}, got {name!r}.")
    if name == "xformers" and not _has_xformers():
        raise ModuleNotFoundError('xformers is not installed; install it with pip install "nflib[gpu]".')
    return name


def use_attention_backend(module: nn.Module, name: str) -> None:
    """Choose which library computes the attention in all layers of a module.

    Args:
        module: such as a flow.
        name: "torch" (what new modules use) or "xformers".

    Raises:
        ValueError: the name is unknown.
        ModuleNotFoundError: xformers is not installed.

    >>> from nflib import flows, networks
    >>> flow = flows.TARFlow(event_shape=(6,), channels=32, num_blocks=2, head_dim=16)
    >>> networks.use_attention_backend(flow, "torch")
    """
    check_backend(name)
    for part in module.modules():
        if hasattr(part, "attention_backend"):
            setattr(part, "attention_backend", name)  # noqa: B010


def causal_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, backend: str = "torch"
) -> Tensor:
    """Attention in which the last query sees every key, the one before all but the last, and so on: ``(B, H, L, d)``.

    query ``(B, H, L, d)``, key and value ``(B, H or a divisor of it, S, d)`` with S ≥ L. mask: added to the scores in
    place of causality, ``(L, S)`` or ``(B, 1, L, S)``, what `causal_mask` makes or one that also hides padding. Without
    one no mask tensor is made where causality alone says it: a whole sequence (L = S), or one new token (L = 1).
    backend: "xformers" for what it knows: no padding, no float64.
    """
    if backend == "xformers" and query.dtype != torch.float64 and (mask is None or mask.dim() == 2):
        return _xformers_attention(query, key, value)
    if value.dtype == torch.bfloat16 and value.device.type == "cpu":
        # There, the gradient of torch's kernel takes five times as long in bfloat16 as in single precision; without one
        # the values should be the same.
        with torch.autocast("cpu", enabled=False):
            mask = None if mask is None else mask.float()
            return causal_attention(query.float(), key.float(), value.float(), mask).to(value.dtype)
    if mask is None:
        mask = causal_mask(query.shape[-2], key.shape[-2], query)
    # torch's kernels have no second derivative.
    return differentiable(_torch_attention, _explicit_attention, query, key, value, mask)


def _torch_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    new, heads, groups = query.shape[-2], query.shape[1], key.shape[1]
    if mask is None and new > 1:
        return scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=heads != groups)
    if heads == groups:
        return scaled_dot_product_attention(query, key, value, attn_mask=mask)
    # The query heads that share a key head become more queries of that head: no key is repeated.
    shared = query.unflatten(1, (groups, -1)).flatten(2, 3)
    mask = None if mask is None else mask.repeat(*[1] * (mask.dim() - 2), heads // groups, 1)
    return scaled_dot_product_attention(shared, key, value, attn_mask=mask).reshape(query.shape)


def _explicit_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """The same written out, which can be differentiated any number of times."""
    new, total, groups = query.shape[-2], key.shape[-2], key.shape[1]
    if mask is None and new > 1:
        mask = torch.full((new, total), -math.inf, dtype=query.dtype, device=query.device).triu(total - new + 1)
    grouped, key = query.to(value.dtype).unflatten(1, (groups, -1)), key.to(value.dtype)
    scores = grouped @ key.unsqueeze(2).transpose(-1, -2) / math.sqrt(query.shape[-1])
    if mask is not None:
        scores = scores + (mask if mask.dim() == 2 else mask.unsqueeze(2))
    return (scores.softmax(-1) @ value.unsqueeze(2)).flatten(1, 2)


def _xformers_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    from xformers import ops
    from xformers.ops.fmha.attn_bias import LowerTriangularFromBottomRightMask

    # Autocast knows nothing of their kernels, which take one dtype for all three.
    query, key = query.to(value.dtype), key.to(value.dtype)
    heads, groups = query.shape[1], key.shape[1]
    # Their layout: (B, L, groups, heads of a group, d); shared keys are expanded, which moves no memory.
    query = query.unflatten(1, (groups, -1)).permute(0, 3, 1, 2, 4)
    key, value = (
        part.permute(0, 2, 1, 3).unsqueeze(3).expand(-1, -1, -1, heads // groups, -1) for part in (key, value)
    )
    if heads == groups:
        query, key, value = query.squeeze(3), key.squeeze(3), value.squeeze(3)
    attended = ops.memory_efficient_attention(query, key, value, attn_bias=LowerTriangularFromBottomRightMask())
    return attended.flatten(2, -2).transpose(1, 2)


@cache
def _has_xformers() -> bool:
    return importlib.util.find_spec("xformers") is not None
