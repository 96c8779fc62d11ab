"""Chains at a target: what they leave invariant, how they count, and what they refuse."""

import math

import pytest
import torch

from nflib.montecarlo import HMC, MALA, ULA, BoltzmannDensity, FixedStepSizes, IndependentMetropolis, run_chains

TARGET = BoltzmannDensity(lambda x: 0.5 * ((x - 1.0) / 0.5).square().sum(dim=-1))


def exact(count):
    return 1.0 + 0.5 * torch.randn(count, 3, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kernel", [HMC(0.2), MALA(0.4)])
def test_what_represents_the_target_still_does(kernel):
    before = exact(4000)
    chains = run_chains(TARGET, before, 30, kernel=kernel, seed=1)
    torch.testing.assert_close(chains.x.mean(0), torch.ones(3), atol=0.04, rtol=0)
    torch.testing.assert_close(chains.x.std(0), torch.full((3,), 0.5), atol=0.03, rtol=0)
    torch.testing.assert_close(chains.log_target, TARGET.log_prob(chains.x).double())
    # They have moved on: nothing is left of where they were.
    correlation = ((chains.x - 1.0) * (before - 1.0)).mean() / 0.25
    assert abs(correlation) < 0.05
    assert abs(chains.acceptance - kernel.target_acceptance) < 0.2


def test_same_seed_same_chains_and_energies_are_counted():
    runs = [
        run_chains(TARGET, exact(50), 7, kernel=MALA(0.3), step_sizes=FixedStepSizes([0.3]), batch_size=size, seed=4)
        for size in (50, 16)
    ]
    torch.testing.assert_close(runs[0].x, runs[1].x)
    assert runs[0].num_evaluations == runs[1].num_evaluations == 50 * (1 + 7)
    assert runs[0].step_size == 0.3
    settings = {"kernel": MALA(0.3), "step_sizes": FixedStepSizes([0.3]), "seed": 4}
    assert torch.equal(run_chains(TARGET, exact(50).numpy(), 7, **settings).x, runs[0].x)


def test_points_without_density_stay_where_they_are():
    x = exact(10)
    x[3] = torch.nan
    chains = run_chains(TARGET, x, 5, kernel=MALA(0.3), seed=0)
    assert chains.x[3].isnan().all()
    assert chains.log_target[3] == -math.inf
    assert chains.x[:3].isfinite().all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_steps": 0}, "num_steps is 0"),
        ({"num_steps": 1, "batch_size": 0}, "batch_size 0"),
        ({"num_steps": 1, "kernel": ULA()}, "ULA weights its moves"),
        ({"num_steps": 1, "kernel": IndependentMetropolis()}, "there is none"),
        ({"num_steps": 1, "generator": torch.Generator()}, "seed"),
        ({"num_steps": 1, "kernel": HMC}, "kernel must be an object such as HMC"),
        ({"num_steps": 1, "step_sizes": 0.1}, "step_sizes must be an object such as AcceptanceTarget"),
        ({"num_steps": 1, "x": exact(4)[:0]}, "there are 0 points"),
        ({"num_steps": 1e3}, "num_steps is 1000.0"),
        ({"num_steps": 1, "x": torch.ones(4, 3, dtype=torch.long)}, "points of torch.int64 have no gradients"),
    ],
)
def test_mistakes(options, words):
    with pytest.raises(ValueError, match=words):
        run_chains(TARGET, options.pop("x", exact(4)), seed=0, **options)


@pytest.mark.parametrize("first", [0.1, 0.3, 0.5, 0.7])
def test_the_first_step_is_found_within_a_few_pilot_moves(first):
    """Where acceptance is steep in the step size, searching it must not leap to and fro."""
    x = torch.randn(256, 400, generator=torch.Generator().manual_seed(0))
    chains = run_chains(BoltzmannDensity(lambda x: 0.5 * x.square().sum(-1)), x, 1, kernel=MALA(first), seed=1)
    assert chains.num_evaluations <= 256 * (2 + 6)
    assert abs(chains.acceptance - MALA.target_acceptance) < 0.15
