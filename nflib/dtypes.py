"""One rule for the dtypes of data, at every entry point, and one for tables that were fitted to data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn


class FullPrecisionBuffers(nn.Module):
    """A module whose own buffers stay in single precision or better when its weights go to half precision.

    Rounded there, tables that were fitted to data, or made by a formula, would be those of another map.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, buffer in self._buffers.items():
            if buffer is not None and buffer.is_floating_point() and buffer.dtype.itemsize < 4:
                self._buffers[name] = before[name].to(buffer.device)  # type: ignore[union-attr]
        return self


def as_dtype(values: Any, dtype: torch.dtype | None, name: str = "inputs") -> Tensor:
    """Data in the dtype of a model's arithmetic, which is float32 or better.

    Integers, bools and floats in half precision are converted; float32 is widened for a float64 model.

    Args:
        values: a tensor, or what `torch.as_tensor` takes.
        dtype: of the model's weights; None: floating-point data stay as they are.
        name: what a message calls the data.

    Raises:
        ValueError: for float64 data and a float32 model, since digits would be lost silently, and for complex numbers.
    """
    values = torch.as_tensor(values)
    if dtype is None:
        return values
    wanted = torch.promote_types(dtype, torch.float32)
    if values.is_complex() or (values.is_floating_point() and torch.promote_types(values.dtype, wanted) != wanted):
        raise ValueError(
            f"{name} are {_name(values.dtype)} and the flow is {_name(wanted)}: convert one of them, by "
            f".to({wanted}) or flow.double()."
        )
    return values.to(wanted)


def widened(values: Tensor) -> Tensor:
    """The same in single precision where they are of half precision."""
    return values.float() if values.is_floating_point() and values.dtype.itemsize < 4 else values


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
