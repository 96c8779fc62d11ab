"""The path-space proposal: weights of mean 1 at any step size, and smc from it."""

import copy
import math

import pytest
import torch
from nflows.distributions import ConditionalDiagonalNormal

from nflib.continuous import DiffusionProposal, LinearPath, MLPVelocity, ODEFlow, TwoSidedPath, VariancePreservingPath
from nflib.montecarlo import IndependentMetropolis, importance_sample, smc
from tests.nflib.continuous.gaussian_mixtures import THREE, Exact
from tests.perturb import perturb

EXACT = Exact(LinearPath())
FLOW = ODEFlow(EXACT.velocity, (2,))


@pytest.mark.parametrize("num_steps, size", [(10, 10_000), (30, 4000), (100, 2000)])
def test_mean_weight_is_one(num_steps, size) -> None:
    samples = importance_sample(DiffusionProposal(FLOW, 0.2, num_steps), THREE, size, seed=num_steps)
    weights = samples.log_weights.exp()
    assert abs(weights.mean() - 1) < 3 * weights.std() / math.sqrt(size)
    assert samples.num_rejected == 0
    if num_steps == 100:
        assert samples.effective_sample_size_fraction > 0.7


@pytest.mark.parametrize("path", [LinearPath(), VariancePreservingPath()], ids=repr)
def test_epsilon_may_fall_with_time(path) -> None:
    flow = ODEFlow(Exact(path).velocity, (2,), path=path)
    samples = importance_sample(DiffusionProposal(flow, lambda t: 0.5 * (1 - t), 40), THREE, 3000, seed=0)
    weights = samples.log_weights.exp()
    assert abs(weights.mean() - 1) < 3 * weights.std() / math.sqrt(3000)
    mean, error = samples.expectation(lambda x: x)
    assert ((mean - THREE.weights @ THREE.means).abs() < 4 * error).all()


def test_weight_is_the_ratio_of_kernels() -> None:
    # Of two steps, from the draws that the generator gives: by torch's own normals.
    proposal = DiffusionProposal(FLOW, lambda t: 0.1 + t, 2)
    x, log_prob = proposal.sample_and_log_prob(5, generator=torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(3)
    states = [torch.randn(5, 2, generator=generator)]
    expected = torch.distributions.Normal(0.0, 1.0).log_prob(states[0]).sum(1)
    for k, (look, then) in enumerate(((0.0, 0.5), (0.5, 0.75))):  # t = 1 leaves no noise: the last step's middle
        now, epsilon = states[-1], 0.1 + 0.25 + 0.5 * k
        t, scale = torch.full((5,), look), math.sqrt(epsilon)  # 2 eps h
        mean = now + 0.5 * (EXACT.velocity(now, t) + epsilon * EXACT.score(now, t))
        following = mean + scale * torch.randn(5, 2, generator=generator)
        t = torch.full((5,), then)
        back = following - 0.5 * (EXACT.velocity(following, t) - epsilon * EXACT.score(following, t))
        forwards = torch.distributions.Normal(mean, scale).log_prob(following).sum(1)
        backwards = torch.distributions.Normal(back, scale).log_prob(now).sum(1)
        expected = expected - (backwards - forwards)
        states.append(following)
    torch.testing.assert_close(x, states[-1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(log_prob, expected, rtol=1e-4, atol=1e-3)


def test_wrong_fields_are_weighted_right() -> None:
    # The field of other data: worse draws, the same mean weight.
    flow = ODEFlow(lambda x, t: (2 * t - 1)[:, None] / ((1 - t) ** 2 + t**2)[:, None] * x, (2,))
    wide = torch.distributions.MultivariateNormal(torch.zeros(2), 0.7 * torch.eye(2))
    samples = importance_sample(DiffusionProposal(flow, 0.3, 20), wide, 5000, seed=0)
    assert abs(samples.log_normalizer) < 3 * samples.log_normalizer_standard_error


def test_context_and_own_score_reach_the_field() -> None:
    seen = []

    def velocity(x, t, context):
        seen.append(context)
        return context - x

    flow = ODEFlow(velocity, (2,), context_shape=(2,))
    proposal = DiffusionProposal(flow, 0.1, 2, score=lambda x, t, context: -x, context=torch.ones(1, 2))
    assert proposal.sample_and_log_prob(4)[0].shape == (4, 2)
    assert all(torch.equal(context, torch.ones(4, 2)) for context in seen)
    assert not hasattr(proposal, "log_prob")


def test_bad_arguments() -> None:
    for epsilon, steps, match in ((0.0, 5, "epsilon must be"), (lambda t: 0.5 - t, 5, "epsilon"), (0.1, 0, "steps")):
        with pytest.raises(ValueError, match=match):
            DiffusionProposal(FLOW, epsilon, steps)
    with pytest.raises(ValueError, match="TwoSidedPath does not tell the score"):
        DiffusionProposal(ODEFlow(EXACT.velocity, (2,), path=TwoSidedPath()), 0.1, 5)


# ---- smc


@pytest.mark.parametrize("num_draws", [None, 3000])
def test_smc_moves_at_the_target(num_draws) -> None:
    proposal = DiffusionProposal(FLOW, 0.2, 15)
    samples = smc(proposal, THREE, 1500, moves=2, final_moves=1, num_draws=num_draws, seed=0)
    assert samples.history.inverse_temperatures == [1.0, 1.0]
    assert samples.log_prob is None
    assert abs(samples.log_normalizer) < 4 * samples.log_normalizer_standard_error
    mean, error = samples.expectation(lambda x: x)
    assert ((mean - THREE.weights @ THREE.means).abs() < 4 * error).all()
    assert samples.history.num_evaluations[0] > (num_draws or 1500) and samples.history.num_particles[1] == 1500


def test_smc_begins_from_draws_and_resumes(tmp_path) -> None:
    proposal = DiffusionProposal(FLOW, 0.2, 15)
    draws = importance_sample(proposal, THREE, 1000, seed=1)
    whole = smc(proposal, THREE, 1000, draws=draws, final_moves=1, seed=2)
    assert whole.log_normalizer == pytest.approx(draws.log_normalizer, abs=1e-9)
    again = smc(proposal, THREE, 1000, draws=draws, final_moves=1, seed=2, checkpoint=tmp_path / "run.npz")
    resumed = smc(proposal, THREE, 1000, draws=draws, final_moves=1, seed=2, checkpoint=tmp_path / "run.npz")
    assert torch.equal(whole.x, again.x) and torch.equal(again.x, resumed.x)


def test_smc_has_no_temperatures_without_a_density() -> None:
    proposal = DiffusionProposal(FLOW, 0.2, 5)
    for options in ({"temperatures": [0.5, 1.0]}, {"kernel": IndependentMetropolis()}):
        with pytest.raises(ValueError, match=r"has no log_prob\(x\), so there are no temperatures"):
            smc(proposal, THREE, 100, **options)


def steering(x: torch.Tensor, t: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
    """Along `LinearPath`, from the standard normal to the normal of width 1 about the context."""
    alpha, beta = (1 - t)[:, None], t[:, None]
    return context + (beta - alpha) / (alpha**2 + beta**2) * (x - beta * context)


def test_context() -> None:
    flow = ODEFlow(steering, (2,), context_shape=(2,))
    mean = torch.tensor([1.0, -2.0])
    target = torch.distributions.Independent(torch.distributions.Normal(mean, torch.ones(2)), 1)
    for context in (mean, mean[None]):
        samples = importance_sample(DiffusionProposal(flow, 0.3, 40, context=context), target, 1000, seed=0)
        assert abs(samples.log_normalizer) < 4 * samples.log_normalizer_standard_error
        assert samples.effective_sample_size_fraction > 0.8
    with pytest.raises(ValueError, match="one context, got 2 rows"):
        DiffusionProposal(flow, 0.3, 40, context=torch.zeros(2, 2))


def test_base_of_the_context() -> None:
    base = ConditionalDiagonalNormal((2,))  # whose means and log-widths are the context
    flow = ODEFlow(lambda x, t, context: 0 * x, (2,), distribution=base, context_shape=(4,))
    context = torch.tensor([1.0, -2.0, 0.0, 0.0])
    target = torch.distributions.Independent(torch.distributions.Normal(context[:2], torch.ones(2)), 1)
    proposal = DiffusionProposal(flow, 0.01, 20, score=lambda x, t, c: c[:, :2] - x, context=context)
    samples = importance_sample(proposal, target, 500, seed=0)
    assert samples.effective_sample_size_fraction > 0.99
    assert abs(samples.log_normalizer) < 0.01


def test_base_of_another_dtype() -> None:
    base = torch.distributions.Independent(torch.distributions.Normal(torch.zeros(2), torch.ones(2)), 1)
    flow = ODEFlow(MLPVelocity(2, channels=8, num_layers=1), (2,), distribution=base).double()
    x, log_prob = DiffusionProposal(flow, 0.3, 4).sample_and_log_prob(3)
    assert x.dtype == log_prob.dtype == torch.float64


def test_a_score_in_half_precision_is_computed_in_single_precision() -> None:
    flow, score = ODEFlow(lambda x, t: -x, (2,)), perturb(MLPVelocity(2, channels=8), 0.3).bfloat16()
    half, single = (
        DiffusionProposal(flow, 0.1, 2, score=own).sample_and_log_prob(3, generator=torch.Generator().manual_seed(0))
        for own in (score, copy.deepcopy(score).float())
    )
    torch.testing.assert_close(half, single)


def test_guided_flow() -> None:
    # The field is linear in its context, so that guidance of strength 2 doubles the mean.
    flow = ODEFlow(steering, (2,), context_shape=(2,)).guided(2.0, torch.zeros(1, 2))
    mean = torch.tensor([1.0, -2.0])
    target = torch.distributions.Independent(torch.distributions.Normal(2 * mean, torch.ones(2)), 1)
    samples = importance_sample(DiffusionProposal(flow, 0.3, 40, context=mean), target, 1000, seed=0)
    assert abs(samples.log_normalizer) < 4 * samples.log_normalizer_standard_error
    assert samples.effective_sample_size_fraction > 0.8


@pytest.mark.parametrize("event_shape", [(2,), ()])
def test_no_draws(event_shape) -> None:
    proposal = DiffusionProposal(ODEFlow(lambda x, t: -x, event_shape), 0.3, 4)
    x, log_prob = proposal.sample_and_log_prob(0)
    assert x.shape == (0, *event_shape) and log_prob.shape == (0,)
    with pytest.raises(ValueError, match="num_samples must be an integer of 0 or more"):
        proposal.sample_and_log_prob(-1)
