"""Batches of events of any shape."""

from __future__ import annotations

from torch import Tensor


def flattened(x: Tensor) -> Tensor:
    """``(n, *event_shape)`` as ``(n, numbers of the event)``, of a scalar event ``(n, 1)``; n may be 0."""
    return x[:, None].flatten(1)


def per_row(values: Tensor, x: Tensor) -> Tensor:
    """``(n,)`` as ``(n, 1, …)``, with as many dimensions as x: one number for each of its events."""
    return values.reshape(-1, *[1] * (x.dim() - 1))
