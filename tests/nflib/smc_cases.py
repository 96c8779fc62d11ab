"""Targets with known normalisers, poor proposals for them, and settings that get there."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from scipy.integrate import quad
from torch import Tensor

from nflib.montecarlo import HMC, MALA, AdaptiveTemperatures, BoltzmannDensity, SMCSamples, smc


class Normal:
    """Isotropic normal proposal in float64."""

    def __init__(self, dim: int, scale: float = 1.0, shift: float = 0.0) -> None:
        self.dim, self.scale, self.shift = dim, scale, shift

    def log_prob(self, x: Tensor) -> Tensor:
        quadratic = ((x - self.shift) / self.scale).square().sum(dim=-1)
        return -0.5 * quadratic - self.dim * math.log(self.scale * math.sqrt(2 * math.pi))

    def sample_and_log_prob(self, num_samples, *, generator=None):
        x = torch.randn(num_samples, self.dim, generator=generator, dtype=torch.float64) * self.scale + self.shift
        return x, self.log_prob(x)


class StudentT:
    """Multivariate Student t proposal with two degrees of freedom."""

    def __init__(self, dim: int, scale: float) -> None:
        self.dim, self.scale = dim, scale

    def log_prob(self, x: Tensor) -> Tensor:
        d = self.dim
        constant = math.lgamma((2 + d) / 2) - d / 2 * math.log(2 * math.pi) - d * math.log(self.scale)
        return constant - (2 + d) / 2 * torch.log1p((x / self.scale).square().sum(dim=-1) / 2)

    def sample_and_log_prob(self, num_samples, *, generator=None):
        z = torch.randn(num_samples, self.dim + 2, generator=generator, dtype=torch.float64)
        chi_square = z[:, self.dim :].square().sum(dim=1, keepdim=True)
        x = self.scale * z[:, : self.dim] / (chi_square / 2).sqrt()
        return x, self.log_prob(x)


@dataclass(frozen=True)
class Case:
    proposal: Any
    energy: Callable[[Tensor], Tensor]
    log_normalizer: float
    num_samples: int
    smc: dict[str, Any] = field(default_factory=dict)
    ais: dict[str, Any] = field(default_factory=dict)

    @property
    def target(self) -> BoltzmannDensity:
        return BoltzmannDensity(self.energy)

    def run(self, seed: int, sampler: str = "smc", **changes: Any) -> SMCSamples:
        settings = dict(self.smc)
        if sampler == "ais":
            settings |= {"resampling_threshold": 0.0} | self.ais
        settings |= changes
        return smc(self.proposal, self.target, settings.pop("num_samples", self.num_samples), seed=seed, **settings)


def _correlated_gaussian(dim: int = 30, shift: float = 1.5) -> Case:
    index = torch.arange(dim, dtype=torch.float64)
    covariance = 0.5 * 0.8 ** (index[:, None] - index).abs()
    precision = torch.linalg.inv(covariance)

    def energy(x: Tensor) -> Tensor:
        return 0.5 * (((x - shift) @ precision) * (x - shift)).sum(dim=-1)

    log_normalizer = 0.5 * dim * math.log(2 * math.pi) + 0.5 * torch.logdet(covariance).item()
    # Several nats off in every direction, and a condition number of 80.
    settings = {"kernel": HMC(num_leapfrog=12), "moves": 2}
    ais = {"temperatures": AdaptiveTemperatures(0.97)}
    return Case(Normal(dim), energy, log_normalizer, 800, settings, ais)


def _mixture() -> Case:
    generator = torch.Generator().manual_seed(3)
    means = 16 * (torch.rand(10, 2, generator=generator, dtype=torch.float64) - 0.5)

    def energy(x: Tensor) -> Tensor:
        return -torch.logsumexp(-0.5 * ((x[:, None] - means) / 0.5).square().sum(dim=-1), dim=1)

    return Case(Normal(2, 4.0), energy, math.log(10 * 2 * math.pi * 0.25), 1000, {"kernel": MALA(), "moves": 4})


def _funnel(dim: int = 5) -> Case:
    """Neal's funnel: v ~ N(0, 3^2), and the others N(0, exp(v))."""

    def energy(x: Tensor) -> Tensor:
        v, rest = x[:, 0], x[:, 1:]
        return 0.5 * (v / 3).square() + 0.5 * rest.square().sum(dim=-1) * torch.exp(-v) + 0.5 * (dim - 1) * v

    log_normalizer = math.log(3) + 0.5 * dim * math.log(2 * math.pi)
    settings = {"kernel": HMC(jitter=1.5), "moves": 8, "temperatures": AdaptiveTemperatures(0.98)}
    return Case(StudentT(dim, 2.0), energy, log_normalizer, 300, settings)


def _double_well(dim: int = 8) -> Case:
    """A tilted double well, a barrier of 9 kT from one side, and harmonic directions; the proposal sits in one well."""

    def well(x: Any) -> Any:
        return x**4 - 6 * x**2 + x

    def energy(x: Tensor) -> Tensor:
        return well(x[:, 0]) + 2 * x[:, 1:].square().sum(dim=-1)

    integral, _ = quad(lambda x: math.exp(-well(x) - 10), -6, 6, epsabs=1e-13)
    log_normalizer = math.log(integral) + 10 + 0.5 * (dim - 1) * math.log(math.pi / 2)
    settings = {"kernel": MALA(), "moves": 4}
    return Case(Normal(dim, 1.0, 1.0), energy, log_normalizer, 500, settings, {"num_samples": 1000})


CASES = {
    "correlated gaussian": _correlated_gaussian(),
    "ten modes": _mixture(),
    "funnel": _funnel(),
    "double well": _double_well(),
}
