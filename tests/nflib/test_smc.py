"""Sequential Monte Carlo: known normalisers, what the run reports, poisoned particles, and users' mistakes."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from nflows.distributions import StandardNormal
from torch import Tensor

from nflib.flows import TARFlow
from nflib.montecarlo import (
    HMC,
    MALA,
    ULA,
    AdaptiveTemperatures,
    BoltzmannDensity,
    FixedStepSizes,
    FixedTemperatures,
    IndependentMetropolis,
    Move,
    SMCSamples,
    WeightedSamples,
    check_smc_options,
    importance_sample,
    run_chains,
    smc,
)
from nflib.montecarlo.history import History
from nflib.montecarlo.plots import plot_history
from nflib.montecarlo.temperatures import conditional_ess_fraction
from tests.nflib.smc_cases import CASES, Normal
from tests.perturb import perturb

SHIFT = 2.0
DIM = 3


def energy(x: Tensor) -> Tensor:
    return 2.0 * (x - SHIFT).square().sum(dim=-1)


TARGET = BoltzmannDensity(energy)
LOG_NORMALIZER = 0.5 * DIM * math.log(math.pi / 2)
KERNELS = {"MALA": MALA(), "HMC": HMC(), "ULA": ULA(), "independent": IndependentMetropolis()}


def within(samples: SMCSamples, truth: float, errors: float = 3.0) -> bool:
    return abs(samples.log_normalizer - truth) < errors * samples.log_normalizer_standard_error


@pytest.mark.parametrize("sampler", ["smc", "ais"])
@pytest.mark.parametrize("name", CASES)
def test_known_normalizers(name, sampler):
    case = CASES[name]
    samples = case.run(0, sampler)
    assert abs(samples.log_normalizer - case.log_normalizer) < 0.5
    if samples.refusal:  # annealed importance sampling leaves heavy weights
        assert sampler == "ais" and samples.pareto_k > 0.7
    else:
        assert samples.log_normalizer_standard_error < 0.7 and within(samples, case.log_normalizer)
    assert samples.history.inverse_temperatures[-1] == 1.0
    assert any(samples.history.resampled) or sampler == "ais" or name == "funnel"


@pytest.mark.parametrize("threshold", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("name", KERNELS)
def test_the_last_distribution_is_the_target(name, threshold):
    settings = {"kernel": KERNELS[name], "moves": 2, "resampling_threshold": threshold}
    samples = smc(Normal(DIM, 1.0, 1.0), TARGET, 1000, seed=1, **settings)
    assert within(samples, LOG_NORMALIZER, 4)
    mean, error = samples.expectation(lambda x: x)
    assert ((mean - SHIFT).abs() < 4.5 * error).all() and (error < 0.1).all()
    variance, error = samples.expectation(lambda x: (x - SHIFT).square())
    assert ((variance - 0.25).abs() < 4.5 * error).all()
    assert torch.allclose(samples.log_target, -energy(samples.x))
    assert samples.num_rejected == 0 and samples.log_weights.dtype == torch.float64


def test_history_adds_up():
    samples = smc(Normal(DIM), TARGET, 500, kernel=ULA(), moves=2, resampling_threshold=0.7, seed=0)
    history = samples.history
    steps = len(history)
    assert sum(history.log_normalizer_increments) == pytest.approx(samples.log_normalizer)
    assert len(history.step_sizes) == 2 * steps
    for name in ("conditional_ess_fraction", "effective_sample_size", "resampled", "num_ancestors", "acceptance"):
        assert len(getattr(history, name)) == steps
    assert all(a < b for a, b in zip(history.inverse_temperatures, history.inverse_temperatures[1:], strict=False))
    # bisection stops a little above the target; the last step is what is left over
    kept = history.conditional_ess_fraction
    assert all(0.9 <= value < 0.905 for value in kept[:-1]) and kept[-1] >= 0.9
    assert history.num_particles == [500] * steps
    for ess, resampled in zip(history.effective_sample_size, history.resampled, strict=True):
        assert resampled == (ess < 0.7 * 500)
    assert history.effective_sample_size_fraction == [ess / 500 for ess in history.effective_sample_size]
    assert sum(history.resampled) == len(history.parents) > 1
    lineage = history.lineage()
    assert torch.equal(lineage[0], samples.ancestors) and torch.equal(lineage[-1], torch.arange(500))
    assert len(lineage[0].unique()) == history.num_ancestors[-1] < 500
    # the particles, each of the two moves a temperature, and pilot moves of 256 particles
    pilot = history.num_gradients[0] - 3 * 500
    assert pilot >= 0 and pilot % 256 == 0
    assert np.diff(history.num_gradients).tolist() == [1000] * (steps - 1)
    assert smc(Normal(DIM), TARGET, 10, resampling_threshold=0.0, seed=0).history.lineage().numel() == 0


def test_step_sizes_follow_the_acceptance_target():
    for kernel, start in ((MALA(step_size=1e-3), 0.574), (MALA(step_size=50.0), 0.574), (HMC(step_size=1e-3), 0.8)):
        history = smc(Normal(DIM), TARGET, 1000, kernel=kernel, moves=4, seed=0).history
        assert np.mean(history.acceptance[-5:]) == pytest.approx(start, abs=0.1)


def test_replay_of_temperatures_and_steps():
    first = smc(Normal(DIM), TARGET, 300, seed=0)
    steps = FixedStepSizes(first.history.step_sizes)
    again = smc(Normal(DIM), TARGET, 300, temperatures=first.history.inverse_temperatures, step_sizes=steps, seed=1)
    assert again.history.inverse_temperatures == first.history.inverse_temperatures
    assert again.history.step_sizes == first.history.step_sizes
    assert not torch.equal(again.x, first.x) and within(again, LOG_NORMALIZER, 4)


def test_same_seed_same_samples_whatever_the_chunks():
    state = torch.get_rng_state()
    first = smc(Normal(DIM), TARGET, 200, seed=5)
    assert torch.equal(torch.get_rng_state(), state)
    second = smc(Normal(DIM), TARGET, 200, generator=torch.Generator().manual_seed(5))
    assert torch.equal(first.x, second.x) and torch.equal(first.log_weights, second.log_weights)
    asked = []
    chunked = smc(
        Normal(DIM), BoltzmannDensity(lambda x: (asked.append(len(x)), energy(x))[1]), 200, batch_size=64, seed=5
    )
    assert max(asked) == 64 and chunked.history.num_evaluations[-1] == sum(asked)
    assert not torch.equal(smc(Normal(DIM), TARGET, 200).x, smc(Normal(DIM), TARGET, 200).x)


def test_a_flow_as_proposal():
    flow = perturb(TARFlow((4,), patch_size=2, channels=16, num_blocks=2, layers_per_block=1, head_dim=8))
    target = BoltzmannDensity(lambda x: 2.0 * (x - 0.5).square().sum(dim=-1))
    for kernel in (MALA(), IndependentMetropolis()):
        samples = smc(flow, target, 500, kernel=kernel, moves=2, seed=0)
        assert samples.x.dtype == torch.float32 and not samples.x.requires_grad
        assert within(samples, 2 * math.log(math.pi / 2), 4)
        assert torch.allclose(samples.log_prob, flow.log_prob(samples.x).double(), atol=1e-4)
    assert all(parameter.grad is None for parameter in flow.parameters())


def test_distributions_of_others_as_proposal_and_target():
    """Of nflows and of torch, at either end of the path: the same normalisers as from our own proposal."""
    wide = torch.distributions.Independent(torch.distributions.Normal(torch.zeros(DIM), torch.ones(DIM)), 1)
    narrow = torch.distributions.MultivariateNormal(torch.full((DIM,), SHIFT), 0.25 * torch.eye(DIM))
    for proposal, target, truth in (
        (StandardNormal([DIM]), TARGET, LOG_NORMALIZER),
        (wide, TARGET, LOG_NORMALIZER),
        (wide, narrow, 0.0),
    ):
        first, second = (smc(proposal, target, 1000, batch_size=300, seed=0) for _ in range(2))
        assert within(first, truth) and torch.equal(first.x, second.x)


def test_a_target_of_bounded_support():
    """E[x] of the exponential distribution is 1; torch refuses to evaluate it below zero."""
    exponential = torch.distributions.Exponential(1.0)
    for kernel in (MALA(), HMC(), ULA(), IndependentMetropolis()):
        proposal = torch.distributions.Normal(1.0, 2.0)
        samples = smc(proposal, exponential, 4000, kernel=kernel, moves=3, seed=1)
        assert samples.x.shape == (4000,) and (samples.x[samples.log_weights > -torch.inf] >= 0).all()
        assert within(samples, 0.0)
        mean, error = samples.expectation(lambda x: x)
        assert abs(mean - 1.0) < 3 * error and error < 0.15


# --- particles without energy


@pytest.mark.parametrize("threshold", [0.0, 0.5])
@pytest.mark.parametrize("name", KERNELS)
def test_poisoned_particles_change_nothing_but_their_count(name, threshold):
    """One draw in a hundred is spoilt in one of four ways; positions spoilt later are rejected as well."""
    bad = 20

    class Poisoned(Normal):
        def sample_and_log_prob(self, num_samples, *, generator=None):
            x, log_prob = super().sample_and_log_prob(num_samples, generator=generator)
            x[:5, 0], x[5:10, 1] = torch.nan, torch.inf
            x[10:15, 2], x[15:20, 2] = 77.0, 78.0
            return x, log_prob

    def poisoned_energy(x: Tensor) -> Tensor:
        assert x.isfinite().all()
        u = torch.where(x[:, 2] == 77.0, torch.nan, energy(x))
        return torch.where(x[:, 2] == 78.0, -torch.inf, u)

    kernel, target = KERNELS[name], BoltzmannDensity(poisoned_energy)
    settings = {"kernel": kernel, "moves": 2, "resampling_threshold": threshold, "seed": 0, "batch_size": 3000}
    samples = smc(Poisoned(DIM), target, 2000, **settings)
    assert samples.num_rejected == bad
    # Spoilt draws count in N: the normaliser is short by their share, by nothing else.
    assert abs(samples.log_normalizer - LOG_NORMALIZER - math.log1p(-bad / 2000)) < (
        4 * samples.log_normalizer_standard_error
    )
    mean, error = samples.expectation(lambda x: x)
    assert ((mean - SHIFT).abs() < 4.5 * error).all()
    assert (samples.log_weights == -torch.inf).sum() == (0 if any(samples.history.resampled) else bad)
    if name == "independent" and threshold > 0:  # its draws are spoilt as well
        assert sum(samples.history.num_nonfinite) > 100


def test_energies_of_every_size_on_the_way():
    """Overlapping atoms: a share of the draws has energies of 1e4 to 1e30 kT. They lose their weight, and temperatures
    are not wasted on them."""

    def clashing(x: Tensor) -> Tensor:
        return energy(x) + torch.where(x[:, 0] < -1.5, 10 ** (-20 * x[:, 0] - 26), 0.0)

    samples = smc(Normal(DIM), BoltzmannDensity(clashing), 2000, seed=0)
    plain = smc(Normal(DIM), TARGET, 2000, seed=0)
    assert within(samples, LOG_NORMALIZER, 4) and len(samples.history) < len(plain.history) + 8


def test_nothing_is_left():
    nowhere = BoltzmannDensity(lambda x: x.sum(dim=-1) * torch.nan)
    samples = smc(Normal(DIM), nowhere, 40, seed=0)
    assert samples.num_rejected == 40 and samples.effective_sample_size == 0
    assert samples.log_normalizer == -math.inf and samples.log_normalizer_standard_error == math.inf
    assert samples.history.inverse_temperatures == [1.0]


# --- families


def test_few_ancestors_are_counted_and_warned_of():
    """1000 equal weights look perfect; they descend from 200 draws, half of them from four."""
    ancestors = torch.cat([torch.arange(4).repeat_interleave(125), 4 + torch.arange(500) % 196])
    samples = WeightedSamples(torch.randn(1000, 1), torch.zeros(1000), ancestors=ancestors)
    sizes = torch.bincount(ancestors).double()
    assert samples.effective_sample_size == pytest.approx(1000)
    assert samples.effective_num_ancestors == pytest.approx((1000**2 / sizes.square().sum()).item())
    assert "worth 16 independent" in samples.warning and samples.summary()["warning"] == samples.warning
    assert samples.warning in str(samples)
    json.dumps(samples.summary(), allow_nan=False)
    few = WeightedSamples(samples.x, torch.zeros(1000), ancestors=torch.arange(1000) % 8)
    assert "worth 8.0 independent draws" in few.refusal and few.log_normalizer_standard_error == math.inf
    alone = WeightedSamples(samples.x, torch.zeros(1000))
    assert alone.warning is None and alone.effective_num_ancestors == pytest.approx(1000)


def test_run_without_steps_or_survivors_is_valid_json():
    nowhere = BoltzmannDensity(lambda x: x.sum(dim=-1) * torch.nan)
    for target in (nowhere, TARGET):
        samples = smc(Normal(DIM), target, 40, kernel=IndependentMetropolis(), seed=0)
        json.dumps(samples.summary() | {"history": samples.history.summary()}, allow_nan=False)
        assert samples.history.summary()["step_sizes"][0] is None


# --- temperatures


def test_conditional_ess():
    weights, increments = torch.tensor([0.2, 0.5, 0.3, 0.0]), torch.tensor([1.0, 2.0, 0.5, 9.0])
    expected = (weights * increments).sum() ** 2 / (weights * increments.square()).sum()
    assert conditional_ess_fraction(weights.log(), increments.log()) == pytest.approx(expected.item(), rel=1e-6)
    assert conditional_ess_fraction(weights.log(), torch.full((4,), 3000.0)) == pytest.approx(1)
    assert conditional_ess_fraction(weights.log(), torch.full((4,), -torch.inf)) == 0


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e8])
def test_the_next_temperature_keeps_the_conditional_ess(size):
    log_ratio = size * torch.randn(1000, dtype=torch.float64)
    log_ratio[:300] = -torch.inf  # the dead have no say
    log_weights = torch.randn(1000, dtype=torch.float64)
    step = AdaptiveTemperatures(0.8).next(0.25, log_weights, log_ratio) - 0.25
    kept = conditional_ess_fraction(log_weights[300:], step * log_ratio[300:])
    assert kept == pytest.approx(0.8, abs=2e-3) if size > 1e-3 else step == 0.75
    assert AdaptiveTemperatures().next(0.5, log_weights, torch.full((1000,), -torch.inf)) == 1.0


# --- reports


def test_plot_save_and_load(tmp_path):
    samples = smc(Normal(DIM), TARGET, 200, seed=0)
    plot_history(samples.history, tmp_path / "history.png")
    assert (tmp_path / "history.png").stat().st_size > 10_000
    samples.save(tmp_path / "samples.npz")
    loaded = SMCSamples.load(tmp_path / "samples.npz")
    assert loaded.summary() == samples.summary() and torch.equal(loaded.ancestors, samples.ancestors)
    for one, other in zip(loaded.expectation(lambda x: x), samples.expectation(lambda x: x), strict=True):
        assert torch.equal(one, other)
    stored = json.loads(json.dumps(samples.history.summary(), allow_nan=False))
    again = History.from_summary(stored)
    assert again.inverse_temperatures == samples.history.inverse_temperatures and again.parents == []
    assert loaded.history.summary() == samples.history.summary()
    assert torch.equal(loaded.history.lineage(), samples.history.lineage())
    clipped = samples.truncate(0.1)
    assert len(clipped.ancestors) == 180
    clipped.save(tmp_path / "clipped.npz")
    assert SMCSamples.load(tmp_path / "clipped.npz").unclipped.history.summary() == samples.history.summary()
    # A file without a history, as earlier versions wrote.
    WeightedSamples(samples.x, samples.log_weights, ancestors=samples.ancestors).save(tmp_path / "before.npz")
    assert len(SMCSamples.load(tmp_path / "before.npz").history) == 0
    with pytest.raises(ValueError, match="history is empty"):
        plot_history(History())


def test_progress_bar(capsys):
    smc(Normal(DIM), TARGET, 100, seed=0, progress=True)
    assert "100%" in capsys.readouterr().err


def test_user_mistakes_are_named():
    q = Normal(DIM)
    for message, keywords in (
        ("not both", {"generator": torch.Generator(), "seed": 1}),
        ("batch_size is 0", {"batch_size": 0}),
        ("moves 0", {"moves": 0}),
        ("unknown resampling scheme 'bootstrap'", {"resampling": "bootstrap"}),
        ("resampling_threshold is 2", {"resampling_threshold": 2.0}),
        ("must rise", {"temperatures": [0.5, 0.4, 1.0]}),
        ("must rise", {"temperatures": [0.5, 0.9]}),
        ("temperatures must be an object such as .* got 10", {"temperatures": 10}),
        ("temperatures must be an object such as .* got 'adaptive'", {"temperatures": "adaptive"}),
        (r"kernel must be an object such as HMC\(\), got <class", {"kernel": HMC}),
        (r"step_sizes must be an object such as .*FixedStepSizes\(\[s\]\), got 0.1", {"step_sizes": 0.1}),
    ):
        with pytest.raises(ValueError, match=message):
            smc(q, TARGET, 10, **keywords)
    with pytest.raises(ValueError, match="wrap a reduced energy"):
        smc(q, energy, 10)
    with pytest.raises(ValueError, match="num_samples is 1"):
        smc(q, TARGET, 1)
    for options in ({"num_samples": 1e3}, {"moves": 1.5}, {"num_draws": 1e3}, {"batch_size": 50.0}):
        with pytest.raises(ValueError, match="smc: .* pass (an integer|integers)"):
            smc(q, TARGET, **{"num_samples": 10} | options)
    with pytest.raises(ValueError, match=r"has no sample_and_log_prob"):
        smc(object(), TARGET, 10)
    with pytest.raises(TypeError, match="context"):
        smc(q, TARGET, 10, context=torch.zeros(1, 1))
    with pytest.raises(ValueError, match="between 0 and 1"):
        AdaptiveTemperatures(1.0)
    with pytest.raises(ValueError, match="positive, finite numbers"):
        FixedStepSizes([0.1, 0.0])
    assert FixedTemperatures([0, 0.5, 1]).inverse_temperatures == (0.5, 1.0)


@pytest.mark.parametrize(
    "temperatures", [np.array([0.0, 0.5, 1.0]), torch.tensor([0.5, 1.0]), (0.5, 1), iter([0.5, 1.0])], ids=type
)
def test_numbers_of_any_library_are_numbers(temperatures, tmp_path):
    checkpoint = tmp_path / "run.npz"
    integers = {"moves": np.int64(1), "seed": np.int64(3), "resampling_threshold": np.float32(0.5)}
    steps = FixedStepSizes(np.array([0.3, 0.2]))
    samples = smc(
        Normal(DIM),
        TARGET,
        np.int64(50),
        temperatures=temperatures,
        step_sizes=steps,
        checkpoint=checkpoint,
        **integers,
    )
    expected = smc(Normal(DIM), TARGET, 50, temperatures=[0.5, 1.0], step_sizes=FixedStepSizes([0.3, 0.2]), seed=3)
    assert torch.equal(samples.x, expected.x) and samples.history.inverse_temperatures == [0.5, 1.0]


@pytest.mark.parametrize("name", ["MALA", "HMC", "ULA"])
def test_final_moves_are_of_the_target_alone(name):
    class Counted(Normal):
        calls = 0

        def log_prob(self, x):
            Counted.calls += 1
            return super().log_prob(x)

    settings = {"kernel": KERNELS[name], "temperatures": [0.3, 1.0], "seed": 0}
    before = smc(Counted(DIM), TARGET, 400, **settings)
    calls = Counted.calls
    after = smc(Counted(DIM), TARGET, 400, final_moves=30, **settings)
    assert Counted.calls == 2 * calls + 1
    assert after.history.inverse_temperatures == [0.3, 1.0, 1.0]
    assert len(after.history.step_sizes) == 2 + 30
    assert after.history.conditional_ess_fraction == [*before.history.conditional_ess_fraction, 1.0]
    torch.testing.assert_close(after.log_prob, Normal(DIM).log_prob(after.x))
    assert within(after, LOG_NORMALIZER)
    # Far from where they were, and of the target's distribution: N(2, 1/4) in each direction.
    assert (after.x - before.x).square().mean() > 0.3 * 2 * 0.25
    mean, error = after.expectation(lambda x: x.mean(dim=-1))
    assert abs(mean - SHIFT) < 4 * error


def test_final_moves_need_a_kernel_that_leaves_the_proposal_alone():
    with pytest.raises(ValueError, match="draws from it"):
        smc(Normal(DIM), TARGET, 10, kernel=IndependentMetropolis(), final_moves=1)
    with pytest.raises(ValueError, match="final_moves -1"):
        smc(Normal(DIM), TARGET, 10, final_moves=-1)


def test_final_moves_need_a_proposal_that_covers_the_target():
    box = torch.distributions.Uniform(0.0, 1.0)
    wide = BoltzmannDensity(lambda x: 0.5 * ((x - 0.5) / 0.6).square())
    with pytest.raises(
        ValueError, match=r"the final moves led \d+ of 100 particles to where the proposal has no density"
    ):
        smc(box, wide, 100, kernel=MALA(0.3), final_moves=5, seed=0)
    samples = smc(box, wide, 100, kernel=MALA(0.3), moves=5, seed=0)
    assert ((samples.x > 0) & (samples.x < 1)).all()


class Rule:
    """Of temperatures or of step sizes, a user's own."""

    def __init__(self, chosen):
        self.chosen = chosen

    def next(self, current, *further):
        return self.chosen(current)

    def first(self, *particles):
        return self.chosen(0.0)


@pytest.mark.parametrize("wrong", [0.0, -0.5, 2.0, math.nan, None, "hot", torch.ones(2)], ids=str)
def test_rules_of_ones_own_that_lead_nowhere(wrong):
    with pytest.raises(ValueError, match="the rule Rule gave .* as the inverse temperature after 0.0"):
        smc(Normal(DIM), TARGET, 20, temperatures=Rule(lambda current: wrong), seed=0)
    if not isinstance(wrong, float) or wrong != 2.0:
        with pytest.raises(ValueError, match="the rule of step sizes gave"):
            smc(Normal(DIM), TARGET, 20, step_sizes=Rule(lambda current: wrong), seed=0)


@pytest.mark.parametrize("number", [torch.tensor, np.float32])
def test_rules_of_ones_own_give_numbers_of_any_library(number, tmp_path):
    temperatures, steps = Rule(lambda current: number(min(current + 0.5, 1.0))), Rule(lambda current: number(0.25))
    settings = {"temperatures": temperatures, "step_sizes": steps, "seed": 0, "checkpoint": tmp_path / "run.npz"}
    samples = smc(Normal(DIM), TARGET, 20, **settings)
    assert samples.history.inverse_temperatures == [0.5, 1.0] and samples.history.step_sizes == [0.25, 0.25]
    assert torch.equal(smc(Normal(DIM), TARGET, 20, **settings).x, samples.x)


def test_a_kernel_of_two_methods():
    class Still:
        def init(self, particles, path):
            return particles

        def step(self, particles, path, inverse_temperature, step_size, generator):
            return particles, Move(torch.ones(len(particles.x), dtype=torch.float64), None, 0)

    x = torch.zeros(5, DIM)
    assert torch.equal(run_chains(TARGET, x, 3, kernel=Still(), seed=0).x, x)
    assert len(smc(Normal(DIM), TARGET, 20, kernel=Still(), seed=0)) == 20
    stepping = Still()
    stepping.step_size = 0.1
    with pytest.raises(ValueError, match="the kernel Still has no target_acceptance"):
        smc(Normal(DIM), TARGET, 20, kernel=stepping, seed=0)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("threshold", [0.0, 0.5])
def test_the_better_of_many_draws_are_moved(name, threshold):
    settings = {"kernel": KERNELS[name], "seed": 0, "resampling_threshold": threshold}
    samples = smc(Normal(DIM), TARGET, 1000, num_draws=20_000, **settings)
    plain = smc(Normal(DIM), TARGET, 1000, **settings)
    assert len(samples) == 1000 and within(samples, LOG_NORMALIZER)
    history = samples.history
    assert history.resampled[0] and len(history) < len(plain.history)
    assert history.inverse_temperatures[0] > 3 * plain.history.inverse_temperatures[0]
    assert history.effective_sample_size[0] == pytest.approx(0.9 * 1000, rel=0.01)
    assert history.num_particles[0] == 20_000 and set(history.num_particles[1:]) == {1000}
    assert history.num_ancestors[0] > 600
    assert samples.ancestors.max() > 1000
    fixed = smc(Normal(DIM), TARGET, 1000, num_draws=20_000, temperatures=[0.3, 1.0], **settings)
    assert fixed.history.inverse_temperatures == [0.3, 1.0] and within(fixed, LOG_NORMALIZER)


def test_of_many_draws_none_may_be_left():
    nowhere = BoltzmannDensity(lambda x: x.sum(dim=-1) * torch.nan)
    samples = smc(Normal(DIM), nowhere, 40, num_draws=100, seed=0)
    assert len(samples) == 40 and samples.num_rejected == 100
    assert samples.log_normalizer == -math.inf
    with pytest.raises(ValueError, match="num_draws is 10, fewer"):
        smc(Normal(DIM), TARGET, 40, num_draws=10)


def test_draws_of_another_density_are_refused():
    draws = importance_sample(Normal(DIM), TARGET, 200, seed=0)
    with pytest.raises(ValueError, match="the draws are of another target"):
        smc(Normal(DIM), TARGET, 100, draws=draws.reweight(BoltzmannDensity(lambda x: 0.0 * x.sum(dim=1))))
    with pytest.raises(ValueError, match="the draws are of another proposal"):
        smc(Normal(DIM), TARGET, 100, draws=dataclasses.replace(draws, log_prob=draws.log_prob - 1.0))


def test_draws_that_are_there_are_not_drawn_again():
    class Exhausted(Normal):
        def sample_and_log_prob(self, num_samples, *, generator=None):
            raise AssertionError("drawn again")

    draws = importance_sample(Normal(DIM), TARGET, 20_000, seed=1)
    samples = smc(Exhausted(DIM), TARGET, 1000, draws=draws, seed=0)
    assert len(samples) == 1000 and within(samples, LOG_NORMALIZER)
    assert samples.history.num_particles[0] == 20_000
    everyone = smc(Exhausted(DIM), TARGET, 20_000, draws=draws, seed=0)
    assert within(everyone, LOG_NORMALIZER) and everyone.history.num_evaluations[0] > 20_000
    for wrong, words in (
        ({"draws": draws, "num_draws": 20_000}, "both draws and num_draws"),
        ({"draws": draws.truncate(0.1)}, "not clipped"),
        ({"draws": dataclasses.replace(draws, log_prob=None)}, "both densities"),
        ({"draws": importance_sample(Normal(DIM), TARGET, 10, seed=1)}, "num_draws is 10, fewer"),
    ):
        with pytest.raises(ValueError, match=words):
            smc(Normal(DIM), TARGET, 1000, **wrong)


@pytest.mark.parametrize("kernel", [MALA(), ULA(), HMC()])
def test_a_constant_density_has_gradient_zero(kernel):
    box = torch.distributions.Independent(torch.distributions.Uniform(-torch.ones(2), 2 * torch.ones(2)), 1)
    target = BoltzmannDensity(lambda x: 2.0 * x.square().sum(dim=-1))
    samples = smc(box, target, 1000, kernel=kernel, seed=0)
    exact = math.log(math.pi / 2) + 2 * math.log((math.erf(2**0.5) + math.erf(2 * 2**0.5)) / 2)
    assert abs(samples.log_normalizer - exact) < 3 * samples.log_normalizer_standard_error < 0.3
    half = torch.distributions.Independent(torch.distributions.Uniform(torch.zeros(2), torch.ones(2)), 1)
    assert smc(half, box, 50, kernel=kernel, temperatures=[1.0], seed=0).log_normalizer == pytest.approx(-math.log(9))


def test_options_are_checked_without_densities():
    check_smc_options(10, 20, kernel=MALA(), moves=2, final_moves=3)
    check_smc_options(10, kernel=IndependentMetropolis())
    wrong: list[tuple[tuple[int, ...], dict[str, object], str]] = [
        ((10,), {"moves": 0}, "moves 0"),
        ((10, 9), {}, "num_draws is 9"),
        ((10,), {"kernel": IndependentMetropolis(), "final_moves": 1}, "final_moves ask the proposal nothing"),
    ]
    for counts, options, message in wrong:
        with pytest.raises(ValueError, match=message):
            check_smc_options(*counts, **options)  # type: ignore[arg-type]
