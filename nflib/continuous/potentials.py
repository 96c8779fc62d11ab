"""Steps of latents along the gradient of a potential that obeys the wave equation."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["potential_step", "wave_residual"]

Potential = Callable[[Tensor, Tensor], Tensor]


def potential_step(potential: Potential, z: Tensor, t: Tensor) -> Tensor:
    """A step of latents along the gradient of a potential, ``z + grad u(z, t)`` (Song et al. 2023, arXiv:2304.12944).

    Differentiable in the potential's parameters.

    Args:
        potential: u, a module or function of z and t that gives ``(B,)`` and treats each row by itself.
        z: latents, ``(B, D)``.
        t: times, ``(B,)``.

    Returns:
        The latents after the step, ``(B, D)``.

    >>> import torch
    >>> potential_step(lambda z, t: 0.5 * t * z.square().sum(1), torch.ones(1, 2), torch.ones(1))
    tensor([[2., 2.]])
    """
    return z + torch.func.vmap(torch.func.grad(_of_one(potential)))(z, t)


def wave_residual(potential: Potential, z: Tensor, t: Tensor, speed: float | Tensor) -> Tensor:
    """The residual ``u_tt - speed^2 Laplacian u`` of the wave equation, whose mean square is a loss for a potential.

    Second derivatives are exact.

    Args:
        potential: u, as for `potential_step`.
        z: latents, ``(B, D)``.
        t: times, ``(B,)``.
        speed: of the wave, a number, or a tensor that is learnt.

    Returns:
        The residual at each row, ``(B,)``.
    """
    u = _of_one(potential)
    curvature = torch.func.vmap(torch.func.hessian(u))(z, t).diagonal(dim1=1, dim2=2).sum(1)
    return torch.func.vmap(torch.func.grad(torch.func.grad(u, 1), 1))(z, t) - speed**2 * curvature


def _of_one(potential: Potential) -> Potential:
    return lambda z, t: potential(z[None], t[None])[0]
