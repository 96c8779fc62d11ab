"""Importance sampling with known normalisers; resampling and expected counts; diagnostics against peers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from nflows.distributions import ConditionalDiagonalNormal, Distribution, StandardNormal
from scipy import stats
from torch import Tensor

from nflib.montecarlo import BoltzmannDensity, WeightedSamples, diagnostics, importance_sample, resample
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
        # standard deviation of 200 standard normal scores: 1 +- 0.05
        assert 0.82 < scores.std() < 1.18
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
    assert summary["log_normalizer"] == -math.inf and summary["log_normalizer_standard_error"] == math.inf
    assert summary["pareto_k"] == math.inf
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


def test_context_row_reaches_the_proposal():
    proposal = ConditionalDiagonalNormal([DIM])
    context = torch.cat([torch.full((1, DIM), SHIFT), torch.zeros(1, DIM)], dim=1)
    samples = importance_sample(proposal, TARGET, 300, context=context, seed=0)
    assert samples.x.shape == (300, DIM)
    assert samples.log_normalizer == pytest.approx(LOG_NORMALIZER, abs=1e-5)  # the proposal is the target
    assert samples.effective_sample_size_fraction == pytest.approx(1, abs=1e-5)
    with pytest.raises(ValueError, match="2 rows"):
        importance_sample(proposal, TARGET, 300, context=context.expand(2, -1))


def test_user_mistakes_are_named():
    proposal = StandardNormal([DIM])
    with pytest.raises(ValueError, match="BoltzmannDensity"):
        importance_sample(proposal, shifted_energy, 10)
    with pytest.raises(ValueError, match="num_samples is 0"):
        importance_sample(proposal, TARGET, 0)
    with pytest.raises(ValueError, match="not both"):
        importance_sample(proposal, TARGET, 5, generator=torch.Generator(), seed=1)
    with pytest.raises(ValueError, match="the target returned"):
        importance_sample(proposal, BoltzmannDensity(lambda x: x), 5)


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
    # std(w) / (mean(w) sqrt(N)) = 1 for one weight, and it is as skewed as can be
    assert one.log_normalizer_standard_error == pytest.approx(1 + 0.75 * 62 / math.sqrt(63 * 64))
    assert one.pareto_k == math.inf
    half = weighted([0.0] * 10 + [-math.inf] * 10)
    assert half.effective_sample_size == pytest.approx(10)


def test_extreme_log_weights_do_not_overflow():
    samples = weighted(torch.tensor([1e5, 1e5 - 1.0, -1e5]))
    assert samples.log_normalizer == pytest.approx(1e5 + math.log1p(math.exp(-1)) - math.log(3))
    assert samples.weights.sum().item() == pytest.approx(1)


def test_standard_error_is_the_textbook_one_times_that_of_skewness():
    log_weights = torch.randn(500, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    w = log_weights.exp()
    textbook = (w.std() / (w.mean() * math.sqrt(500))).item()
    expected = textbook * (1 + 0.75 * stats.skew(w.numpy()) / math.sqrt(500))
    assert weighted(log_weights).log_normalizer_standard_error == pytest.approx(expected, rel=1e-12)
    generator = torch.Generator().manual_seed(0)
    w = 10 + torch.rand(500, dtype=torch.float64, generator=generator).sqrt()  # skewed to the left
    textbook = (w.std() / (w.mean() * math.sqrt(500))).item()
    assert weighted(w.log()).log_normalizer_standard_error == pytest.approx(textbook, rel=1e-9)
    alone = WeightedSamples(torch.zeros(500, 1), log_weights, ancestors=torch.arange(500))
    assert alone.log_normalizer_standard_error == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("sigma", "narrowest", "widest"), [(0.3, 0.9, 1.15), (1.0, 0.9, 1.35), (2.0, 0.6, 1.6)])
def test_standard_errors_of_skewed_weights(sigma, narrowest, widest):
    """Log-normal weights, 400 runs of 300: the truth is not missed on the low side, at no great width elsewhere."""
    generator = torch.Generator().manual_seed(0)
    log_weights = sigma * torch.randn(400, 300, dtype=torch.float64, generator=generator) - sigma**2 / 2
    runs = [weighted(row) for row in log_weights]
    errors = np.array([run.log_normalizer for run in runs])
    reported = np.array([run.log_normalizer_standard_error for run in runs])
    assert (np.abs(errors) < 3 * reported).mean() >= 0.95
    assert narrowest < reported.mean() / np.sqrt(np.mean(errors**2)) < widest


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


def test_save_and_load(tmp_path):
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
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(ValueError, match=r"no \.npz"):
        WeightedSamples.load(tmp_path / "text.npz")
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    with pytest.raises(ValueError, match="lacks"):
        WeightedSamples.load(tmp_path / "other.npz")


def test_construction_mistakes():
    with pytest.raises(ValueError, match="NaN"):
        weighted([0.0, math.nan])
    with pytest.raises(ValueError, match="log_weights has shape"):
        WeightedSamples(torch.zeros(3, 1), torch.zeros(2))
    with pytest.raises(ValueError, match="no samples"):
        WeightedSamples(torch.zeros(0, 1), torch.zeros(0))
    with pytest.raises(ValueError, match="one value a sample"):
        weighted([0.0, 1.0]).expectation(lambda x: x.sum())


# --- diagnostics


@pytest.mark.parametrize("shape", [-0.3, 0.2, 0.7, 1.2])
def test_generalized_pareto_shape_is_recovered(shape):
    excesses = np.sort(stats.genpareto(shape, scale=3.0).rvs(8000, random_state=1))
    assert diagnostics.generalized_pareto_shape(excesses) == pytest.approx(shape, abs=0.06)


@pytest.mark.parametrize("degrees", [1.5, 4.0, 30.0])
@pytest.mark.parametrize("count", [60, 1000, 20000])
def test_pareto_k_agrees_with_arviz(degrees, count):
    arviz = pytest.importorskip("arviz")
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
