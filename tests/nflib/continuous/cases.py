"""What the tests of continuous flows share: paths, a mixture with its exact velocity, fields, and small flows."""

from __future__ import annotations

import torch
from torch import Tensor

from nflib.continuous import Linear, ODEFlow, Solver, Trigonometric, VarianceExploding, VariancePreserving
from tests.nflib.continuous.gaussian_mixtures import Exact, Mixture

ONE_SIDED = [
    Linear(),
    Linear(sigma_min=0.05),
    Trigonometric(),
    VariancePreserving(),
    VariancePreserving(0.5, 8.0),
    VarianceExploding(0.05, 8.0),
]

FACTORS = torch.tensor([[[0.5, 0], [0.3, 0.2]], [[0.3, 0], [0, 0.6]], [[0.4, 0], [-0.3, 0.25]]], dtype=torch.float64)
NARROW = Mixture([0.5, 0.3, 0.2], [[2.0, 0.0], [-1.0, 1.5], [-1.0, -1.5]], FACTORS @ FACTORS.mT)
"""Three anisotropic normals, narrow enough that few-step maps are put to the test."""


def exact_flow(solver: Solver, density: str = "map", **settings) -> ODEFlow:
    """From noise to `NARROW` along the exact velocity of the linear path."""
    return ODEFlow(Exact(Linear(), data=NARROW).velocity, (2,), solver=solver, density=density, **settings).double()


def swirl(x: Tensor, t: Tensor) -> Tensor:
    """A smooth field on vectors that is neither linear nor autonomous."""
    return torch.sin(x.flip(1) + 2 * t[:, None]) - 0.5 * x * torch.cos(t)[:, None]


def steered(x: Tensor, t: Tensor, context: Tensor) -> Tensor:
    """`swirl` with a context vector for each row."""
    return swirl(x + 0.5 * context, t) + 0.3 * context
