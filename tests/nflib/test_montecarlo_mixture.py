"""Mixtures of proposals: densities, shares and estimates against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from nflows.transforms import AffineScalarTransform
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal, Uniform

from nflib.montecarlo import MALA, BoltzmannDensity, Mixture, importance_sample, smc
from nflib.montecarlo.coordinates import TransformedProposal

SCALES, WEIGHTS, DIM = (0.5, 1.0, 3.0), (0.2, 0.5, 0.3), 2
# exp(-|x|_1) in two dimensions: its tails are heavier than those of any normal.
TARGET, LOG_NORMALIZER = BoltzmannDensity(lambda x: x.abs().sum(dim=-1)), math.log(4.0)


def normal(scale: float, mean: float = 0.0) -> Independent:
    return Independent(Normal(torch.full((DIM,), mean, dtype=torch.float64), scale), 1)


def mixture(resampling: str = "systematic") -> Mixture:
    return Mixture([normal(scale) for scale in SCALES], WEIGHTS, resampling=resampling)


def expected_log_prob(x: torch.Tensor) -> torch.Tensor:
    scales = torch.tensor(SCALES, dtype=torch.float64)[:, None].expand(-1, DIM)
    peer = MixtureSameFamily(Categorical(torch.tensor(WEIGHTS)), Independent(Normal(0.0, scales), 1))
    return peer.log_prob(x)


@pytest.mark.parametrize("resampling", ["systematic", "multinomial"])
def test_densities_of_draws_and_of_points_are_the_whole_mixtures(resampling):
    proposal = mixture(resampling)
    x, log_prob = proposal.sample_and_log_prob(1000, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(log_prob, expected_log_prob(x))
    torch.testing.assert_close(proposal.log_prob(x), expected_log_prob(x))
    # Of equal seeds, equal draws.
    again, _ = proposal.sample_and_log_prob(1000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(x, again)


class Counting:
    """A proposal of one point, which remembers how many draws it was asked for."""

    def __init__(self, place: float) -> None:
        self.place, self.asked = place, []

    def sample_and_log_prob(self, num_samples, *, generator=None):
        self.asked.append(num_samples)
        return torch.full((num_samples, 1), self.place), torch.zeros(num_samples)

    def log_prob(self, inputs):
        return torch.where(inputs[:, 0] == self.place, 0.0, -torch.inf)


def test_shares_are_the_weights_rounded_at_random_without_bias():
    first, second = Counting(1.0), Counting(2.0)
    proposal = Mixture([first, second], [0.25, 0.75])
    generator = torch.Generator().manual_seed(1)
    for _ in range(400):
        x, _ = proposal.sample_and_log_prob(10, generator=generator)
        assert sorted(set(x.flatten().tolist())) == [1.0, 2.0]
    assert set(first.asked) == {2, 3} and set(second.asked) == {7, 8}
    assert abs(sum(first.asked) / 400 - 2.5) < 4 * 0.5 / 20
    # Of one draw, one of them gives none and is not asked for any.
    for _ in range(10):
        x, log_prob = proposal.sample_and_log_prob(1, generator=generator)
        assert log_prob.item() == pytest.approx(math.log(0.25 if x.item() == 1.0 else 0.75))
    assert set(first.asked + second.asked) == {1, 2, 3, 7, 8}
    # Any one place of a batch holds draws of all components.
    places = [proposal.sample_and_log_prob(10, generator=generator)[0][0, 0].item() for _ in range(400)]
    assert abs(places.count(1.0) / 400 - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 400)


def test_normalizer_is_unbiased_whatever_the_shares():
    estimates = {"systematic": [], "multinomial": []}
    for resampling, values in estimates.items():
        for seed in range(200):
            samples = importance_sample(mixture(resampling), TARGET, 101, seed=seed)
            values.append(math.exp(samples.log_normalizer - LOG_NORMALIZER))
        ratios = torch.tensor(values)
        assert abs(ratios.mean() - 1.0) < 4 * ratios.std() / math.sqrt(len(ratios))
    assert torch.tensor(estimates["systematic"]).std() < torch.tensor(estimates["multinomial"]).std()


def test_a_defensive_component_bounds_the_weights():
    narrow = importance_sample(normal(0.5), TARGET, 4000, seed=0)
    defended = importance_sample(Mixture([normal(0.5), normal(3.0)], [0.8, 0.2]), TARGET, 4000, seed=0)
    x, log_target = defended.x, defended.log_target
    bound = log_target - normal(3.0).log_prob(x) - math.log(0.2)
    assert (defended.log_weights <= bound + 1e-9).all()
    assert narrow.pareto_k > 0.7 > defended.pareto_k
    assert abs(defended.log_normalizer - LOG_NORMALIZER) < 4 * defended.log_normalizer_standard_error


class Undefined(Counting):
    """A density that is NaN away from its place, and draws one point that is not finite."""

    def sample_and_log_prob(self, num_samples, *, generator=None):
        x, log_prob = super().sample_and_log_prob(num_samples)
        x[0] = torch.nan
        return x, log_prob

    def log_prob(self, inputs):
        return torch.where(inputs[:, 0] == self.place, 0.0, torch.nan)


def test_what_a_component_cannot_evaluate_has_no_density_there():
    proposal = Mixture([Counting(1.0), Undefined(2.0)])
    points = torch.tensor([[1.0], [2.0], [3.0], [torch.nan]])
    assert proposal.log_prob(points).tolist() == pytest.approx([math.log(0.5)] * 2 + [-math.inf] * 2)
    x, log_prob = proposal.sample_and_log_prob(8, generator=torch.Generator().manual_seed(0))
    assert not log_prob.isnan().any() and (log_prob[x[:, 0].isnan()] == -torch.inf).all()
    samples = importance_sample(proposal, BoltzmannDensity(lambda x: 0 * x[:, 0]), 8, seed=0)
    assert samples.num_rejected == 1


def test_bounded_supports_and_gradients():
    box = Independent(Uniform(torch.zeros(DIM).double(), torch.ones(DIM).double()), 1)
    x = torch.tensor([[0.5, 0.5], [2.0, 0.5]], dtype=torch.float64, requires_grad=True)
    log_prob = Mixture([box, normal(1.0)], [0.5, 0.5]).log_prob(x)
    density = normal(1.0).log_prob(x).exp() * 0.5 + torch.tensor([0.5, 0.0])
    torch.testing.assert_close(log_prob, density.log())
    (gradient,) = torch.autograd.grad(log_prob.sum(), x)
    (expected,) = torch.autograd.grad(density.log().sum(), x)
    torch.testing.assert_close(gradient, expected)


def test_smc_starts_from_a_mixture():
    proposal = Mixture([normal(0.7, -2.0), normal(0.7, 2.0)])
    samples = smc(proposal, TARGET, 2000, kernel=MALA(step_size=0.5), seed=0)
    assert abs(samples.log_normalizer - LOG_NORMALIZER) < 5 * samples.log_normalizer_standard_error


@pytest.mark.parametrize(
    ("components", "weights", "resampling", "message"),
    [
        ([], None, "systematic", "0 components"),
        ([normal(1.0)], [0.5, 0.5], "systematic", "1 components and 2 weights"),
        ([normal(1.0)] * 2, [0.5, 0.6], "systematic", "sum to 1"),
        ([normal(1.0)] * 2, [1.0, 0.0], "systematic", "positive"),
        ([normal(1.0)] * 2, [math.nan, 1.0], "systematic", "positive"),
        ([normal(1.0)], None, "all", "unknown resampling scheme 'all'"),
        ([object()], None, "systematic", "has no sample_and_log_prob"),
    ],
)
def test_mistakes(components, weights, resampling, message):
    with pytest.raises(ValueError, match=message):
        Mixture(components, weights, resampling=resampling)


def test_components_are_asked_for_their_density_everywhere():
    class DrawsAlone:
        def sample_and_log_prob(self, num_samples, *, generator=None):
            return torch.zeros(num_samples, 2), torch.zeros(num_samples)

    for use in (lambda p: Mixture([p]), lambda p: TransformedProposal(p, AffineScalarTransform(scale=2.0))):
        with pytest.raises(ValueError, match="has no log_prob"):
            use(DrawsAlone())
