"""Targets in other coordinates: densities by autograd's Jacobian, normalisers that stay, samples mapped back."""

from __future__ import annotations

import math

import pytest
import torch
from nflows.transforms import AffineTransform, CompositeTransform, InverseTransform, Logit, Sigmoid, Tanh, Transform
from torch import Tensor

from nflib.distributions import StandardNormal
from nflib.flows import Flow
from nflib.montecarlo import (
    HMC,
    MALA,
    BoltzmannDensity,
    FixedStepSizes,
    IndependentMetropolis,
    Mixture,
    TransformedProposal,
    TransformedTarget,
    WeightedSamples,
    importance_sample,
    score_scales,
    smc,
    transform_back,
)
from nflib.montecarlo.densities import log_densities
from nflib.training import ReverseKL
from nflib.transforms import GaussianizeMarginals
from nflib.transforms.domain import rows_inside
from tests.nflib.smc_cases import Normal

DIM = 3


class Sinh(Transform):
    """y = asinh(x), a nonlinear map of all reals."""

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return inputs.asinh(), -0.5 * torch.log1p(inputs.square()).sum(-1)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return inputs.sinh(), inputs.cosh().log().sum(-1)


def affine() -> Transform:
    return AffineTransform(torch.tensor([0.5, -1.0, 2.0]).double(), torch.tensor([2.0, 0.25, 1.5]).double())


MAPS = {
    "affine": affine,
    "nonlinear": Sinh,
    "both": lambda: CompositeTransform([affine(), Sinh()]),
}


def energy(x: Tensor) -> Tensor:
    return 0.5 * (x - 0.3).square().sum(dim=-1) + 0.1 * x.prod(dim=-1).square()


@pytest.mark.parametrize("name", MAPS)
def test_density_is_that_of_the_jacobian(name):
    transform, target = MAPS[name](), BoltzmannDensity(energy)
    y = torch.randn(5, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()

    def inverse(row: Tensor) -> Tensor:
        return transform.inverse(row[None])[0][0]

    expected = torch.stack(
        [
            target.log_prob(inverse(row)[None])[0]
            + torch.linalg.slogdet(torch.autograd.functional.jacobian(inverse, row, create_graph=True))[1]
            for row in y
        ]
    )
    found = TransformedTarget(target, transform).log_prob(y)
    torch.testing.assert_close(found, expected)
    gradients = (torch.autograd.grad(value.sum(), y)[0] for value in (found, expected))
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("kernel", [HMC(), MALA(), IndependentMetropolis()], ids=lambda kernel: type(kernel).__name__)
@pytest.mark.parametrize("name", MAPS)
def test_normalizer_and_expectations_are_kept(name, kernel):
    transform = MAPS[name]()
    target = BoltzmannDensity(lambda x: 2.0 * (x - 0.3).square().sum(dim=-1))
    samples = smc(Normal(DIM, 1.5), TransformedTarget(target, transform), 1500, kernel=kernel, moves=2, seed=2)
    truth = 0.5 * DIM * math.log(math.pi / 2)
    assert abs(samples.log_normalizer - truth) < 3.5 * samples.log_normalizer_standard_error
    assert samples.log_normalizer_standard_error < 0.25
    back = transform_back(samples, transform, batch_size=400)
    assert type(back) is type(samples) and back.history is samples.history
    assert torch.equal(back.log_weights, samples.log_weights)
    mean, error = back.expectation(lambda x: x)
    assert ((mean - 0.3).abs() < 4 * error).all() and (error < 0.1).all()
    torch.testing.assert_close(back.log_target, target.log_prob(back.x), atol=1e-9, rtol=1e-9)
    own, logabsdet = transform(back.x)
    torch.testing.assert_close(own, samples.x)
    torch.testing.assert_close(back.log_prob, Normal(DIM, 1.5).log_prob(own) + logabsdet)


def test_weights_are_those_of_either_coordinates():
    target, transform = BoltzmannDensity(energy), Sinh()
    there = importance_sample(Normal(DIM), TransformedTarget(target, transform), 300, seed=4)
    back = transform_back(there, transform)
    assert torch.equal(back.log_weights, there.log_weights)
    torch.testing.assert_close(back.log_target - back.log_prob, there.log_weights)


@pytest.mark.parametrize("share", [0.2, 1.0])
def test_points_without_an_inverse_are_dead_and_not_asked_for(share):
    """tanh maps the reals onto (-1, 1): from a y outside there is no way back."""

    class Bounded(InverseTransform):
        def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
            inside = (inputs.abs() < 1).all(dim=-1, keepdim=True)
            x = torch.where(inside, inputs, 0.5).atanh()
            return torch.where(inside, x, torch.nan), -torch.log1p(-x.tanh().square()).sum(-1)

    def seen(x: Tensor) -> Tensor:
        assert torch.isfinite(x).all()
        return energy(x)

    target = TransformedTarget(BoltzmannDensity(seen), Bounded(Tanh()))
    y = torch.full((10, DIM), 0.4, dtype=torch.float64)
    y[: int(10 * share)] = 2.0
    y.requires_grad_()
    found = target.log_prob(y)
    assert torch.equal(found.isnan(), (y > 1).all(dim=1))
    gradient = torch.autograd.grad(found.sum(), y)[0]
    assert torch.isfinite(gradient[int(10 * share) :]).all()
    if share < 1:
        samples = smc(Normal(DIM, 0.5), target, 200, kernel=HMC(), seed=0)
        assert samples.num_rejected > 0 and samples.history.num_nonfinite[0] > 0
        assert (samples.x[samples.log_weights > -torch.inf].abs() < 1).all()


@pytest.mark.parametrize("transform", [Sigmoid(), CompositeTransform([Sigmoid(), affine()])], ids=["bare", "composed"])
def test_coordinates_of_bounded_range(transform):
    """nflows refuses a whole batch for one event outside: here those outside are dead, and the others are as ever."""
    proposal = TransformedProposal(Normal(DIM), transform)
    target = TransformedTarget(BoltzmannDensity(energy), transform)
    y, _ = proposal.sample_and_log_prob(9, generator=torch.Generator().manual_seed(0))
    alone = [density.log_prob(y) for density in (proposal, target)]
    outside = y.clone()
    outside[[0, 4, 5]] = 9.0
    outside.requires_grad_()
    for density, expected in zip((proposal, target), alone, strict=True):
        found = density.log_prob(outside)
        assert found.isnan().tolist() == [place in (0, 4, 5) for place in range(9)]
        torch.testing.assert_close(found[~found.isnan()], expected[~found.isnan()])
        assert torch.autograd.grad(found[1], outside)[0][1].isfinite().all()
        nowhere = density.log_prob(outside[:1])
        assert nowhere.isnan().all() and nowhere.requires_grad
    samples = smc(proposal, target, 300, kernel=MALA(1.0), step_sizes=FixedStepSizes([1.0]), seed=0)
    assert samples.history.num_nonfinite[-1] > 0
    assert transform_back(samples, transform).x.isfinite().all()


BOUNDED = {
    "nflows": Logit,
    "ours": lambda: GaussianizeMarginals.fit(torch.rand(100, 2), intervals={0: (0, 1), 1: (0, 1)}),
    "inverse": lambda: InverseTransform(Sigmoid()),
    "within": lambda: CompositeTransform([AffineTransform(0.0, 1.0), Logit()]),
}


@pytest.mark.parametrize("name", BOUNDED)
def test_flows_of_bounded_data(name):
    """Monte Carlo takes their density as zero outside; of a flow itself that is a mistake, which it tells."""
    torch.manual_seed(0)
    flow = Flow(BOUNDED[name](), StandardNormal((2,)))
    x = torch.tensor([[0.2, 0.5], [1.2, 0.5], [0.7, 0.1], [-0.1, 2.0]])
    inside, expected = torch.tensor([True, False, True, False]), flow.log_prob(x[[0, 2]])
    told = {
        "ours": r"Marginals: coordinate \(0,\) of sample 1 is 1.2",
        "inverse": "outside the domain of the inverse of Sig",
    }
    with pytest.raises(
        ValueError, match=told.get(name, r"sample 1 of the batch, of values 0.5 to 1.2, is .* Logit; drop")
    ):
        flow.log_prob(x)
    for density in (flow, flow.given()):
        points = x.clone().requires_grad_()
        found = log_densities(density.log_prob, points)
        torch.testing.assert_close(found[inside], expected)
        assert (found[~inside] == -torch.inf).all()
        (gradient,) = torch.autograd.grad(found.sum(), points)
        assert (gradient[~inside] == 0).all() and gradient[0, 0] != 0
        nowhere = log_densities(density.log_prob, points[~inside])
        assert (nowhere == -torch.inf).all() and nowhere.requires_grad
    wide = torch.distributions.MultivariateNormal(torch.full((2,), 0.5), 0.2 * torch.eye(2))
    mixed = Mixture([flow, wide]).log_prob(x)
    torch.testing.assert_close(mixed[~inside], wide.log_prob(x[~inside]) - math.log(2))
    samples = importance_sample(wide, flow, 4000, seed=0)  # the flow as the target, of normaliser 1
    assert samples.num_rejected > 500
    assert abs(samples.log_normalizer) < 3 * samples.log_normalizer_standard_error < 0.2
    target = BoltzmannDensity(lambda x: 50 * (x - 0.5).square().sum(-1))  # nearly all of it in the square
    for kernel in (HMC(), IndependentMetropolis()):
        samples = smc(flow, target, 300, kernel=kernel, seed=0)
        assert ((samples.x > 0) & (samples.x < 1)).all()
        assert (
            abs(samples.log_normalizer - math.log(2 * math.pi / 100)) < 4 * samples.log_normalizer_standard_error < 0.6
        )
    assert torch.isfinite(
        ReverseKL(flow)(Flow(AffineTransform(0.0, 3.0), StandardNormal((2,))), {}, torch.Generator())[0]
    )


def test_rows_inside_are_found_whatever_is_told_of_them():
    """An error tells of the batch that a part saw: in another order, of another length, or before another part."""
    x = torch.tensor([0.5, -1.0, 0.6, 0.9, 7.0, 0.2])[:, None]
    unit = Flow(Logit(), StandardNormal((1,))).log_prob
    for function in (unit, lambda x: unit(x.flip(0)), lambda x: unit(torch.cat([x, x]))):
        assert rows_inside(function, x).tolist() == [True, False, True, True, False, True]
    twice = Flow(CompositeTransform([Logit(), Tanh(), AffineTransform(0.2, 1.0), Logit()]), StandardNormal((1,)))
    assert rows_inside(twice.log_prob, x).tolist() == [True, False, True, False, False, False]


def test_draws_outside_the_domain_of_the_coordinates_are_rejected():
    """log(x / (1 - x)) of draws from N(0, 1): the normaliser is that of the target between 0 and 1."""
    target = TransformedTarget(BoltzmannDensity(lambda x: 0.5 * x[:, 0].square()), Logit())
    samples = importance_sample(TransformedProposal(Normal(1), Logit()), target, 4000, seed=0)
    assert 0.6 < samples.num_rejected / 4000 < 0.7
    exact = math.log(math.sqrt(math.pi / 2) * math.erf(math.sqrt(0.5)))
    assert abs(samples.log_normalizer - exact) < 3 * samples.log_normalizer_standard_error < 0.1
    back = transform_back(samples, Logit())
    assert torch.equal(back.x.isnan()[:, 0], samples.log_weights == -torch.inf)


def test_samples_without_densities():
    samples = WeightedSamples(torch.randn(4, DIM, dtype=torch.float64), torch.zeros(4))
    back = transform_back(samples, affine())
    assert back.log_prob is None and back.log_target is None
    torch.testing.assert_close(affine()(back.x)[0], samples.x)


def test_transformed_proposal_has_the_density_of_its_draws():
    proposal = TransformedProposal(Normal(DIM, 0.5), affine())
    y, log_prob = proposal.sample_and_log_prob(50, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(proposal.log_prob(y), log_prob)
    x, logabsdet = affine().inverse(y)
    torch.testing.assert_close(log_prob, Normal(DIM, 0.5).log_prob(x) + logabsdet)


@pytest.mark.parametrize(("transformed", "name"), [(TransformedTarget, "target"), (TransformedProposal, "proposal")])
def test_a_column_of_log_densities_is_refused_in_other_coordinates(transformed, name):
    density = Normal(DIM)
    density.log_prob = lambda x: x.sum(dim=-1, keepdim=True)
    with pytest.raises(ValueError, match=f"the {name}'s log_prob returned log-densities of shape"):
        transformed(density, affine()).log_prob(torch.zeros(4, DIM).double())


def test_score_scales_of_a_normal_density_are_its_widths():
    scales = score_scales(Normal(DIM, 0.5), 4000, seed=0)
    torch.testing.assert_close(scales, torch.full_like(scales, 0.5), rtol=0.1, atol=0)


def test_clipped_samples_are_saved_in_the_coordinates_they_have(tmp_path):
    y = importance_sample(Normal(DIM), BoltzmannDensity(energy), 100, seed=0)
    clipped = transform_back(y.truncate(0.1), affine())
    clipped.save(tmp_path / "samples.npz")
    loaded = WeightedSamples.load(tmp_path / "samples.npz")
    assert len(clipped) == 90 and clipped.clipped == 0.1
    for samples in (clipped, loaded):
        torch.testing.assert_close(samples.x, transform_back(y, affine()).truncate(0.1).x)
        torch.testing.assert_close(samples.unclipped.x, affine().inverse(y.x)[0])
