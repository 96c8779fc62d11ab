"""Markov kernels: the density they leave alone, the weights of the one that does not, points without energy."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal as TorchNormal

from nflib.montecarlo import (
    HMC,
    MALA,
    ULA,
    AcceptanceTarget,
    BoltzmannDensity,
    FixedStepSizes,
    IndependentMetropolis,
)
from nflib.montecarlo.path import GeometricPath, Particles
from tests.nflib.smc_cases import Normal

DIM = 3
BETA = 0.6
METROPOLIS = {"MALA": MALA(), "HMC": HMC(num_leapfrog=5), "independent": IndependentMetropolis()}
KERNELS = METROPOLIS | {"ULA": ULA()}


def energy(x: Tensor) -> Tensor:
    return 2.0 * (x - 1.0).square().sum(dim=-1)


def intermediate(dim: int = DIM, **keywords) -> tuple[GeometricPath, float, float]:
    """A path between normal densities, and the mean and variance of the one at BETA."""
    precision = (1 - BETA) + 4 * BETA
    return GeometricPath(Normal(dim), BoltzmannDensity(energy), **keywords), 4 * BETA / precision, 1 / precision


def equilibrium(kernel, count: int, path: GeometricPath, mean: float, variance: float) -> Particles:
    x = mean + math.sqrt(variance) * torch.randn(count, DIM, dtype=torch.float64)
    return kernel.init(path.evaluate(x), path)


@pytest.mark.parametrize("step_size", [0.3, 0.8])
@pytest.mark.parametrize("name", METROPOLIS)
def test_invariant_density(name, step_size):
    """Exact draws stay distributed as they were, whatever the step."""
    kernel, count = METROPOLIS[name], 10000
    path, mean, variance = intermediate()
    particles = start = equilibrium(kernel, count, path, mean, variance)
    generator = torch.Generator().manual_seed(1)
    for _ in range(4):
        particles, move = kernel.step(particles, path, BETA, step_size, generator)
        assert move.log_weights is None and move.num_nonfinite == 0
    assert (particles.x != start.x).any(dim=1).double().mean() > 0.4
    assert 0.1 < move.acceptance.mean() < 0.999
    deviation = particles.x - mean
    assert (deviation.mean(0).abs() < 4.5 * math.sqrt(variance / count)).all()
    assert (deviation.square().mean(0) - variance).abs().max() < 4.5 * variance * math.sqrt(2 / count)
    fourth = deviation.pow(4).mean(0) / variance**2
    assert (fourth - 3).abs().max() < 4.5 * math.sqrt(96 / count)


@pytest.mark.parametrize("name", METROPOLIS)
def test_kernels_converge(name):
    kernel = METROPOLIS[name]
    path, mean, variance = intermediate()
    particles = kernel.init(path.draw(4000, torch.Generator().manual_seed(0)), path)
    generator = torch.Generator().manual_seed(1)
    for _ in range(40):
        particles, _ = kernel.step(particles, path, BETA, 0.5, generator)
    assert (particles.x.mean(0) - mean).abs().max() < 4.5 * math.sqrt(variance / 4000)
    assert (particles.x.var(0) - variance).abs().max() < 4.5 * variance * math.sqrt(2 / 4000)


def test_ula_weights_are_the_ratio_of_kernel_densities():
    path, mean, variance = intermediate()
    kernel, step = ULA(), 0.7
    before = equilibrium(kernel, 50, path, mean, variance)
    after, move = kernel.step(before, path, BETA, step, torch.Generator().manual_seed(0))

    def log_kernel(start: Particles, end: Particles) -> Tensor:
        drift = start.x + 0.5 * step**2 * start.gradient(BETA)
        return TorchNormal(drift, step).log_prob(end.x).sum(1)

    expected = (
        after.log_density(BETA) + log_kernel(after, before) - before.log_density(BETA) - log_kernel(before, after)
    )
    assert torch.allclose(move.log_weights, expected, atol=1e-10)
    assert torch.allclose(move.acceptance, expected.clamp(max=0).exp())


def test_ula_is_unbiased_at_a_step_that_changes_the_density():
    count = 40000
    path, mean, variance = intermediate()
    kernel = ULA()
    particles = equilibrium(kernel, count, path, mean, variance)
    log_weights = torch.zeros(count, dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        particles, move = kernel.step(particles, path, BETA, 0.5, generator)
        log_weights += move.log_weights
    weights = log_weights.exp()
    assert abs(weights.mean() - 1) < 4 * weights.std() / math.sqrt(count)
    for values, truth in ((particles.x[:, 0], mean), ((particles.x[:, 1] - mean).square(), variance)):
        terms = weights * (values - truth)
        assert abs(terms.mean()) < 4 * terms.std() / math.sqrt(count)
    unweighted = (particles.x - mean).square().mean()
    assert abs(unweighted - variance) > 10 * variance * math.sqrt(2 / (3 * count))  # the weights are needed


@pytest.mark.parametrize("name", KERNELS)
def test_points_without_energy_are_never_entered_nor_moved(name):
    """A third of space has NaN, +inf or -inf energy: moves there are rejected (or weighted zero), and counted."""
    asked = []

    def walled(x: Tensor) -> Tensor:
        asked.append(x.detach().clone())
        u = energy(x)
        u = torch.where(x[:, 0] > 1.4, torch.nan, u)
        u = torch.where(x[:, 1] > 1.4, torch.inf, u)
        return torch.where(x[:, 2] > 1.4, -torch.inf, u)

    kernel = KERNELS[name]
    path = GeometricPath(Normal(DIM), BoltzmannDensity(walled))
    generator = torch.Generator().manual_seed(0)
    start = path.draw(3000, generator)
    start = start._replace(x=torch.where(torch.arange(3000)[:, None] < 2, torch.nan, start.x))
    particles = kernel.init(path.evaluate(start.x), path)
    dead = ~particles.alive
    assert dead[:2].all() and torch.equal(dead[2:], (start.x[2:] > 1.4).any(dim=1))
    assert particles.log_density(0.5)[dead].eq(-torch.inf).all()
    if particles.target_gradient is not None:
        assert particles.target_gradient[dead].eq(0).all() and particles.target_gradient.isfinite().all()
    nonfinite, killed = 0, dead.clone()
    for _ in range(5):
        particles, move = kernel.step(particles, path, 0.5, 0.5, generator)
        nonfinite += move.num_nonfinite
        if move.log_weights is not None:
            assert not move.log_weights.isnan().any() and (move.log_weights < torch.inf).all()
            killed |= move.log_weights == -torch.inf
        assert move.acceptance[~killed].isfinite().all()
    assert nonfinite > 100
    assert torch.equal(~particles.alive, killed)
    assert torch.equal(particles.x[dead][2:], start.x[dead][2:])  # the dead lie still
    assert (particles.x[particles.alive] <= 1.4).all()
    assert all(x.isfinite().all() for x in asked)


@pytest.mark.parametrize("name", ["MALA", "HMC", "ULA"])
def test_a_gradient_that_is_not_finite_is_no_drift(name):
    """|x|^(1/2) has energy zero and an infinite gradient at the origin, where a particle is alive and can leave."""
    path = GeometricPath(Normal(1), BoltzmannDensity(lambda x: x.abs().sqrt().sum(dim=-1)))
    kernel = KERNELS[name]
    particles = kernel.init(path.evaluate(torch.zeros(100, 1, dtype=torch.float64)), path)
    assert particles.alive.all() and particles.gradient(1.0).eq(0).all()
    particles, _ = kernel.step(particles, path, 1.0, 0.1, torch.Generator().manual_seed(0))
    assert particles.x.isfinite().all() and (particles.x != 0).any()


@pytest.mark.parametrize("name", KERNELS)
def test_chunks_and_seeds(name):
    results = []
    for batch_size in (1000, 7):
        kernel = KERNELS[name]
        path, mean, variance = intermediate(batch_size=1000)
        torch.manual_seed(0)
        particles = equilibrium(kernel, 30, path, mean, variance)
        path.batch_size = batch_size if name != "independent" else 1000  # its draws come chunk by chunk
        results.append(kernel.step(particles, path, BETA, 0.4, torch.Generator().manual_seed(3))[0].x)
    assert torch.allclose(results[0], results[1], atol=1e-12)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="num_leapfrog is 0"):
        HMC(num_leapfrog=0)
    with pytest.raises(ValueError, match="num_leapfrog is 2.5"):
        HMC(num_leapfrog=2.5)
    opaque = BoltzmannDensity(lambda x: energy(x.detach()))
    path = GeometricPath(Normal(DIM), opaque)
    drawn = path.draw(5, torch.Generator())
    with pytest.raises(ValueError, match="target's log_prob carries no gradient"):
        MALA().init(drawn, path)
    by_numpy = BoltzmannDensity(lambda x: torch.from_numpy(x.numpy() ** 2).sum(-1))
    with pytest.raises(ValueError, match="target's log_prob carries no gradient in x; pass a density .* no numpy"):
        GeometricPath(Normal(DIM), by_numpy).draw(5, torch.Generator(), gradient=True)
    with pytest.raises(ValueError, match="no gradients here"):
        drawn.gradient(0.5)
    with pytest.raises(ValueError, match="one number a sample"):
        GeometricPath(Normal(DIM), BoltzmannDensity(lambda x: x)).draw(5, torch.Generator())


@pytest.mark.parametrize("step_size", [0.0, -0.1, math.nan, math.inf])
@pytest.mark.parametrize("kernel", [HMC, MALA, ULA])
def test_steps_that_lead_nowhere_are_refused(kernel, step_size):
    with pytest.raises(ValueError, match=rf"{kernel.__name__}: step_size is .*; pass a positive"):
        kernel(step_size)
    with pytest.raises(ValueError, match="positive, finite numbers"):
        FixedStepSizes([0.1, step_size])


@pytest.mark.parametrize("number", [-1.0, math.nan, math.inf])
def test_settings_of_adaptation_and_jitter(number):
    with pytest.raises(ValueError, match="jitter"):
        HMC(jitter=number)
    with pytest.raises(ValueError, match="AcceptanceTarget: gain is"):
        AcceptanceTarget(gain=number)
    with pytest.raises(ValueError, match="pilot_moves -1"):
        AcceptanceTarget(pilot_moves=-1)
    with pytest.raises(ValueError, match="pilot_moves 2.5"):
        AcceptanceTarget(pilot_moves=2.5)
