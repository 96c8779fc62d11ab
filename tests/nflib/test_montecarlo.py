"""Importance sampling with known normalisers; resampling and expected counts; diagnostics against peers."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from nflows.distributions import ConditionalDiagonalNormal, Distribution, StandardNormal
from nflows.flows import Flow as NFlowsFlow
from nflows.transforms import IdentityTransform
from scipy import stats
from torch import Tensor

import nflib
from nflib.montecarlo import (
    BoltzmannDensity,
    IndependentMetropolis,
    Mixture,
    WeightedSamples,
    as_proposal,
    as_target,
    diagnostics,
    effective_sample_size,
    importance_sample,
    normalized_weights,
    pareto_k,
    resample,
    smc,
)
from nflib.montecarlo.diagnostics import error_inflation, tail_size
from nflib.montecarlo.genealogy import Resamplings, offspring_variance
from nflib.montecarlo.resampling import SCHEMES

DIM = 3
SHIFT = 0.4
LOG_NORMALIZER = 0.5 * DIM * math.log(2 * math.pi)  # of exp(-|x - shift|^2 / 2)


def shifted_energy(x: Tensor) -> Tensor:
    return 0.5 * (x.double() - SHIFT).square().sum(dim=-1)


TARGET = BoltzmannDensity(shifted_energy)


class SeededNormal(Distribution):
    """A proposal that takes a generator and remembers how it was called."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[int] = []

    def sample_and_log_prob(self, num_samples, *, generator=None):
        self.calls.append(num_samples)
        x = torch.randn(num_samples, DIM, generator=generator)
        return x, StandardNormal([DIM]).log_prob(x)


def weighted(log_weights) -> WeightedSamples:
    log_weights = torch.as_tensor(log_weights, dtype=torch.float64)
    return WeightedSamples(torch.arange(len(log_weights), dtype=torch.float32)[:, None], log_weights)


# --- importance sampling


def test_known_normalizer_and_moments():
    samples = importance_sample(StandardNormal([DIM]), TARGET, 20000, batch_size=3000, seed=1)
    assert len(samples) == 20000 and samples.num_rejected == 0
    assert samples.log_weights.dtype == torch.float64
    assert samples.warning is None and "effective sample size" in str(samples)
    error = samples.log_normalizer_standard_error
    # var(w)/mean(w)^2 = exp(d shift^2) - 1
    assert error == pytest.approx(math.sqrt((math.exp(DIM * SHIFT**2) - 1) / 20000), rel=0.1)
    assert abs(samples.log_normalizer - LOG_NORMALIZER) < 4 * error
    assert samples.effective_sample_size_fraction == pytest.approx(math.exp(-DIM * SHIFT**2), rel=0.1)
    mean, mean_error = samples.expectation(lambda x: x)
    assert mean.shape == mean_error.shape == (DIM,)
    assert ((mean - SHIFT).abs() < 4 * mean_error).all()
    second, second_error = samples.expectation(lambda x: x[:, 0] ** 2)
    assert abs(second - (1 + SHIFT**2)) < 4 * second_error
    assert samples.pareto_k < 0.5


def test_standard_errors_are_calibrated():
    normalizer, mean = [], []
    for seed in range(200):
        samples = importance_sample(SeededNormal(), TARGET, 400, seed=seed)
        normalizer.append((samples.log_normalizer - LOG_NORMALIZER) / samples.log_normalizer_standard_error)
        value, error = samples.expectation(lambda x: x[:, 0])
        mean.append(((value - SHIFT) / error).item())
    for scores in (np.array(normalizer), np.array(mean)):
        # standard deviation of 200 standard normal scores: 1 +- 0.05; errors are wider than that, so that they cover
        assert 0.7 < scores.std() < 1.1
        assert abs(scores.mean()) < 0.3


def test_poisoned_samples_get_weight_zero_and_are_counted():
    class Poisoned(SeededNormal):
        def sample_and_log_prob(self, num_samples, *, generator=None):
            x, log_prob = super().sample_and_log_prob(num_samples, generator=generator)
            x[0, 1], x[1, 0] = torch.nan, torch.inf
            log_prob[2], log_prob[3] = torch.nan, -torch.inf
            return x, log_prob

    seen = []

    def energy(x: Tensor) -> Tensor:
        seen.append(torch.isfinite(x).all().item())
        u = shifted_energy(x)
        u[-1], u[-2], u[-3] = torch.nan, torch.inf, -torch.inf
        return u

    samples = importance_sample(Poisoned(), BoltzmannDensity(energy), 8000, batch_size=2000, seed=0)
    assert all(seen) and len(seen) == 4
    assert samples.num_rejected == 4 * 7
    assert (samples.weights == 0).sum() == 28
    assert samples.weights.sum().item() == pytest.approx(1)
    # the rejected samples still count in N: the normaliser shifts by the rejected fraction only
    assert abs(samples.log_normalizer - LOG_NORMALIZER) < 4 * samples.log_normalizer_standard_error + 28 / 8000
    value, error = samples.expectation(lambda x: x)
    assert torch.isfinite(value).all() and torch.isfinite(error).all()
    assert torch.isfinite(samples.resample(500, torch.Generator().manual_seed(0))).all()
    assert math.isfinite(samples.pareto_k)


def test_all_rejected_is_reported_not_raised():
    infinite = BoltzmannDensity(lambda x: torch.full((len(x),), torch.inf))
    samples = importance_sample(StandardNormal([DIM]), infinite, 50, seed=0)
    summary = samples.summary()
    assert summary["num_rejected"] == 50 and summary["effective_sample_size"] == 0.0
    assert samples.log_normalizer == -math.inf and samples.log_normalizer_standard_error == math.inf
    assert summary["log_normalizer"] is summary["log_normalizer_standard_error"] is summary["pareto_k"] is None
    assert "worth 0.0 independent draws" in summary["warning"]
    json.dumps(summary, allow_nan=False)
    with pytest.raises(ValueError, match="no sample has a finite positive weight"):
        samples.resample(3)

    class Broken(SeededNormal):
        def sample_and_log_prob(self, num_samples, *, generator=None):
            return torch.full((num_samples, DIM), torch.nan), torch.zeros(num_samples)

    assert importance_sample(Broken(), TARGET, 5).num_rejected == 5


def test_rejecting_a_region_gives_the_normalizer_of_the_rest():
    """Infinite energy is a legitimate part of the target: half of space removed halves Z."""
    half = BoltzmannDensity(lambda x: torch.where(x[:, 0] > SHIFT, shifted_energy(x), torch.inf))
    samples = importance_sample(StandardNormal([DIM]), half, 20000, seed=3)
    error = samples.log_normalizer_standard_error
    assert abs(samples.log_normalizer - (LOG_NORMALIZER - math.log(2))) < 4 * error


@pytest.mark.parametrize("proposal", [StandardNormal([DIM]), SeededNormal()], ids=["global", "generator"])
def test_same_seed_same_samples(proposal):
    state = torch.get_rng_state()
    first = importance_sample(proposal, TARGET, 100, batch_size=30, seed=5)
    assert torch.equal(torch.get_rng_state(), state)  # the global generator is left alone
    torch.manual_seed(77)
    generator = torch.Generator().manual_seed(5)
    second = importance_sample(proposal, TARGET, 100, batch_size=30, generator=generator)
    assert torch.equal(first.x, second.x) and torch.equal(first.log_weights, second.log_weights)
    third = importance_sample(proposal, TARGET, 100, batch_size=30, generator=generator)
    assert not torch.equal(first.x, third.x)
    assert len(torch.unique(first.x[:, 0])) == 100  # batches do not repeat each other
    torch.set_rng_state(state)


def test_batches_and_progress(capsys):
    proposal = SeededNormal()
    importance_sample(proposal, TARGET, 250, batch_size=100, progress=True)
    assert proposal.calls == [100, 100, 50]
    assert "importance sampling" in capsys.readouterr().err


def test_a_proposal_takes_no_context():
    """What needs one is given it first: here the conditional distribution itself is the target."""
    conditional = ConditionalDiagonalNormal([DIM])
    context = torch.cat([torch.full((1, DIM), SHIFT), torch.zeros(1, DIM)], dim=1)

    class Given:
        def log_prob(self, x):
            return conditional.log_prob(x, context.expand(len(x), -1))

        def sample_and_log_prob(self, num_samples, *, generator=None):
            x = SHIFT + torch.randn(num_samples, DIM, generator=generator)
            return x, self.log_prob(x)

    samples = importance_sample(Given(), TARGET, 300, seed=0)
    assert samples.log_normalizer == pytest.approx(LOG_NORMALIZER, abs=1e-5)
    assert samples.effective_sample_size_fraction == pytest.approx(1, abs=1e-5)
    with pytest.raises(TypeError, match="context"):
        importance_sample(conditional, TARGET, 300, context=context)


TORCH_NORMAL = torch.distributions.MultivariateNormal(torch.zeros(DIM), torch.eye(DIM))


@pytest.mark.parametrize(
    "foreign",
    [
        TORCH_NORMAL,
        torch.distributions.Independent(torch.distributions.Normal(torch.zeros(DIM), torch.ones(DIM)), 1),
        StandardNormal([DIM]),
        NFlowsFlow(IdentityTransform(), StandardNormal([DIM])),
    ],
    ids=lambda density: type(density).__name__,
)
def test_foreign_proposals_are_adapted(foreign):
    proposal = as_proposal(foreign)
    state = torch.get_rng_state()
    (x, log_prob), (again, _) = (
        proposal.sample_and_log_prob(50, generator=torch.Generator().manual_seed(4)) for _ in range(2)
    )
    assert torch.equal(torch.get_rng_state(), state)  # the global generator is left alone
    assert x.shape == (50, DIM) and torch.equal(x, again) and not x.requires_grad
    torch.testing.assert_close(log_prob, TORCH_NORMAL.log_prob(x))
    torch.testing.assert_close(proposal.log_prob(x), log_prob)
    assert proposal.sample_and_log_prob(2)[0].shape == (2, DIM)
    assert as_proposal(proposal) is proposal
    samples = importance_sample(foreign, TARGET, 2000, seed=0)
    assert abs(samples.log_normalizer - LOG_NORMALIZER) < 3 * samples.log_normalizer_standard_error


def test_our_own_proposals_are_taken_as_they_are():
    for own in (SeededNormal(), nflib.Flow(IdentityTransform(), StandardNormal([DIM]))):
        assert as_proposal(own) is own
    with pytest.raises(ValueError, match=r"batch shape \(3,\) is many densities.*Independent\(distribution, 1\)"):
        as_proposal(torch.distributions.Normal(torch.zeros(3), 1.0))
    with pytest.raises(ValueError, match=r"batch shape \(3,\)"):
        as_target(torch.distributions.Normal(torch.zeros(3), 1.0))
    with pytest.raises(ValueError, match="no sample_and_log_prob"):
        as_proposal(TARGET)


def test_a_torch_target_is_zero_outside_its_support():
    target = as_target(torch.distributions.Uniform(0.0, 2.0))
    x = torch.tensor([-1.0, 0.5, 3.0], requires_grad=True)
    found = target.log_prob(x)
    torch.testing.assert_close(found, torch.tensor([-math.inf, -math.log(2.0), -math.inf]))
    beta = as_target(torch.distributions.Independent(torch.distributions.Beta(torch.full((2,), 2.0), 2.0), 1))
    y = torch.tensor([[0.25, 0.5], [0.5, 1.5]], requires_grad=True)
    # log of 6 x (1 - x) each
    torch.testing.assert_close(beta.log_prob(y), torch.tensor([math.log(6 * 3 / 16 * 6 / 4), -math.inf]))
    (gradient,) = torch.autograd.grad(beta.log_prob(y)[:1].sum(), y)
    torch.testing.assert_close(gradient, torch.tensor([[1 / 0.25 - 1 / 0.75, 0.0], [0.0, 0.0]]))
    # A number each, not a vector of one: a normal proposal for the uniform distribution, of normaliser 1 and mean 1.
    samples = importance_sample(
        torch.distributions.Normal(1.0, 1.0), torch.distributions.Uniform(0.0, 2.0), 4000, seed=2
    )
    assert abs(samples.log_normalizer) < 3 * samples.log_normalizer_standard_error
    mean, error = samples.expectation(lambda x: x)
    assert abs(mean - 1.0) < 3 * error and error < 0.05


def test_user_mistakes_are_named():
    proposal = StandardNormal([DIM])
    with pytest.raises(ValueError, match="BoltzmannDensity"):
        importance_sample(proposal, shifted_energy, 10)
    with pytest.raises(ValueError, match="num_samples is 0"):
        importance_sample(proposal, TARGET, 0)
    with pytest.raises(ValueError, match="num_samples is 1000.0"):
        importance_sample(proposal, TARGET, 1e3)
    with pytest.raises(ValueError, match="batch_size 50.0"):
        importance_sample(proposal, TARGET, 100, batch_size=50.0)
    with pytest.raises(ValueError, match="not both"):
        importance_sample(proposal, TARGET, 5, generator=torch.Generator(), seed=1)
    with pytest.raises(ValueError, match="the target's log_prob returned"):
        importance_sample(proposal, BoltzmannDensity(lambda x: x), 5)
    with pytest.raises(ValueError, match="the target's log_prob returned a ndarray; return a tensor"):
        importance_sample(proposal, BoltzmannDensity(lambda x: x.sum(1).numpy()), 5)


def test_proposals_of_ones_own_that_do_not_draw_as_asked():
    class Own:
        further = 0

        def sample_and_log_prob(self, num_samples, *, generator=None):
            return torch.randn(num_samples + self.further, DIM, generator=generator), torch.zeros(num_samples)

        def log_prob(self, x):
            return torch.zeros(len(x))

    class WithoutGenerator(Own):
        def sample_and_log_prob(self, num_samples):
            return super().sample_and_log_prob(num_samples)

    with pytest.raises(ValueError, match=r"sample_and_log_prob \(WithoutGenerator\) takes no generator"):
        importance_sample(WithoutGenerator(), TARGET, 5)
    more = Own()
    more.further = 1
    for proposal in (more, Mixture([more])):
        with pytest.raises(ValueError, match=rf"returned positions of shape \(6, {DIM}\) for 5 samples"):
            importance_sample(proposal, TARGET, 5)


# --- weighted samples


def test_effective_sample_size_limits():
    equal = weighted(torch.full((64,), 3.0))
    assert equal.effective_sample_size == pytest.approx(64)
    assert equal.effective_sample_size_fraction == pytest.approx(1)
    assert equal.log_normalizer == pytest.approx(3.0)
    assert equal.log_normalizer_standard_error == pytest.approx(0, abs=1e-7)
    assert math.isnan(equal.pareto_k)
    one = weighted([-math.inf] * 63 + [700.0])
    assert one.effective_sample_size == pytest.approx(1)
    assert one.effective_sample_size_fraction == pytest.approx(1 / 64)
    assert one.log_normalizer == pytest.approx(700 - math.log(64))
    assert one.log_normalizer_standard_error == math.inf and one.pareto_k == math.inf
    half = weighted([0.0] * 50 + [-math.inf] * 50)
    assert half.effective_sample_size == pytest.approx(50)
    assert half.warning is None and half.log_normalizer == pytest.approx(-math.log(2))
    assert half.log_normalizer_standard_error == pytest.approx(math.sqrt(1 / 99))  # std(w) / (mean(w) sqrt(N))


def test_extreme_log_weights_do_not_overflow():
    samples = weighted(torch.tensor([1e5, 1e5 - 1.0, -1e5]))
    assert samples.log_normalizer == pytest.approx(1e5 + math.log1p(math.exp(-1)) - math.log(3))
    assert samples.weights.sum().item() == pytest.approx(1)


@pytest.mark.parametrize("weights", [[0.0], [0.0] * 9, [0.0] * 9 + [-math.inf] * 991, [0.0] * 5 + [-9.0] * 995])
def test_of_a_handful_of_samples_no_error_is_told(weights):
    samples = weighted(weights)
    value, error = samples.expectation(lambda x: torch.cat([x, x**2], dim=1))
    assert error.tolist() == [math.inf] * 2 and torch.isfinite(value).all()
    assert samples.log_normalizer_standard_error == math.inf
    assert "independent draws" in samples.refusal and samples.refusal == samples.warning
    assert samples.summary()["log_normalizer_standard_error"] is None


def test_of_a_tail_that_is_too_heavy_no_error_is_told():
    uniform = torch.rand(5000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    heavy, light = weighted(-0.9 * uniform.log()), weighted(-0.3 * uniform.log())
    assert heavy.effective_sample_size > 10 and "above 0.7" in heavy.refusal
    assert heavy.log_normalizer_standard_error == math.inf == heavy.expectation(lambda x: x)[1]
    assert light.refusal is None and light.log_normalizer_standard_error < 0.02


def test_standard_error_is_the_textbook_one_widened():
    """Of normal values by next to nothing; of skewed ones as far as Edgeworth's expansion says, if no tail is fit."""
    generator = torch.Generator().manual_seed(0)
    d = torch.randn(20_000, dtype=torch.float64, generator=generator)
    assert 1.0 <= error_inflation(d, fit_tails=True).item() < 1.02
    d = d.exp() - d.exp().mean()
    expected = 1 + 0.75 * stats.skew(d.numpy()) / math.sqrt(20_000)
    for sign in (1, -1):
        assert error_inflation(sign * d, fit_tails=False).item() == pytest.approx(expected, rel=1e-9)
    both = torch.stack([d, torch.zeros_like(d), -d], dim=1)
    for fit_tails in (False, True):
        one = error_inflation(d, fit_tails=fit_tails).item()
        found = error_inflation(both, fit_tails=fit_tails)
        torch.testing.assert_close(found, torch.tensor([one, 1.0, one], dtype=torch.float64))
    log_weights = 0.3 * torch.randn(500, dtype=torch.float64, generator=generator)
    w = log_weights.exp()
    samples = weighted(log_weights)
    textbook = (w.std() / (w.mean() * math.sqrt(500))).item()
    assert textbook < samples.log_normalizer_standard_error < 1.1 * textbook
    few = weighted(torch.zeros(30))  # of 0, 1, …, 29
    inflation = error_inflation(few.x - few.x.mean(), fit_tails=True)
    torch.testing.assert_close(few.expectation(lambda x: x)[1], few.x.double().std(0) / math.sqrt(30) * inflation)
    alone = WeightedSamples(samples.x, log_weights, ancestors=torch.arange(500))
    assert alone.log_normalizer_standard_error == pytest.approx(samples.log_normalizer_standard_error, rel=1e-9)


@pytest.mark.parametrize("k", [-0.3, 0.0, 0.3, 0.5, 0.8, 1.0])
def test_squares_of_a_fitted_tail_are_those_of_its_quantiles(k, monkeypatch):
    """The largest are below 1: with the shape and scale given, the squares follow by averaging over quantiles."""
    number, scale = tail_size(1000), torch.tensor([0.7], dtype=torch.float64)
    error = 0.5 / math.sqrt(number)
    shape = torch.tensor([(k - error) / (1 + error)], dtype=torch.float64)  # half a standard error above it is k
    monkeypatch.setattr(diagnostics, "generalized_pareto_fit", lambda excesses: (shape, scale))
    d = torch.linspace(0, 1, 1000, dtype=torch.float64)
    v = 0.05 / number + (1 - 0.05 / number) * (np.arange(10**6) + 0.5) / 10**6
    excess = stats.genpareto(k, scale=0.7).isf(v)
    threshold = d[-number - 1].item()
    expected = number * ((threshold + excess) ** 2).mean() - d[-number:].square().sum().item()
    assert diagnostics._missed_squares(d[:, None]).item() == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize(("sigma", "widest"), [(0.3, 1.15), (1.0, 1.9), (2.0, 2.0)])
def test_standard_errors_of_skewed_weights(sigma, widest):
    """Log-normal weights, 400 runs of 300: the truth is not missed on the low side, at no great width elsewhere."""
    generator = torch.Generator().manual_seed(0)
    log_weights = sigma * torch.randn(400, 300, dtype=torch.float64, generator=generator) - sigma**2 / 2
    runs = [run for run in map(weighted, log_weights) if run.refusal is None]
    errors = np.array([run.log_normalizer for run in runs])
    reported = np.array([run.log_normalizer_standard_error for run in runs])
    assert len(runs) > (380 if sigma < 2 else 10)
    for multiple, least in ((1, 0.63), (2, 0.92), (3, 0.97)):  # 95 % of 400 is 95 ± 1 %
        assert (np.abs(errors) < multiple * reported).mean() >= least
    assert 0.9 < np.median(reported) / np.sqrt(np.mean(errors**2)) < widest


def test_complex_expectations_are_refused_not_cut():
    samples = weighted(torch.zeros(100))
    with pytest.raises(ValueError, match="complex numbers; return torch.view_as_real"):
        samples.expectation(lambda x: torch.exp(1j * x))
    value, _ = samples.expectation(lambda x: torch.view_as_real(torch.exp(1j * x[:, 0])))
    torch.testing.assert_close(
        value, torch.stack([torch.arange(100.0).cos(), torch.arange(100.0).sin()]).double().mean(1)
    )


def test_reweighting_to_another_target():
    """From a normal density to others: normalisers and moments in closed form, over 60 runs within their errors."""
    narrow = BoltzmannDensity(lambda x: 0.75 * (x - 0.2).square().sum(dim=-1))  # variance 2/3 around 0.2
    log_normalizer = 0.5 * DIM * math.log(2 * math.pi / 1.5)
    scores = []
    for seed in range(60):
        samples = importance_sample(TORCH_NORMAL, TARGET, 1000, seed=seed)
        again = samples.reweight(narrow, batch_size=300)
        direct = importance_sample(TORCH_NORMAL, narrow, 1000, seed=seed)
        torch.testing.assert_close(again.log_weights, direct.log_weights)
        assert again.log_normalizer_standard_error == pytest.approx(direct.log_normalizer_standard_error)
        mean, error = again.expectation(lambda x: x[:, 0])
        scores.append((again.log_normalizer - log_normalizer) / again.log_normalizer_standard_error)
        scores.append(((mean - 0.2) / error).item())
    assert 0.7 < np.std(scores) < 1.15 and abs(np.mean(scores)) < 0.3


def test_reweighting_knows_what_it_needs():
    half_space = BoltzmannDensity(lambda x: torch.where(x[:, 0] > 0, 0.0, torch.inf))
    samples = importance_sample(TORCH_NORMAL, half_space, 2000, seed=0)
    assert samples.num_rejected > 900
    # log q is known everywhere: what the first target has no weight for has some now
    whole = samples.reweight(TARGET)
    assert whole.num_rejected == 0
    assert abs(whole.log_normalizer - LOG_NORMALIZER) < 3.5 * whole.log_normalizer_standard_error
    # particles know their present target alone, and what is dead stays dead
    alive = samples.log_weights > -torch.inf
    moved = dataclasses.replace(samples, log_prob=None, log_weights=torch.where(alive, 0.0, -torch.inf))
    half = moved.reweight(BoltzmannDensity(lambda x: x[:, 1]))
    torch.testing.assert_close(half.log_weights[alive], -samples.x[alive, 1].double())
    assert (half.log_weights[~alive] == -torch.inf).all() and half.num_rejected == samples.num_rejected
    # a particle without weight is not rejected once more, though its target is known
    light = dataclasses.replace(moved, log_weights=torch.where(alive & (samples.x[:, 1] > 0), 0.0, -torch.inf))
    assert light.reweight(TARGET).num_rejected == samples.num_rejected
    none = moved.reweight(BoltzmannDensity(lambda x: x[:, 1] * torch.nan))
    assert none.effective_sample_size == 0 and none.num_rejected == 2000
    with pytest.raises(ValueError, match="neither log_prob nor log_target"):
        weighted([0.0, 1.0]).reweight(TARGET)
    with pytest.raises(ValueError, match="clipped"):
        whole.truncate(0.1).reweight(TARGET)
    with pytest.raises(ValueError, match="no log_prob"):
        whole.reweight(shifted_energy)


def test_truncate_marks_and_reports_both():
    log_weights = torch.tensor([0.0, 9.0, 1.0, -math.inf, 2.0, 8.0, 0.5, 0.1, 0.2, 0.3])
    samples = weighted(log_weights)
    clipped = samples.truncate(0.2)
    assert clipped.x.flatten().tolist() == [0, 2, 3, 4, 6, 7, 8, 9]  # order kept, the two largest gone
    assert clipped.clipped == 0.2 and clipped.unclipped is samples and samples.clipped == 0
    assert len(samples) == 10
    summary = clipped.summary()
    assert summary["clipped"] == 0.2 and summary["num_samples"] == 8
    assert summary["unclipped"] == samples.summary()
    assert summary["effective_sample_size_fraction"] > samples.effective_sample_size_fraction
    assert "unclipped" not in samples.summary()
    assert len(samples.truncate(0.002)) == 9  # at least one
    with pytest.raises(ValueError, match="already"):
        clipped.truncate(0.1)
    with pytest.raises(ValueError, match="strictly between"):
        samples.truncate(1.0)


def test_truncated_samples_remember_what_was_resampled():
    samples = WeightedSamples(torch.zeros(200, 1), torch.zeros(200), resamplings=Resamplings(pareto_k=1.2))
    clipped = samples.truncate(0.01)
    assert clipped.pareto_k == 1.2 and clipped.refusal == samples.refusal and "Pareto k" in clipped.refusal


def test_save_and_load(tmp_path, monkeypatch):
    samples = importance_sample(StandardNormal([DIM]), TARGET, 200, seed=0)
    path = tmp_path / "samples.npz"
    samples.save(path)
    loaded = WeightedSamples.load(path)
    for name in ("x", "log_weights", "log_prob", "log_target"):
        assert torch.equal(getattr(loaded, name), getattr(samples, name)), name
        assert getattr(loaded, name).dtype == getattr(samples, name).dtype
    clipped = samples.truncate(0.01)
    clipped.save(path)
    loaded = WeightedSamples.load(path)
    assert loaded.summary() == clipped.summary() and torch.equal(loaded.x, clipped.x)
    bare = weighted([0.0, 1.0])
    bare.save(path)
    assert WeightedSamples.load(path).log_prob is None
    with pytest.raises(FileNotFoundError, match="missing"):
        WeightedSamples.load(tmp_path / "missing.npz")
    kept = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", lambda file, **arrays: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            samples.save(path)
    assert path.read_bytes() == kept and [file.name for file in tmp_path.iterdir()] == [path.name]
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(ValueError, match=r"no \.npz"):
        WeightedSamples.load(tmp_path / "text.npz")
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    with pytest.raises(ValueError, match="lacks"):
        WeightedSamples.load(tmp_path / "other.npz")


def test_samples_of_discrete_distributions_are_saved_and_resumed(tmp_path):
    uniform, rising = (torch.distributions.Categorical(torch.tensor(p)) for p in ([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]))
    settings = {"kernel": IndependentMetropolis(), "seed": 0, "checkpoint": tmp_path / "run.npz"}
    moved, again = (smc(uniform, rising, 50, **settings) for _ in range(2))
    assert moved.x.dtype == again.x.dtype == torch.int64 and torch.equal(moved.x, again.x)
    moved.save(tmp_path / "samples.npz")
    loaded = WeightedSamples.load(tmp_path / "samples.npz")
    assert torch.equal(loaded.x, moved.x) and loaded.x.dtype == torch.int64


def test_a_function_of_numpy_has_an_expectation():
    samples = weighted(torch.zeros(100))
    assert samples.expectation(lambda x: x[:, 0].numpy()) == samples.expectation(lambda x: x[:, 0])


def test_the_probability_of_a_rare_event_has_no_error():
    samples = weighted(torch.zeros(1000))
    rows = torch.arange(1000)
    events = torch.stack([rows < count for count in (0, 4, 5, 500, 995, 996, 1000)], dim=1)
    mean, error = samples.expectation(lambda x: events)
    assert error.isinf().tolist() == [True, True, False, False, False, True, True]
    torch.testing.assert_close(mean, events.double().mean(0))
    assert torch.equal(error[2:5], samples.expectation(lambda x: events.double())[1][2:5])
    # Of 500 particles few may descend from different draws.
    related = dataclasses.replace(samples, ancestors=torch.cat([rows[:500] % 4, rows[500:]]))
    assert related.expectation(lambda x: events)[1][3] == math.inf


def test_arrays_of_numpy_are_taken():
    x, log_prob, log_target = np.zeros((50, 1)), np.zeros(50), np.linspace(-1.0, 0.0, 50)
    samples = WeightedSamples.from_log_densities(x, log_prob, log_target)
    expected = WeightedSamples(torch.zeros(50, 1), torch.as_tensor(log_target))
    assert torch.equal(samples.log_weights, expected.log_weights)
    assert WeightedSamples(x, log_target).log_normalizer == expected.log_normalizer
    assert effective_sample_size(log_target) == expected.effective_sample_size
    assert pareto_k(log_target) == pareto_k(expected.log_weights)
    assert resample(np.ones(3), 3).tolist() == [0, 1, 2]


def test_bfloat16_is_saved_as_float32(tmp_path):
    samples = WeightedSamples(torch.arange(5.0)[:, None].bfloat16(), torch.zeros(5), torch.zeros(5).bfloat16())
    samples.save(tmp_path / "samples.npz")
    loaded = WeightedSamples.load(tmp_path / "samples.npz")
    assert loaded.x.dtype == torch.float32 and torch.equal(loaded.x, samples.x.float())


def test_construction_mistakes():
    with pytest.raises(ValueError, match="NaN"):
        weighted([0.0, math.nan])
    with pytest.raises(ValueError, match="log_weights has shape"):
        WeightedSamples(torch.zeros(3, 1), torch.zeros(2))
    with pytest.raises(ValueError, match="no samples"):
        WeightedSamples(torch.zeros(0, 1), torch.zeros(0))
    with pytest.raises(ValueError, match="one value a sample"):
        weighted([0.0, 1.0]).expectation(lambda x: x.sum())
    for function in (effective_sample_size, normalized_weights, pareto_k):
        with pytest.raises(ValueError, match=r"log_weights have shape \(0,\)"):
            function(torch.zeros(0))
    known = WeightedSamples(torch.zeros(3, DIM), torch.zeros(3), torch.zeros(3))
    with pytest.raises(ValueError, match="batch_size must be an integer of 1 or more, got 0"):
        known.reweight(TARGET, batch_size=0)


# --- diagnostics


@pytest.mark.parametrize("shape", [-0.3, 0.2, 0.7, 1.2])
def test_generalized_pareto_is_recovered(shape):
    excesses = np.sort(stats.genpareto(shape, scale=3.0).rvs((8000, 2), random_state=1), axis=0)
    found, scale = diagnostics.generalized_pareto_fit(torch.from_numpy(excesses))
    assert found.tolist() == pytest.approx([shape] * 2, abs=0.06) and scale.tolist() == pytest.approx(
        [3.0] * 2, rel=0.1
    )


@pytest.mark.parametrize("degrees", [1.5, 4.0, 30.0])
@pytest.mark.parametrize("count", [60, 1000, 20000])
def test_pareto_k_agrees_with_arviz(degrees, count):
    import arviz

    log_weights = np.log(np.abs(stats.t(degrees).rvs(count, random_state=2))) + 17.0
    _, expected = arviz.psislw(log_weights.copy(), reff=1.0)
    assert diagnostics.pareto_k(torch.from_numpy(log_weights)) == pytest.approx(float(expected), abs=1e-8)


def test_pareto_k_is_scale_free_and_sees_heavy_tails():
    generator = torch.Generator().manual_seed(0)
    uniform = torch.rand(20000, generator=generator, dtype=torch.float64)
    for k in (0.3, 0.8, 1.5):
        log_weights = -k * uniform.log()  # exact Pareto weights of shape k
        assert diagnostics.pareto_k(log_weights) == pytest.approx(k, abs=0.15)
        assert diagnostics.pareto_k(log_weights + 300) == pytest.approx(diagnostics.pareto_k(log_weights))
    assert diagnostics.pareto_k(uniform[:10]) == math.inf
    # Errors of rounding or of a solver have a shape, too, and are no tail.
    heavy = (1e-7 * uniform**-1.5).clamp(max=1e-4)
    assert math.isnan(diagnostics.pareto_k(heavy))
    # many equal weights under a few larger ones have no heavy tail
    assert diagnostics.pareto_k(torch.tensor([0.0] * 996 + [0.7] * 4)) < 0.7


# --- resampling

WEIGHTS = torch.tensor([0.0, 3.0, 0.05, 1.0, 0.0, 7.3, 0.4, 2.25, 0.0])


@pytest.mark.parametrize("scheme", SCHEMES)
def test_counts_are_unbiased(scheme):
    """Mean counts over many runs equal `n w`, judged by the variance that the runs show."""
    generator = torch.Generator().manual_seed(0)
    num_samples, runs = 11, 2000
    counts = torch.stack(
        [torch.bincount(resample(WEIGHTS, num_samples, generator, scheme), minlength=len(WEIGHTS)) for _ in range(runs)]
    ).double()
    expected = num_samples * WEIGHTS.double() / WEIGHTS.double().sum()
    assert (counts.sum(1) == num_samples).all()
    assert (counts[:, WEIGHTS == 0] == 0).all()
    used = WEIGHTS > 0
    error = counts[:, used].std(0) / math.sqrt(runs)
    chi_square = ((counts[:, used].mean(0) - expected[used]) / error).square().sum().item()
    # The counts sum to a constant, so this bound has one degree of freedom to spare.
    assert chi_square < stats.chi2.ppf(1 - 1e-4, int(used.sum()))
    variance = counts[:, used].var(0)
    multinomial_variance = expected[used] * (1 - expected[used] / num_samples)
    if scheme == "multinomial":
        assert torch.allclose(variance, multinomial_variance, rtol=0.15)
    else:
        assert (variance <= 1.05 * multinomial_variance).all()


def test_multinomial_counts_pass_pearson():
    generator = torch.Generator().manual_seed(4)
    counts = torch.bincount(resample(WEIGHTS, 20000, generator, "multinomial"), minlength=len(WEIGHTS)).double()
    used = WEIGHTS > 0
    expected = 20000 * WEIGHTS.double() / WEIGHTS.double().sum()
    assert stats.chisquare(counts[used].numpy(), expected[used].numpy()).pvalue > 1e-3


@pytest.mark.parametrize(("scheme", "slack"), [("systematic", 1.0), ("stratified", 2.0)])
def test_low_variance_schemes_stay_near_the_expectation(scheme, slack):
    weights = torch.rand(500, generator=torch.Generator().manual_seed(0))
    counts = torch.bincount(resample(weights, 1200, torch.Generator().manual_seed(1), scheme), minlength=500)
    assert ((counts - 1200 * weights / weights.sum()).abs() < slack).all()


def test_residual_keeps_the_whole_part():
    weights = torch.tensor([0.25, 0.5, 0.25])
    assert resample(weights, 8, scheme="residual").tolist() == [0, 0, 1, 1, 1, 1, 2, 2]
    counts = torch.bincount(resample(WEIGHTS, 50, torch.Generator().manual_seed(0), "residual"), minlength=9)
    assert (counts >= (50 * WEIGHTS.double() / WEIGHTS.double().sum()).floor()).all()


@pytest.mark.parametrize("scheme", ["residual", "systematic"])
def test_equal_weights_keep_everyone_once(scheme):
    for count in range(2, 300):  # 49 / 49 is less than 1 in float64
        weights = torch.full((count,), 1 / count, dtype=torch.float64)
        assert offspring_variance(weights, scheme) == pytest.approx(0, abs=1e-9)
        if scheme == "residual":
            assert resample(weights, count, scheme=scheme).tolist() == list(range(count))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_resampling_many(scheme):
    """Large sets: right total, right mean, reproducible."""
    weights = torch.rand(100_000, generator=torch.Generator().manual_seed(0))
    first = resample(weights, 70_000, torch.Generator().manual_seed(2), scheme)
    assert first.shape == (70_000,) and first.dtype == torch.long
    assert torch.equal(first, resample(weights, 70_000, torch.Generator().manual_seed(2), scheme))
    assert (first.diff() >= 0).all()
    expected = (weights.double() * torch.arange(100_000)).sum() / weights.double().sum()
    assert first.double().mean() == pytest.approx(expected.item(), rel=0.01)


def test_resampled_points_follow_the_target():
    samples = importance_sample(StandardNormal([DIM]), TARGET, 20000, seed=8)
    for scheme in SCHEMES:
        x = samples.resample(5000, torch.Generator().manual_seed(0), scheme)
        assert x.shape == (5000, DIM)
        assert ((x.mean(0) - SHIFT).abs() < 0.08).all() and ((x.var(0) - 1).abs() < 0.15).all()


def test_resampling_mistakes():
    with pytest.raises(ValueError, match="unknown scheme"):
        resample(WEIGHTS, 5, scheme="bootstrap")
    with pytest.raises(ValueError, match="not negative"):
        resample(torch.tensor([1.0, -0.5, 1.0]), 5)
    with pytest.raises(ValueError, match="not all zero"):
        resample(torch.zeros(4), 5)
    with pytest.raises(ValueError, match="num_samples is 0"):
        resample(WEIGHTS, 0)
    with pytest.raises(ValueError, match="num_samples is 5.0"):
        resample(WEIGHTS, 5.0)


# --- coverage


@pytest.mark.parametrize("k", [0.3, 0.6])
def test_stated_errors_hold_the_truth(k):
    """100 runs with exact Pareto weights of shape k, of infinite variance from 0.5 on: mean 1 / (1 - k).

    Of the runs that state an error, 68 % and 95 % lie within one and two of them if it is right; five runs in a
    thousand are fewer by chance than 55 % and 87 %.
    """
    generator = torch.Generator().manual_seed(0)
    runs = [weighted(-k * row.log()) for row in torch.rand(100, 1000, dtype=torch.float64, generator=generator)]
    runs = [run for run in runs if run.refusal is None]
    assert len(runs) > (95 if k < 0.5 else 60)
    scores = np.abs([(run.log_normalizer + math.log(1 - k)) / run.log_normalizer_standard_error for run in runs])
    assert (scores < 1).mean() > 0.55 and (scores < 2).mean() > 0.87


def test_torch_densities_of_another_size_are_refused():
    def normal(size):
        return torch.distributions.Independent(torch.distributions.Normal(torch.zeros(size), 1.0), 1)

    with pytest.raises(ValueError, match=r"expected inputs of shape \(batch, 2\), got \(100, 1\)"):
        importance_sample(normal(1), normal(2), 100)
    with pytest.raises(ValueError, match="expected inputs of shape"):
        nflib.Flow(IdentityTransform(), normal(2)).log_prob(torch.zeros(5, 1))


def test_a_target_whose_density_is_an_estimate_is_refused():
    class Estimated:
        stochastic_density = True

        def log_prob(self, inputs):
            return -inputs.square().sum(-1)

    with pytest.raises(ValueError, match="the target estimates its log-density"):
        as_target(Estimated())


def test_samples_are_shown_in_a_line_and_resampled_by_seed():
    samples = WeightedSamples(torch.randn(8, 2), torch.zeros(8))
    assert repr(samples) == str(samples) and repr(samples).startswith("8 samples, effective sample size 8 (1.000)")
    assert torch.equal(samples.resample(5, seed=3), samples.resample(5, torch.Generator().manual_seed(3)))
    assert "No estimate can be trusted" in repr(WeightedSamples(torch.randn(8, 2), torch.full((8,), -torch.inf)))
