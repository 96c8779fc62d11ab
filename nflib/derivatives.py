"""Jacobians of functions that treat each row by itself."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from nflib.events import flattened

__all__ = ["as_leaf", "jacobian", "value_and_trace"]


def as_leaf(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, bool]:
    """x as something to differentiate the function by, and whether the derivative needs a graph of its own.

    It does where gradients are enabled and x or anything that the function depends on requires one.
    """
    graph = torch.is_grad_enabled() and (x.requires_grad or function(x).requires_grad)
    return (x if graph and x.requires_grad else x.detach().requires_grad_()), graph


def jacobian(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """``y = function(x)`` and ``dy/dx`` ``(B, D, D)`` of a function that treats each row by itself; differentiable.

    By one backward pass a dimension, which any module allows.
    """
    leaf, create_graph = as_leaf(function, x)
    with torch.enable_grad():
        y = function(leaf)
        flat = flattened(y)
        rows = []
        for index in range(flat.shape[1]):
            (row,) = torch.autograd.grad(
                flat[:, index].sum(), leaf, retain_graph=True, create_graph=create_graph, materialize_grads=True
            )
            rows.append(flattened(row))
    matrix = torch.stack(rows, dim=1)
    return (y, matrix) if create_graph else (y.detach(), matrix.detach())


def value_and_trace(function: Callable[[Tensor], Tensor], x: Tensor, probes: Tensor | None) -> tuple[Tensor, Tensor]:
    """``function(x)`` and the trace of its Jacobian ``(B,)``, or Hutchinson's estimate of it by probes ``(P, D)``."""
    if probes is None:
        y, matrix = jacobian(function, x)
        return y, matrix.diagonal(dim1=1, dim2=2).sum(1)
    leaf, graph = as_leaf(function, x)
    with torch.enable_grad():
        y = function(leaf)
        trace = y.new_zeros(len(x))
        for probe in probes:
            along = probe.view(1, *x.shape[1:])
            (product,) = torch.autograd.grad(
                (y * along).sum(), leaf, retain_graph=True, create_graph=graph, materialize_grads=True
            )
            trace = trace + flattened(product * along).sum(1) / len(probes)
    return (y, trace) if graph else (y.detach(), trace.detach())
