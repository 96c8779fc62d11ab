"""Gradients through the solution of an autoregressive map, by the implicit function theorem."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nflib.events import finite_rows, per_row

# Of a sample's largest cotangent: by then changes shrink geometrically, and one more sweep gains little.
TOLERANCES = {torch.float64: 1e-13, torch.float32: 1e-6}


def with_gradient(tokens: Tensor, noise: Tensor, to_noise: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Tensor:
    """The tokens u that solve ``noise = f(u)``, differentiable with respect to the noise and all that f depends on.

    to_noise: f, giving noise and logabsdet number by number, ``(B, T, C)``. With ``J = df/du``, triangular in the order
    of visit, ``du = J^-1 (d noise - df)``: one graph of f at u is kept, and backwards the cotangents v become the w of
    ``J^T w = v``, found by sweeps over all tokens, each a vector-Jacobian product of that graph. So memory does not
    grow with the number of sweeps. Samples with tokens that are not finite have no gradient, and spoil no other's.
    """
    tokens = tokens.detach()
    # The graph itself must be finite: a cotangent of zero times NaN would reach every parameter.
    solved = per_row(finite_rows(tokens), tokens)
    leaf = torch.where(solved, tokens, 0.0).requires_grad_()
    found, logabsdet = to_noise(leaf)

    def transposed(w: Tensor) -> Tensor:
        return torch.autograd.grad(found, leaf, w, retain_graph=True)[0]

    residual = torch.where(solved, noise - found, 0.0)
    return _Solution.apply(residual, tokens, solved, logabsdet.detach().exp(), transposed)  # type: ignore[no-any-return]


class _Solution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        residual: Tensor,
        tokens: Tensor,
        solved: Tensor,
        diagonal: Tensor,
        transposed: Callable[[Tensor], Tensor],
    ) -> Tensor:
        ctx.solved, ctx.diagonal, ctx.transposed = solved, diagonal, transposed
        return tokens.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        cotangent = torch.where(ctx.solved, cotangent, 0.0)
        return solve_transposed(ctx.transposed, ctx.diagonal, cotangent), None, None, None, None


def solve_transposed(transposed: Callable[[Tensor], Tensor], diagonal: Tensor, cotangent: Tensor) -> Tensor:
    """The w of ``J^T w = v``, by the sweeps ``w += (v - J^T w) / diagonal``.

    transposed: ``w -> J^T w``, J triangular in the numbers ``(B, T, C)`` of a sample. The last k numbers are exact
    after k sweeps, whatever the initial guess, so that T C sweeps always suffice; far fewer do.
    """
    tolerance = TOLERANCES.get(cotangent.dtype, 1e-6)
    guess = w = cotangent / diagonal
    for _ in range(cotangent[0].numel()):
        change = (cotangent - transposed(w)) / diagonal
        # Numbers that overflow on the way start again: they become exact once those behind them are.
        w = torch.where(change.isfinite(), w + change, guess)
        largest = per_row(w.abs().flatten(1).amax(-1), w)
        if bool((change.abs() <= tolerance * largest).all()):
            break
    return w
