"""What computes attention: torch's own kernels, or those of xformers, with the same results."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from nflib.networks.cache import causal_mask

BACKENDS = ("auto", "torch", "xformers")
_backend: ContextVar[str] = ContextVar("nflib_attention_backend", default="auto")


@contextmanager
def attention_backend(name: str) -> Iterator[None]:
    """Within the block, and in this thread alone, attention is computed by `name`: "auto", "torch" or "xformers".

    "auto" takes xformers for a window over a cached prefix, on CUDA, where it is installed, and torch for the rest, and
    for float64, which xformers does not know. Raises ValueError for another name, ModuleNotFoundError where xformers is
    asked for and not installed.

    >>> from nflib import networks
    >>> with networks.attention_backend("torch"):
    ...     pass  # x = flow.sample(5)
    """
    if name not in BACKENDS:
        raise ValueError(f"an attention backend must be one of {', '.join(BACKENDS)}, got {name!r}.")
    if name == "xformers" and not _has_xformers():
        raise ModuleNotFoundError('xformers is not installed; install it with pip install "nflib[gpu]".')
    token = _backend.set(name)
    try:
        yield
    finally:
        _backend.reset(token)


def causal_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attention in which the last query sees every key, the one before all but the last, and so on: ``(B, H, L, d)``.

    query ``(B, H, L, d)``, key and value ``(B, H or a divisor of it, S, d)`` with S ≥ L. No mask tensor is made where
    causality alone says it: a whole sequence (L = S), or one new token (L = 1). Elsewhere `mask` is used, if given,
    for what `causal_mask` would make.
    """
    new, total = query.shape[-2], key.shape[-2]
    # torch.compile cannot look into a context variable; what it makes of its own attention is the one it knows.
    backend = "torch" if torch.compiler.is_compiling() else _backend.get()
    is_window = query.is_cuda and query.dtype != torch.float64 and new not in (1, total)
    if (backend == "xformers" or (backend == "auto" and is_window)) and _has_xformers():
        return _xformers_attention(query, key, value)
    if new == total:
        grouped = query.shape[1] != key.shape[1]
        return scaled_dot_product_attention(query, key, value, is_causal=new > 1, enable_gqa=grouped)
    if new > 1 and mask is None:
        mask = causal_mask(new, total, query)
    if query.shape[1] == key.shape[1]:
        return scaled_dot_product_attention(query, key, value, attn_mask=mask)
    # The query heads that share a key head become more queries of that head: no key is repeated.
    shared = query.unflatten(1, (key.shape[1], -1)).flatten(2, 3)
    mask = None if mask is None else mask.repeat(query.shape[1] // key.shape[1], 1)
    return scaled_dot_product_attention(shared, key, value, attn_mask=mask).reshape(query.shape)


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
