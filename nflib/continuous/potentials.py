"""Steps of latents along the gradient of a potential that obeys the wave equation."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["potential_step", "wave_residual"]

Potential = Callable[[Tensor, Tensor], Tensor]


def potential_step(potential: Potential, z: Tensor, t: Tensor) -> Tensor:
    """``z + grad u(z, t)`` (Song et al. 2023, arXiv:2304.12944); differentiable in the potential's parameters.

    Args:
        potential: u, a module or function of z and t that gives ``(B,)`` and treats each row by itself.
        z: ``(B, D)``.
        t: ``(B,)``.

    >>> potential_step(lambda z, t: 0.5 * t * z.square().sum(1), torch.ones(1, 2), torch.ones(1))
    tensor([[2., 2.]])
    """
    return z + torch.func.vmap(torch.func.grad(_of_one(potential)))(z, t)


def wave_residual(potential: Potential, z: Tensor, t: Tensor, speed: float | Tensor) -> Tensor:
    """``u_tt - speed^2 Laplacian u`` at each row, ``(B,)``: its mean square is the loss of a potential that is a wave.

    By exact second derivatives, of the arguments of `potential_step`; speed: a number, or one that is learnt.
    """
    u = _of_one(potential)
    curvature = torch.func.vmap(torch.func.hessian(u))(z, t).diagonal(dim1=1, dim2=2).sum(1)
    return torch.func.vmap(torch.func.grad(torch.func.grad(u, 1), 1))(z, t) - speed**2 * curvature


def _of_one(potential: Potential) -> Potential:
    return lambda z, t: potential(z[None], t[None])[0]
