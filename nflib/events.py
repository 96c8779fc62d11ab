"""Batches of events of any shape."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from numbers import Integral

from torch import Tensor


def as_shape(event_shape: Sequence[int] | int) -> tuple[int, ...]:
    """The shape of an event as a tuple; a number D stands for ``(D,)``. Raises ValueError unless sizes are positive."""
    sizes = tuple(event_shape) if isinstance(event_shape, Iterable) else (event_shape,)
    if not all(isinstance(size, Integral) and size is not True and size >= 1 for size in sizes):
        raise ValueError(f"event_shape must list positive sizes, got {event_shape!r}.")
    return tuple(map(int, sizes))


def flattened(x: Tensor) -> Tensor:
    """``(n, *event_shape)`` as ``(n, numbers of the event)``, of a scalar event ``(n, 1)``; n may be 0."""
    return x[:, None].flatten(1)


def finite_rows(x: Tensor) -> Tensor:
    """Which events hold finite numbers only, ``(n,)``; several times faster than isfinite and all."""
    return flattened(0.0 * x).sum(dim=1) == 0.0


def per_row(values: Tensor, x: Tensor) -> Tensor:
    """``(n,)`` as ``(n, 1, …)``, with as many dimensions as x: one number for each of its events."""
    return values.reshape(-1, *[1] * (x.dim() - 1))


def check_event_shape(x: Tensor, event_shape: Sequence[int], name: str = "") -> None:
    """Raise ValueError unless x is a batch ``(n, *event_shape)``; the message begins with `name`, if there is one."""
    if tuple(x.shape[1:]) != tuple(event_shape):
        raise ValueError(
            f"{name and f'{name}: '}expected inputs of shape (batch, {', '.join(map(str, event_shape))}), got "
            f"{tuple(x.shape)}."
        )
