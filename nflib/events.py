"""Batches of events of any shape."""

from __future__ import annotations

from torch import Tensor


def flattened(x: Tensor) -> Tensor:
    """``(n, *event_shape)`` as ``(n, numbers of the event)``, of a scalar event ``(n, 1)``; n may be 0."""
    return x[:, None].flatten(1)
