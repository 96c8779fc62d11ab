"""Slopes carried on by a refiner: the method they stand for, its order, evaluations saved, exact densities."""

import copy

import pytest
import torch
from torch import nn

from nflib.continuous import (
    RK4,
    Euler,
    FlowMap,
    Heun,
    LinearPath,
    MLPVelocity,
    ODEFlow,
    PseudoCorrector,
    RefinedSteps,
    RefinerMatching,
)
from nflib.flows import Flow
from nflib.training import TrainingConfig, fit
from tests.nflib.continuous.cases import NARROW, check_density_of_map, mixture_velocity, swirl
from tests.nflib.continuous.gaussian_mixtures import Exact
from tests.perturb import perturb
from tests.quiet import QUIET

X = torch.randn(20, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Counted:
    """A field, and how often it is asked."""

    def __init__(self, field):
        self.field, self.calls = field, 0

    def __call__(self, x, t):
        self.calls += 1
        return self.field(x, t)


def exact_refiner(field):
    return lambda x, t, slope: field(x, t) - slope


def rough_refiner():
    torch.manual_seed(0)
    return perturb(MLPVelocity(2, channels=16, num_layers=1, context_size=2))


def test_with_the_exact_refiner_a_run_is_that_of_the_pseudo_corrector():
    field = Counted(swirl)
    flow = FlowMap(RefinedSteps(field, exact_refiner(swirl), num_steps=4), (2,), num_steps=1)
    reached = flow._transform.generate(X)
    assert field.calls == 1
    torch.testing.assert_close(reached, PseudoCorrector(4).solve(lambda x, t, _: swirl(x, t), X, 0, 1).state)


@pytest.mark.parametrize("num_runs", [1, 3])
def test_the_order_is_two_with_one_evaluation_a_run(num_runs):
    reference = RK4(200).solve(lambda x, t, _: swirl(x, t), X, 0, 1).state
    errors = []
    for num_steps in (4, 8, 16):
        field = Counted(swirl)
        flow = FlowMap(RefinedSteps(field, exact_refiner(swirl), num_steps), (2,), num_steps=num_runs)
        errors.append(float((flow._transform.generate(X) - reference).norm()))
        assert field.calls == num_runs
    assert errors[0] / errors[1] == pytest.approx(4, abs=0.8)
    assert errors[1] / errors[2] == pytest.approx(4, abs=0.5)


def test_the_density_is_that_of_the_runs_whatever_the_refiner():
    flow = FlowMap(RefinedSteps(swirl, rough_refiner(), num_steps=3), (2,), num_steps=3).double().requires_grad_(False)
    check_density_of_map(flow)


def test_weights_on_a_mixture_have_mean_one():
    velocity = Exact(LinearPath(), data=NARROW).velocity
    flow = FlowMap(RefinedSteps(velocity, exact_refiner(velocity), num_steps=2), (2,), num_steps=3).double()
    x, log_prob = flow.sample_and_log_prob(1000, seed=1)
    weights = (NARROW.log_prob(x) - log_prob).exp()
    assert abs(float(weights.mean()) - 1) < 3 * float(weights.std()) / 1000**0.5
    assert float(weights.sum() ** 2 / weights.square().sum()) > 800


def test_the_objective_compares_slopes_of_neighbours():
    """Of the field -x and a refiner that adds nothing: there the slope has changed by h x, whichever way."""
    flow, data = FlowMap(RefinedSteps(lambda x, t: -x, lambda x, t, v: 0 * v), (2,)), {"inputs": X}
    for both_ways in (True, False):
        objective = RefinerMatching(max_step=0.3, both_ways=both_ways)
        loss, _ = objective(flow, data, torch.Generator().manual_seed(1))
        generator = torch.Generator().manual_seed(1)
        x0, x1, _ = objective.coupling(flow, data, generator)
        h = 0.3 * torch.rand(20, generator=generator).double()
        t = (1 - h) * torch.rand(20, generator=generator).double()
        if both_ways:
            t = torch.where(torch.arange(20) % 2 == 0, t + h, t)
        expected = (h[:, None] * flow.path.interpolate(x0, x1, t)).square().mean()
        assert float(loss) == pytest.approx(float(expected), rel=1e-10)


def test_the_exact_refiner_has_no_loss_and_the_field_no_gradient():
    flow = FlowMap(RefinedSteps(swirl, exact_refiner(swirl)), (2,))
    assert float(RefinerMatching()(flow, {"inputs": X}, torch.Generator().manual_seed(0))[0]) < 1e-24
    field = perturb(MLPVelocity(2, channels=8), 0.3)
    flow = FlowMap(RefinedSteps(field, rough_refiner()), (2,))
    RefinerMatching()(flow, {"inputs": X.float()}, torch.Generator().manual_seed(0))[0].backward()
    assert all(p.grad is None for p in field.parameters())
    refiner = flow._transform.velocity.refiner
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in refiner.parameters())


@pytest.mark.slow
def test_a_small_refiner_saves_evaluations(tmp_path):
    """At four evaluations of the field it is nearer to the solution than methods that have no other network."""
    torch.manual_seed(0)
    refiner = MLPVelocity(2, channels=32, num_layers=1, context_size=2)
    flow = FlowMap(RefinedSteps(mixture_velocity, refiner, num_steps=4), (2,), num_steps=4)
    generator = torch.Generator().manual_seed(0)
    signs = 2.0 * torch.randint(2, (8000, 1), generator=generator) - 1
    data = torch.cat([1.5 * signs, torch.ones_like(signs)], 1) + 0.3 * torch.randn(8000, 2, generator=generator)
    config = TrainingConfig(batch_size=256, max_steps=1500, learning_rate=5e-3, ema_decay=0.98, **QUIET)
    fit(flow, data, config=config, objective=RefinerMatching(), output=tmp_path)
    noise = torch.randn(1000, 2, generator=torch.Generator().manual_seed(5))
    ode = ODEFlow(mixture_velocity, (2,), solver=RK4(64))
    reached = ode.decode(noise)

    def error(other):
        return float((other.decode(noise) - reached).square().sum(1).mean().sqrt())

    others = [error(ode.with_solver(solver)) for solver in (Euler(4), Heun(2), PseudoCorrector(3))]
    assert error(flow) < 0.5 * min(others)
    x, log_prob = flow.requires_grad_(False).sample_and_log_prob(100, seed=0)
    torch.testing.assert_close(flow.log_prob(x), log_prob, atol=1e-4, rtol=1e-4)


def test_saved_and_loaded(tmp_path):
    flow = FlowMap(RefinedSteps(MLPVelocity(2, channels=8), rough_refiner(), num_steps=2), (2,), num_steps=3)
    flow.save_pretrained(tmp_path)
    torch.testing.assert_close(Flow.from_pretrained(tmp_path).log_prob(X.float()), flow.log_prob(X.float()))


def test_contexts_reach_field_and_refiner(tmp_path):
    class Steered(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = MLPVelocity(2, channels=8, context_size=5)

        def forward(self, x, t, slope, context):
            return self.network(x, t, torch.cat([slope, context], dim=1))

    steps = RefinedSteps(MLPVelocity(2, channels=8, context_size=3), Steered())
    flow = FlowMap(steps, (2,), context_shape=(3,))
    data = {"inputs": X.float(), "context": torch.randn(20, 3)}
    config = TrainingConfig(batch_size=10, max_steps=2, **QUIET)
    fit(flow, data, config=config, objective=RefinerMatching(), output=tmp_path)
    assert flow.sample(2, torch.randn(3, 3)).shape == (3, 2, 2)


def test_weights_in_half_precision_are_fitted_in_single_precision():
    flow = FlowMap(RefinedSteps(MLPVelocity(2, channels=8), rough_refiner()), (2,)).bfloat16()
    half, single = (
        RefinerMatching()(own, {"inputs": X.float()}, torch.Generator().manual_seed(0))[0].detach()
        for own in (flow, copy.deepcopy(flow).float())
    )
    assert float(half) == pytest.approx(float(single), rel=1e-6)


def test_what_does_not_fit_is_told():
    for num_steps in (0, 2.5):
        with pytest.raises(ValueError, match="num_steps must be an integer of 1 or more"):
            RefinedSteps(swirl, rough_refiner(), num_steps=num_steps)
    with pytest.raises(ValueError, match="max_step"):
        RefinerMatching(max_step=1.5)
    with pytest.raises(ValueError, match="RefinedSteps"):
        RefinerMatching()(FlowMap(lambda x, r, t: x, (2,)), {"inputs": X}, torch.Generator())
