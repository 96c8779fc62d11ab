"""One rule for the dtypes of data, at every entry point, and one for tables that were fitted to data."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Self

import numpy as np
import torch
from nflows.transforms import (
    ActNorm,
    BatchNorm,
    CompositeTransform,
    InverseTransform,
    MultiscaleCompositeTransform,
    Transform,
)
from torch import Tensor, nn

# Of nflows, what takes weights of any dtype: containers, and what multiplies number by number.
ANY_DTYPE = (CompositeTransform, InverseTransform, MultiscaleCompositeTransform, ActNorm, BatchNorm)


class Tables(nn.Module):
    """A module that computes its buffers which are not saved, by a formula: no state dict could bring them back.

    So they stay what they are where `to_empty` makes room for weights, and off the meta device; see `table_device`.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        for name in self._non_persistent_buffers_set:
            table, moved = before[name], self._buffers[name]
            if table is not None and moved is not None:
                self._buffers[name] = table if moved.is_meta else table.to(moved)
        return self


class FullPrecisionBuffers(Tables):
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


def as_tensor(values: Any, name: str = "values") -> Tensor:
    """What is, or becomes, a tensor: also what is like an array by `__array__`, such as tables and columns of pandas.

    An array shares its memory with the tensor, which is only to be read. Raises ValueError, which calls the values by
    this name, for an array of other than numbers.
    """
    if isinstance(values, Tensor) or not hasattr(values, "__array__"):
        return torch.as_tensor(values)
    array = np.asarray(values, order="C")  # torch knows no negative strides
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")
            return torch.from_numpy(array)
    except TypeError as error:
        raise ValueError(f"{name} are an array of {array.dtype}; give numbers.") from error


def as_dtype(values: Any, dtype: torch.dtype | None, name: str = "inputs") -> Tensor:
    """Data in the dtype of a model's arithmetic, which is float32 or better.

    Integers, bools and floats in half precision are converted; float32 is widened for a float64 model.

    Args:
        values: what `as_tensor` takes.
        dtype: of the model's weights; None: float32 and float64 stay as they are.
        name: what a message calls the data.

    Raises:
        ValueError: for float64 data and a float32 model, since digits would be lost silently, and for complex numbers.
    """
    values = as_tensor(values, name)
    if dtype is None:
        dtype = values.dtype if values.is_floating_point() else torch.float32
    wanted = torch.promote_types(dtype, torch.float32)
    if values.is_complex() or (values.is_floating_point() and torch.promote_types(values.dtype, wanted) != wanted):
        raise ValueError(
            f"{name} are {dtype_name(values.dtype)} and the flow is {dtype_name(wanted)}: convert one of them, by "
            f'.to({wanted}) (of an array .astype("{dtype_name(wanted)}")) or flow.double().'
        )
    return values.to(wanted)


def widened(values: Tensor) -> Tensor:
    """The same in single precision where they are of half precision."""
    return values.float() if values.is_floating_point() and values.dtype.itemsize < 4 else values


def check_half_precision(transform: nn.Module) -> None:
    """Raise ValueError for a part of nflows with weights in half precision, with which it does not compute.

    Ours keep tokens in single precision around a network in half precision; those of nflows know one dtype.
    """
    for part in transform.modules():
        foreign = isinstance(part, Transform) and type(part).__module__.startswith("nflows.")
        narrow = next((own.dtype for own in part.parameters() if own.dtype.itemsize < 4), None)
        if foreign and narrow is not None and not isinstance(part, ANY_DTYPE):
            raise ValueError(
                f"{type(part).__name__} of nflows does not compute with weights in {narrow}: call flow.float() first."
            )


def dtype_name(dtype: torch.dtype) -> str:
    """As `float32`, without "torch."."""
    return str(dtype).removeprefix("torch.")
