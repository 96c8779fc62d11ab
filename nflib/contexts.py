"""Contexts as flows take them: nothing, one tensor, or a tuple of tensors, each with a row for every sample."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nflib.dtypes import as_tensor

Context = Tensor | tuple[Tensor, ...] | None


def map_context(function: Callable[[Tensor], Tensor], context: Any) -> Any:
    """Apply a function to each tensor of a context; None stays None."""
    if context is None:
        return None
    return function(context) if isinstance(context, Tensor) else tuple(function(part) for part in context)


def repeated(context: Any, times: int) -> Any:
    """Repeat each row of a context; copies of a single row share its memory, as conditioners see (`distinct_rows`)."""

    def of(part: Tensor) -> Tensor:
        return part.expand(times, *part.shape[1:]) if len(part) == 1 else part.repeat_interleave(times, 0)

    return map_context(of, context)


def num_rows(context: Any) -> int:
    """How many rows a context has; raises ValueError where its tensors disagree."""
    parts = (context,) if isinstance(context, Tensor) else context
    # Of a graph that is traced, shape keeps the number open where len() and sets would make it a constant.
    rows = [part.shape[0] for part in parts]
    if any(number != rows[0] for number in rows):
        raise ValueError(f"the parts of a context must have as many rows as each other, got {sorted(set(rows))}.")
    return rows[0]


def as_context(context: Any) -> Context:
    """A context with a batch dimension: a number is one row of it. Raises ValueError for what makes no tensor."""
    if context is None:
        return None
    parts = context if isinstance(context, tuple) else (context,)
    try:
        parts = tuple(as_tensor(part) for part in parts)
    except (TypeError, ValueError, RuntimeError) as error:
        kinds = ", ".join(type(part).__name__ for part in parts)
        raise ValueError(f"a context is a tensor or a tuple of tensors, which cannot be made of {kinds}.") from error
    if not parts:
        raise ValueError("a context of no tensors says nothing; leave it out, or pass the tensor.")
    parts = tuple(part.reshape(1) if part.dim() == 0 else part for part in parts)
    return parts if isinstance(context, tuple) else parts[0]


def unconditional_rows(unconditional: Tensor, context: Tensor) -> Tensor:
    """An unconditional context, one row or as many as the context has, in the context's shape and on its device.

    Raises:
        ValueError: it has another shape.
    """
    if unconditional.dim() == context.dim() - 1:
        unconditional = unconditional.unsqueeze(0)
    if unconditional.shape[1:] != context.shape[1:] or unconditional.shape[0] not in (1, context.shape[0]):
        raise ValueError(
            f"the unconditional context has the shape {tuple(unconditional.shape)}, but the context is of "
            f"{tuple(context.shape)}: they must agree, or the first have one row."
        )
    return unconditional.to(context.device).expand(context.shape)


def check_shape(context: Any, shape: tuple[int | None, ...]) -> None:
    """Raise ValueError unless each row of the context has the shape; None stands for any size.

    A sequence ``(length, channels)`` may come as a pair, with a padding mask ``(B, length)`` of bool.
    """
    tokens, *mask = context if isinstance(context, tuple) else (context,)
    fits = tokens.dim() == len(shape) + 1 and all(
        wanted in (None, size) for wanted, size in zip(shape, tokens.shape[1:], strict=True)
    )
    if not fits:
        wanted = ", ".join(["batch", *("any" if size is None else str(size) for size in shape)])
        raise ValueError(f"this flow takes a context of shape ({wanted}), got {tuple(tokens.shape)}.")
    if isinstance(context, tuple) and (
        len(shape) != 2 or len(mask) != 1 or mask[0].dtype != torch.bool or mask[0].shape != tokens.shape[:2]
    ):
        raise ValueError(
            "beside tokens (batch, length, channels) a context takes one padding mask (batch, length) of bool, True at "
            "padding; pass (tokens, mask)."
        )
