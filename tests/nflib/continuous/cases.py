"""What the tests of continuous flows share: paths, a mixture with its exact velocity, fields, and small flows."""

from __future__ import annotations

import torch
from torch import Tensor

from nflib.continuous import (
    FlowMap,
    LinearPath,
    ODEFlow,
    Solver,
    TrigonometricPath,
    VarianceExplodingPath,
    VariancePreservingPath,
)
from tests.nflib.continuous.gaussian_mixtures import Exact, Mixture

ONE_SIDED = [
    LinearPath(),
    LinearPath(sigma_min=0.05),
    TrigonometricPath(),
    VariancePreservingPath(),
    VariancePreservingPath(0.5, 8.0),
    VarianceExplodingPath(0.05, 8.0),
]

FACTORS = torch.tensor([[[0.5, 0], [0.3, 0.2]], [[0.3, 0], [0, 0.6]], [[0.4, 0], [-0.3, 0.25]]], dtype=torch.float64)
NARROW = Mixture([0.5, 0.3, 0.2], [[2.0, 0.0], [-1.0, 1.5], [-1.0, -1.5]], FACTORS @ FACTORS.mT)
"""Three anisotropic normals, narrow enough that few-step maps are put to the test."""


def exact_flow(solver: Solver, density: str = "map", **settings) -> ODEFlow:
    """From noise to `NARROW` along the exact velocity of the linear path."""
    return ODEFlow(Exact(LinearPath(), data=NARROW).velocity, (2,), solver=solver, density=density, **settings).double()


def swirl(x: Tensor, t: Tensor) -> Tensor:
    """A smooth field on vectors that is neither linear nor autonomous."""
    return torch.sin(x.flip(1) + 2 * t[:, None]) - 0.5 * x * torch.cos(t)[:, None]


def steered(x: Tensor, t: Tensor, context: Tensor) -> Tensor:
    """`swirl` with a context vector for each row."""
    return swirl(x + 0.5 * context, t) + 0.3 * context


def mixture_velocity(x, t):
    """The exact velocity of the linear path to two normals of standard deviation 0.3 at (±1.5, 1)."""
    means = torch.tensor([[-1.5, 1.0], [1.5, 1.0]], dtype=x.dtype)
    t = t[:, None, None]
    variance = (1 - t) ** 2 + 0.09 * t**2
    difference = x[:, None] - t * means
    share = torch.softmax(-0.5 * difference.square().sum(2, keepdim=True) / variance, dim=1)
    return (share * (means + (0.09 * t - (1 - t)) / variance * difference)).sum(1)


def check_density_of_map(flow: FlowMap, count: int = 20) -> None:
    """Sampled log-densities against the log-determinant of the whole map, by autograd, and against `log_prob`."""
    x, log_prob = flow.sample_and_log_prob(count, seed=0)
    noise = flow.encode(x)
    whole = torch.autograd.functional.jacobian(flow._transform.generate, noise)
    jacobians = torch.stack([whole[row, :, row] for row in range(count)])
    base = torch.distributions.Normal(torch.zeros_like(noise), torch.ones_like(noise)).log_prob(noise).sum(1)
    torch.testing.assert_close(log_prob, base - torch.linalg.slogdet(jacobians)[1], atol=1e-9, rtol=0)
    torch.testing.assert_close(flow.log_prob(x), log_prob, atol=1e-9, rtol=0)
    torch.testing.assert_close(flow.log_prob(x[:1]), log_prob[:1], atol=1e-10, rtol=0)
