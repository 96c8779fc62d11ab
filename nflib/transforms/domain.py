"""Where transforms are defined: those of nflows refuse a batch for a single row outside, and do not say which."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from operator import itemgetter
from typing import Any

import torch
from nflows.transforms import InputOutsideDomain, InverseTransform
from torch import Tensor

from nflib.contexts import map_context
from nflib.inference import is_traced


class OutsideDomain(InputOutsideDomain, ValueError):
    """Inputs are outside the domain of a transform; the message says which is the first.

    Args:
        message: the sentence.
        inside: which rows of the batch are in it, ``(B,)``.
    """

    def __init__(self, message: str, inside: Tensor) -> None:
        super().__init__(message)
        self.inside = inside


def within_domain(transform: Any, inputs: Tensor, context: Any = None, *, inverse: bool = False) -> Any:
    """What a transform, or its inverse, makes of inputs ``(B, ...)``.

    Raises `OutsideDomain`, a ValueError, with the first row that is outside its domain and the name of the transform.
    """
    function = transform.inverse if inverse else transform
    if is_traced():
        return function(inputs, context)
    try:
        return function(inputs, context)
    except OutsideDomain:
        raise
    except InputOutsideDomain as error:
        rows = torch.arange(len(inputs), device=inputs.device)
        inside = rows_inside(lambda some: function(inputs[some], map_context(itemgetter(some), context)), rows)
        row = int((~inside).nonzero()[0])
        raise OutsideDomain(
            f"sample {row} of the batch, of values {inputs[row].min():g} to {inputs[row].max():g}, is outside the "
            f"domain of {_name(transform, inverse)}; drop such samples, or map them into it first.",
            inside,
        ) from error


@torch.no_grad()
def rows_inside(function: Callable[[Tensor], Any], x: Tensor) -> Tensor:
    """Which rows ``(n,)`` of x a function takes that raises `InputOutsideDomain` for a batch with others.

    By halves, unless the error tells.
    """
    try:
        function(x)
        return torch.ones(len(x), dtype=torch.bool, device=x.device)
    except InputOutsideDomain as error:
        told = getattr(error, "inside", None)
    if len(x) == 1:
        return torch.zeros(1, dtype=torch.bool, device=x.device)
    if told is not None and len(told) == len(x):
        told = told.to(x.device)
        # The rest may be outside another part's, or the function may have had the rows in another order.
        with suppress(InputOutsideDomain):
            if told.any():
                function(x[told])
            return told
    return torch.cat([rows_inside(function, half) for half in x.chunk(2)])


def _name(transform: Any, inverse: bool) -> str:
    if type(transform) is InverseTransform:
        return _name(transform._transform, not inverse)
    return f"{'the inverse of ' * inverse}{type(transform).__name__}"
