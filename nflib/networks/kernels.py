"""Fast kernels of torch whose derivatives of higher order are missing, or wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Kernel = Callable[..., Tensor]


def differentiable(fast: Kernel, explicit: Kernel, *inputs: Tensor | None) -> Tensor:
    """``fast(*inputs)``, whose derivatives from the second on are those of `explicit`, the same function written out.

    Under transforms of `torch.func`, which may ask for any derivative, all is computed by `explicit`; of compiled
    programs, which have the first alone, all by `fast`.
    """
    if torch.compiler.is_compiling():
        return fast(*inputs)
    if torch._C._are_functorch_transforms_active():
        return explicit(*inputs)
    if not torch.is_grad_enabled() or not any(part is not None and part.requires_grad for part in inputs):
        return fast(*inputs)
    return _Differentiable.apply(fast, explicit, *inputs)  # type: ignore[no-any-return]


class _Differentiable(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, fast: Kernel, explicit: Kernel, *inputs: Tensor | None) -> Tensor:
        ctx.save_for_backward(*inputs)
        ctx.kernels = fast, explicit
        ctx.once = _with_graph(fast, inputs, ctx.needs_input_grad[2:])
        return ctx.once[1].detach()  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        inputs, needed = ctx.saved_tensors, ctx.needs_input_grad[2:]
        fast, explicit = ctx.kernels
        if torch.is_grad_enabled():  # somebody wants to differentiate this gradient
            leaves = [part for part, wanted in zip(inputs, needed, strict=True) if wanted]
            gradients = torch.autograd.grad(explicit(*inputs).to(gradient.dtype), leaves, gradient, create_graph=True)
        else:
            once, ctx.once = ctx.once, None  # its memory is free after the first time
            leaves, output = once or _with_graph(fast, inputs, needed)
            gradients = torch.autograd.grad(output, leaves, gradient)
        remaining = iter(gradients)
        return None, None, *(next(remaining) if wanted else None for wanted in needed)


@torch.enable_grad()
def _with_graph(
    fast: Kernel, inputs: tuple[Tensor | None, ...], needed: tuple[bool, ...]
) -> tuple[list[Tensor], Tensor]:
    """The kernel's value with an autograd graph of its own, which begins at the leaves returned beside it."""
    own = [None if part is None else part.detach().requires_grad_(n) for part, n in zip(inputs, needed, strict=True)]
    return [part for part in own if part is not None and part.requires_grad], fast(*own)
