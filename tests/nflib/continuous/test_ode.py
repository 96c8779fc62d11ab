"""Flows along velocities: weights of mean one, densities of single samples, derivatives, parts of other flows."""

from __future__ import annotations

import math
from pathlib import Path as FilePath

import pytest
import torch
from nflows.distributions import ConditionalDiagonalNormal
from nflows.transforms import CompositeTransform

from nflib.continuous import (
    RK4,
    Dopri5,
    Euler,
    FlowMap,
    FlowMatching,
    GuidedVelocity,
    Heun,
    LinearPath,
    MLPFlowMap,
    MLPVelocity,
    ODEFlow,
    ODETransform,
    TrigonometricPath,
    TwoSidedPath,
    VarianceExplodingPath,
    VariancePreservingPath,
)
from nflib.distributions import StandardNormal
from nflib.flows import Flow
from nflib.montecarlo import importance_sample, smc
from nflib.training import TrainingConfig, fit
from nflib.transforms import LinearGuidance, PairedContext, Standardize
from tests.nflib.continuous.cases import NARROW, exact_flow, steered, swirl
from tests.perturb import perturb
from tests.quiet import QUIET

KINDS = [
    (Heun(4), "map"),
    (RK4(2), "map"),
    (Heun(8), "trace"),
    (Dopri5(1e-5, 1e-5), "trace"),
    (Heun(8), "hutchinson"),
]
kinds = pytest.mark.parametrize(("solver", "density"), KINDS, ids=[f"{s!r}-{d}" for s, d in KINDS])


def swirling(solver=Heun(4), density="map", size: int = 2, **settings) -> ODEFlow:  # noqa: B008, frozen
    return ODEFlow(swirl, (size,), solver=solver, density=density, **settings).double()


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def network(**settings) -> MLPVelocity:
    return perturb(MLPVelocity(2, channels=16, num_layers=1, **settings), 0.15).double()


def fit_to(flow: ODEFlow, data: torch.Tensor, output: FilePath, **settings) -> None:
    config = TrainingConfig(batch_size=256, **QUIET, **settings)
    fit(flow, data, config=config, objective=FlowMatching(), output=output)


@pytest.mark.parametrize(
    ("solver", "density", "least"),
    [(RK4(32), "trace", 0.9999), (Heun(4), "map", 0.9), (RK4(2), "map", 0.9), (Euler(8), "map", 0.4)],
    ids=repr,
)
def test_mean_weight_is_one(solver, density, least) -> None:
    number = 4000
    samples = importance_sample(exact_flow(solver, density), NARROW, number, seed=0, batch_size=number)
    weights = samples.log_weights.exp()
    assert abs(weights.mean() - 1) < 3 * weights.std() / math.sqrt(number) + 1e-5
    assert weights.sum().square() / weights.square().sum() > least * number


def test_integrated_traces_of_few_steps_are_no_weights() -> None:
    """What the map's own determinant is for: the same flow with the trace, of the x that it draws, is off."""
    flow, number = exact_flow(Heun(4)), 4000
    x = flow.sample(number, seed=0)
    with torch.no_grad():
        own, traced = flow.log_prob(x[:500]), flow.with_solver(Heun(4), "trace").log_prob(x[:500])
    assert (own - traced).abs().max() > 0.1


def test_two_steps_of_euler_are_refused() -> None:
    flow = exact_flow(Euler(2))
    with pytest.raises(ValueError, match="one-to-one"):
        flow.sample_and_log_prob(500, seed=0)
    with pytest.raises(ValueError, match="one-to-one"):
        importance_sample(flow, NARROW, 500, seed=0)
    with pytest.raises(ValueError, match="one-to-one"):
        flow.log_prob(NARROW.sample(500, torch.Generator().manual_seed(0)))


def test_a_fold_is_refused_or_gets_no_weight() -> None:
    # x + sin(4 x) of one step: its derivative 1 + 4 cos(4 x) is negative on a part of the line.
    fold = ODEFlow(lambda x, t: torch.sin(4 * x), (1,), solver=Euler(1)).double()
    with pytest.raises(ValueError, match=r"not one-to-one: .*% of 10 samples"):
        fold.sample_and_log_prob(10, seed=0)
    allowed = ODEFlow(lambda x, t: torch.where(x > 1.2, -3 * x, x), (1,), solver=Euler(1), allowed_folds=0.5).double()
    _, log_prob = allowed.sample_and_log_prob(15, seed=0)
    noise = allowed._distribution.draw(15, generator=torch.Generator().manual_seed(0))
    assert log_prob.isnan().any() and torch.equal(log_prob.isnan(), noise[:, 0] > 1.2)


def test_rows_without_a_density_do_not_stop_the_others() -> None:
    # x + x^2 of one step reaches nothing below -1/4.
    flow = ODEFlow(lambda x, t: x * x, (1,), solver=Euler(1), allowed_folds=0.2).double()
    x = torch.rand(300, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = flow.log_prob(x)
    x[7] = -1
    found = flow.log_prob(x)
    bad = torch.arange(300) == 7
    assert torch.equal(found.isnan(), bad) and torch.equal(found[~bad], expected[~bad])
    assert torch.equal(flow.encode(x).isnan().flatten(), bad)
    x[:100] = -1
    with pytest.raises(ValueError, match=r"33\.33% of 300 samples are not inverted by Newton's method in the step"):
        flow.log_prob(x)


@pytest.mark.parametrize("width", [1.0, 7.0])
def test_a_concentrated_batch_is_judged_by_the_width_of_the_noise(width) -> None:
    path = VarianceExplodingPath(0.05, width)
    flow = ODEFlow(lambda x, t: -x * (1 + x.square()).log(), (2,), solver=Heun(4), path=path).double()
    for spread in (0.0, 1e-6):
        x = 1 + spread * normal(16, 2)
        torch.testing.assert_close(flow.log_prob(x), torch.cat([flow.log_prob(row[None]) for row in x]))
        flow.sample_and_log_prob(16, seed=0)


@pytest.mark.parametrize(("solver", "density"), KINDS[:3])
def test_events_of_one_number(solver, density) -> None:
    flow = ODEFlow(lambda x, t: -x, (), solver=solver, density=density).double()
    peer = ODEFlow(lambda x, t: -x, (1,), solver=solver, density=density).double()
    x = normal(20)
    torch.testing.assert_close(flow.log_prob(x), peer.log_prob(x[:, None]))
    torch.testing.assert_close(flow.score(x), peer.score(x[:, None])[:, 0])
    samples, log_prob = flow.sample_and_log_prob(20, seed=0)
    torch.testing.assert_close(flow.log_prob(samples), log_prob, rtol=0, atol=1e-9)
    assert flow.given().sample((2, 3)).shape == (2, 3)


@kinds
def test_no_rows(solver, density) -> None:
    flow, x = swirling(solver, density), normal(0, 2)
    assert flow.log_prob(x).shape == (0,) and flow.encode(x).shape == flow.decode(x).shape == flow.score(x).shape
    assert flow.given().sample((0,)).shape == (0, 2)


@kinds
@pytest.mark.parametrize("conditioned", [False, True])
def test_alone_as_in_any_batch(solver, density, conditioned) -> None:
    field, context = (steered, normal(6, 2)) if conditioned else (swirl, None)
    shape = (2,) if conditioned else None
    flow = ODEFlow(field, (2,), solver=solver, density=density, context_shape=shape).double()
    x = 2 * normal(6, 2).flip(0)
    whole = flow.log_prob(x, context)
    for rows in (slice(0, 1), slice(5, 6), slice(1, 4)):
        part = flow.log_prob(x[rows], None if context is None else context[rows])
        torch.testing.assert_close(part, whole[rows], rtol=0, atol=1e-10)
    torch.testing.assert_close(flow.log_prob(x, context, batch_size=4), whole, rtol=0, atol=1e-10)


@kinds
def test_density_of_samples(solver, density) -> None:
    flow = swirling(solver, density)
    x, log_prob = flow.sample_and_log_prob(50, seed=0)
    torch.testing.assert_close(flow.log_prob(x), log_prob, rtol=0, atol=1e-10)
    # An adaptive solver takes other steps where it has no trace to integrate.
    torch.testing.assert_close(flow.sample(50, seed=0), x, rtol=0, atol=1e-4 if solver == KINDS[3][0] else 1e-12)
    torch.testing.assert_close(flow.decode(flow.encode(x)), x, rtol=0, atol=1e-10 if density == "map" else 1e-2)


def test_the_determinant_is_that_of_the_map() -> None:
    for solver in (Euler(3), Heun(2), RK4(1)):
        flow, noise = swirling(solver, size=3), normal(4, 3)
        x, logabsdet = flow._transform.inverse(noise)
        torch.testing.assert_close(flow._transform.generate(noise), x)
        for row in range(4):
            jacobian = torch.autograd.functional.jacobian(
                lambda z, flow=flow: flow._transform.generate(z[None])[0], noise[row]
            )
            torch.testing.assert_close(torch.linalg.slogdet(jacobian)[1], logabsdet[row], rtol=0, atol=1e-12)


def test_all_densities_agree_at_many_steps() -> None:
    x = normal(6, 2)
    exact = swirling(Dopri5(1e-11, 1e-11), "trace").log_prob(x)
    assert (swirling(RK4(24), "map").log_prob(x) - exact).abs().max() < 1e-5
    assert (swirling(RK4(24), "trace").log_prob(x) - exact).abs().max() < 1e-5


def test_estimates_by_probes() -> None:
    """A sign vector s estimates tr J + s1 s2 (J12 + J21): two of opposite s1 s2 give the trace itself."""

    def product(seed: int, number: int) -> float:
        transform = ODETransform(swirl, RK4(8), "hutchinson", num_probes=number, probe_seed=seed)
        return float(transform._probes(2, normal(1, 2)).prod(1).sum())

    x = normal(6, 2)
    exact = swirling(RK4(8), "trace").log_prob(x)
    balanced = next(seed for seed in range(20) if product(seed, 2) == 0)
    found = swirling(RK4(8), "hutchinson", num_probes=2, probe_seed=balanced).log_prob(x)
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-10)
    above, below = (next(seed for seed in range(20) if product(seed, 1) == sign) for sign in (1, -1))
    one, other = (swirling(RK4(8), "hutchinson", probe_seed=seed).log_prob(x) for seed in (above, below))
    assert (one - exact).abs().max() > 0.1
    torch.testing.assert_close((one + other) / 2, exact, rtol=0, atol=1e-10)


def test_a_linear_field_in_closed_form() -> None:
    """x' = A x: a normal with covariance exp(A) exp(A)^T, the same under every density."""
    matrix = torch.tensor([[0.5, -1.0], [0.7, -0.3]], dtype=torch.float64)
    grown = torch.matrix_exp(matrix)
    peer = torch.distributions.MultivariateNormal(torch.zeros(2).double(), grown @ grown.mT)
    x = normal(6, 2)
    for solver, density in [(RK4(40), "map"), (RK4(40), "trace"), (Dopri5(1e-10, 1e-10), "trace")]:
        flow = ODEFlow(lambda x, t: x @ matrix.mT, (2,), solver=solver, density=density).double()
        torch.testing.assert_close(flow.log_prob(x), peer.log_prob(x), rtol=0, atol=1e-7)
        torch.testing.assert_close(flow.score(x), -x @ torch.linalg.inv(grown @ grown.mT), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("solver", "density"), [(Heun(2), "map"), (Heun(3), "trace"), (Dopri5(1e-7, 1e-7), "trace")])
def test_derivatives_against_differences(solver, density) -> None:
    field = network()
    flow, x = ODEFlow(field, (2,), solver=solver, density=density).double(), normal(1, 2).requires_grad_()
    # An adaptive solver's step sizes move with x, which changes results by its tolerance.
    h, slack = (1e-6, 1e-6) if solver.is_map else (1e-3, 1e-3)
    assert torch.autograd.gradcheck(flow.log_prob, x, eps=h, atol=slack)
    (gradient,) = torch.autograd.grad(flow.log_prob(x).sum(), x)
    torch.testing.assert_close(flow.score(x.detach()), gradient)
    if solver.is_map:
        assert torch.autograd.gradgradcheck(flow.log_prob, x, eps=h, atol=slack)
    parameters = [field.network.proj_in.weight, field.network.proj_out.bias]
    gradients = torch.autograd.grad(flow.log_prob(x).sum(), parameters)
    with torch.no_grad():
        for parameter, gradient in zip(parameters, gradients, strict=True):
            entry = parameter.view(-1)[:1]
            before, ends = entry.clone(), []
            for sign in (1, -1):
                entry.copy_(before + sign * h)
                ends.append(flow.log_prob(x).sum())
            entry.copy_(before)
            assert abs((ends[0] - ends[1]) / (2 * h) - gradient.view(-1)[0]) < slack


def test_scores_are_differentiable() -> None:
    """Score matching needs the derivative of a score by parameters."""
    field = network()
    flow, x = ODEFlow(field, (2,), solver=Heun(2)).double(), normal(2, 2).requires_grad_()
    entry = field.network.proj_in.weight
    (gradient,) = torch.autograd.grad(flow.score(x).square().sum(), entry)
    ends = []
    with torch.no_grad():
        for sign in (1, -1):
            entry[0, 0] += sign * 1e-5
            ends.append(flow.score(x).square().sum())
            entry[0, 0] -= sign * 1e-5
    assert abs((ends[0] - ends[1]) / 2e-5 - gradient[0, 0]) < 1e-6


@pytest.mark.parametrize(("solver", "density"), KINDS[1:4])
def test_rsample(solver, density) -> None:
    field = network()
    flow = ODEFlow(field, (2,), solver=solver, density=density).double()
    x = flow.rsample(5, seed=0)
    torch.testing.assert_close(x, flow.sample(5, seed=0))
    parameters = list(field.parameters())
    through = torch.autograd.grad(x.square().sum(), parameters)
    noise = flow._distribution.draw(5, generator=torch.Generator().manual_seed(0))
    plain = torch.autograd.grad(flow._transform.generate(noise).square().sum(), parameters)  # through the solver
    for a, b in zip(through, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)
    x, log_prob = flow.rsample_and_log_prob(5, seed=0)
    torch.testing.assert_close(log_prob, flow.log_prob(x.detach()))
    assert all(g.isfinite().all() for g in torch.autograd.grad(log_prob.sum(), parameters))


@pytest.mark.parametrize(
    "path",
    [
        LinearPath(),
        LinearPath(0.05),
        TrigonometricPath(),
        VariancePreservingPath(),
        VarianceExplodingPath(0.05, 3.0),
        TwoSidedPath(),
    ],
)
@kinds
def test_save_and_load(path, solver, density, tmp_path: FilePath) -> None:
    flow = ODEFlow(
        network(), (2,), path=path, solver=solver, density=density, start=0.1, stop=0.9, num_probes=2
    ).double()
    flow.save_pretrained(tmp_path)
    again = Flow.from_pretrained(tmp_path)
    assert type(again) is ODEFlow and again.path == path and again._transform.solver == solver
    x = normal(3, 2)
    assert torch.equal(again.log_prob(x), flow.log_prob(x))
    assert torch.equal(again.sample(3, seed=0), flow.sample(3, seed=0))


def test_another_solver_is_saved_with_the_flow(tmp_path: FilePath) -> None:
    made_as = ODEFlow(network(context_size=3), (2,), context_shape=(3,)).double()
    flow, x, context = made_as.with_solver(RK4(3), "trace"), normal(4, 2), normal(4, 3)
    guided = flow.guided(1.5, torch.zeros(1, 3))
    in_another = Flow(flow._transform, StandardNormal((2,)), context_shape=(3,)).double()
    assert flow.config["solver"]["arguments"] == {"num_steps": 3} and flow.config["density"] == "trace"
    assert made_as.config["solver"]["arguments"] == {"num_steps": 4} and made_as.config["density"] == "map"
    for number, saved in enumerate((flow, guided, in_another, made_as)):
        saved.save_pretrained(tmp_path / str(number))
        again = Flow.from_pretrained(tmp_path / str(number))
        assert torch.equal(again.log_prob(x, context), saved.log_prob(x, context))


def test_noise_is_as_wide_as_the_path_has_it() -> None:
    flow = ODEFlow(lambda x, t: 0 * x, (2,), path=VarianceExplodingPath(0.01, 7.0)).double()
    peer = torch.distributions.Normal(torch.zeros(2).double(), 7.0)
    x = 7 * normal(4, 2)
    torch.testing.assert_close(flow.log_prob(x), peer.log_prob(x).sum(1), rtol=1e-10, atol=1e-10)


def test_contexts() -> None:
    flow = ODEFlow(network(context_size=3), (2,), solver=Heun(3), context_shape=(3,)).double()
    context = normal(4, 3)
    x, log_prob = flow.sample_and_log_prob(5, context, seed=0)
    assert x.shape == (4, 5, 2) and log_prob.shape == (4, 5)
    for row in range(4):
        given = flow.given(context[row])
        assert given.event_shape == (2,)
        torch.testing.assert_close(given.log_prob(x[row]), log_prob[row], rtol=0, atol=1e-10)
        torch.testing.assert_close(given.score(x[row]), flow.score(x[row], context[row].expand(5, 3)))
    assert not torch.allclose(
        flow.log_prob(x[0], context[0].expand(5, 3)), flow.log_prob(x[0], context[1].expand(5, 3))
    )
    with pytest.raises(ValueError, match="pass the flow a context"):
        flow.log_prob(x[0])
    with pytest.raises(ValueError, match="context"):
        flow.log_prob(x[0], normal(5, 4))
    with pytest.raises(ValueError, match="as many rows"):
        flow.log_prob(x[0], normal(4, 3))
    with pytest.raises(ValueError, match="takes no context"):
        swirling().log_prob(x[0], context)


def test_among_other_transforms() -> None:
    shift, scale = normal(200, 2).mean(0), 3.0
    standardize = Standardize.fit(scale * normal(200, 2) + 1).double()
    inner = swirling(Heun(3))
    flow = Flow(CompositeTransform([standardize, inner._transform]), StandardNormal((2,))).double()
    assert not flow.stochastic_density and shift.shape == (2,)
    x, log_prob = flow.sample_and_log_prob(20, seed=0)
    y, logabsdet = standardize(x)
    torch.testing.assert_close(log_prob, inner.log_prob(y) + logabsdet, rtol=0, atol=1e-10)
    torch.testing.assert_close(flow.log_prob(x), log_prob, rtol=0, atol=1e-10)
    estimated = CompositeTransform([standardize, ODETransform(swirl, Heun(3), "hutchinson")])
    assert Flow(estimated, StandardNormal((2,))).stochastic_density


def test_single_precision() -> None:
    wide = ODEFlow(network(), (2,), solver=Heun(4))
    x = wide.double().sample(20, seed=0)
    expected = wide.log_prob(x)
    narrow = wide.float()
    found = narrow.log_prob(x.float())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5)
    drawn, log_prob = narrow.sample_and_log_prob(20, seed=0)
    torch.testing.assert_close(narrow.log_prob(drawn), log_prob, rtol=0, atol=1e-4)
    assert narrow.bfloat16().log_prob(x.float()).dtype == torch.float32


def test_a_trained_density_integrates_to_one(tmp_path: FilePath) -> None:
    angles = 2 * math.pi * torch.rand(2000)
    data = torch.stack([angles.cos(), angles.sin()], 1) + 0.2 * torch.randn(2000, 2)
    flow = ODEFlow(MLPVelocity(2, channels=32, num_layers=2), (2,), solver=Heun(6))
    before = flow.log_prob(data[:200]).mean()
    fit_to(flow, data, tmp_path, max_steps=300, learning_rate=5e-3, ema_decay=0.9)
    flow.double()
    axis = torch.linspace(-4.5, 4.5, 91, dtype=torch.float64)
    with torch.no_grad():
        assert flow.log_prob(data[:200].double()).mean() > before + 0.1
        integral = flow.log_prob(torch.cartesian_prod(axis, axis)).exp().sum() * 0.1**2
    assert abs(integral - 1) < 1e-4


@pytest.mark.filterwarnings("ignore")
def test_estimates_are_no_weights_unless_asked() -> None:
    flow = swirling(Heun(3), "hutchinson")
    target = torch.distributions.MultivariateNormal(torch.zeros(2).double(), torch.eye(2).double())
    for method in (importance_sample, smc):
        with pytest.raises(ValueError, match="estimates its log-density"):
            method(flow, target, 16, seed=0)
        assert len(method(flow, target, 16, seed=0, allow_stochastic=True).x) == 16
        method(flow.with_solver(Heun(3), "trace"), target, 16, seed=0)


def test_fields_that_do_not_fit() -> None:
    x = normal(3, 2)
    with pytest.raises(ValueError, match=r"the velocity has shape \(3, 1\), and x \(3, 2\)"):
        ODEFlow(lambda x, t: x[:, :1], (2,)).double().log_prob(x)

    def spoilt(x, t):
        return torch.where((t[:, None] > 0.6) & (x > 0), torch.nan, -x)

    for solver, density in [(Heun(4), "map"), (Heun(4), "trace")]:
        flow = ODEFlow(spoilt, (2,), solver=solver, density=density).double()
        for call in (lambda flow=flow: flow.log_prob(x), lambda flow=flow: flow.sample(20, seed=0)):
            with pytest.raises(ValueError, match=r"not finite at t = (1|0\.75) for \d+ of \d+ samples"):
                call()
    with pytest.raises(ValueError, match=r"not finite at t = 1 for"):
        ODEFlow(spoilt, (2,), solver=Dopri5(), density="trace").double().log_prob(x)
    with pytest.raises(ValueError, match=r"first of them at t = 0\.6"):
        ODEFlow(spoilt, (2,), solver=Dopri5(), density="trace").double().sample(20, seed=0)
    stiff = ODEFlow(
        lambda x, t: -1e6 * (x - torch.cos(50 * t)[:, None]), (2,), solver=Dopri5(max_steps=50), density="trace"
    ).double()
    with pytest.raises(
        ValueError, match=r"gave up at step 50 for 20 samples, the first of them at t = \S+: the field is too stiff"
    ):
        stiff.sample(20, seed=0)


def test_newton_that_does_not_converge() -> None:
    # x + x^2 of one step reaches nothing below -1/4.
    flow = ODEFlow(lambda x, t: x * x, (1,), solver=Euler(1)).double()
    with pytest.raises(
        ValueError, match=r"66\.67% of 3 samples are not inverted by Newton's method in the step from t = 0 to 1"
    ):
        flow.log_prob(torch.tensor([[-1.0], [-0.3], [0.5]]).double())
    root = (-1 + math.sqrt(3)) / 2
    expected = -0.5 * root**2 - 0.5 * math.log(2 * math.pi) - math.log(1 + 2 * root)
    assert abs(flow.log_prob(torch.tensor([[0.5]]).double()) - expected) < 1e-12


def test_settings_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="Dopri5 chooses its steps by x"):
        ODEFlow(swirl, (2,), solver=Dopri5())
    with pytest.raises(ValueError, match="Dopri5 chooses its steps by x"):
        swirling().with_solver(Dopri5())
    with pytest.raises(ValueError, match="density must be one of"):
        ODEFlow(swirl, (2,), density="exact")
    for start, stop in [(1.0, 0.0), (0.5, 0.5), (-0.1, 1.0), (0.0, 1.1)]:
        with pytest.raises(ValueError, match="times run from 0"):
            ODEFlow(swirl, (2,), start=start, stop=stop)
    for settings in ({"num_probes": 0}, {"allowed_folds": 1.0}):
        with pytest.raises(ValueError, match="num_probes"):
            ODEFlow(swirl, (2,), **settings)
    for t in (-0.1, 1.5, math.nan):
        with pytest.raises(ValueError, match="times run from 0"):
            swirling().velocity(normal(2, 2), t)
    with pytest.raises(ValueError, match="expected inputs|shape"):
        swirling().log_prob(normal(3, 5))


@pytest.mark.parametrize(("solver", "density"), [(Heun(4), "map"), (Heun(8), "trace")], ids=repr)
def test_densities_under_autocast_are_those_of_single_precision(solver, density) -> None:
    torch.manual_seed(0)
    field = perturb(MLPVelocity(2, channels=32, context_size=3))
    flow = ODEFlow(field, (2,), solver=solver, density=density, embedding_net=torch.nn.Linear(3, 3).bfloat16())
    context = torch.ones(1, 3, dtype=torch.bfloat16)  # whose embedding is rounded in any case
    x, log_prob = (part[0] for part in flow.sample_and_log_prob(20, context, seed=0))
    rows = context.expand(20, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        drawn, drawn_log_prob = (part[0] for part in flow.sample_and_log_prob(20, context, seed=0))
        found = flow.log_prob(x, rows)
    torch.testing.assert_close(drawn, x, rtol=0, atol=1e-5)
    torch.testing.assert_close(drawn_log_prob, log_prob, rtol=0, atol=1e-5)
    torch.testing.assert_close(found, flow.log_prob(x, rows), rtol=0, atol=1e-5)


def test_contexts_embedded_in_half_precision() -> None:
    class Field(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shift = torch.nn.Linear(3, 2)

        def forward(self, x: torch.Tensor, t: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
            return self.shift(context)

    flow = ODEFlow(Field(), (2,), embedding_net=torch.nn.Linear(5, 3)).bfloat16()
    x, log_prob = flow.sample_and_log_prob(4, torch.zeros(1, 5, dtype=torch.bfloat16), seed=0)
    expected = flow._distribution.log_prob(torch.randn(4, 2, generator=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(log_prob[0], expected)  # of a shift
    assert x.dtype == torch.float32


def test_guided_flow_with_a_base_of_the_context() -> None:
    base = ConditionalDiagonalNormal((2,))  # whose means and log-widths are the context
    flow = ODEFlow(lambda x, t, context: context[:, :2], (2,), distribution=base, context_shape=(4,))
    guided = flow.guided(3.0, torch.zeros(1, 4))
    contexts = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    x, log_prob = guided.sample_and_log_prob(5, contexts, seed=0)
    normal = torch.distributions.Normal(4 * contexts[:, None, :2], contexts[:, None, 2:].exp())
    torch.testing.assert_close(log_prob, normal.log_prob(x).sum(-1), rtol=0, atol=1e-4)
    rows = contexts.repeat_interleave(5, 0)
    torch.testing.assert_close(guided.log_prob(x.flatten(0, 1), rows), log_prob.flatten(), rtol=0, atol=1e-4)


def test_a_guided_flow_is_an_ode_flow() -> None:
    base = ConditionalDiagonalNormal((2,))
    flow = ODEFlow(
        lambda x, t, context: context[:, :2], (2,), distribution=base, path=TwoSidedPath(), context_shape=(4,)
    )
    guided, context = flow.guided(3.0, torch.zeros(1, 4)), torch.randn(3, 4)
    assert type(guided) is ODEFlow and guided.span == flow.span and guided.path == flow.path
    torch.testing.assert_close(guided.velocity(torch.zeros(3, 2), 0.5, context), 3 * context[:, :2])
    twice = guided.with_solver(RK4(2), "trace").guided(2.0, torch.ones(1, 4))
    torch.testing.assert_close(twice.velocity(torch.zeros(3, 2), 0.5, context), 6 * context[:, :2] - 3)
    # Bases of guided fields that were put together by hand read the conditional context, too.
    field, pairs = GuidedVelocity(flow._transform.velocity, 3.0), PairedContext(torch.zeros(1, 4))
    by_hand = ODEFlow(field, (2,), distribution=base, embedding_net=pairs)
    assert torch.equal(by_hand.log_prob(torch.zeros(3, 2), context), guided.log_prob(torch.zeros(3, 2), context))


def test_noise_and_its_density() -> None:
    base = ConditionalDiagonalNormal((2,))  # whose means and log-widths are the context
    flow = ODEFlow(lambda x, t, context: context[:, :2], (2,), distribution=base, context_shape=(4,))
    contexts = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    noise, log_prob = flow.noise_and_log_prob(5, contexts, generator=torch.Generator().manual_seed(1))
    normal = torch.distributions.Normal(contexts[:, None, :2], contexts[:, None, 2:].exp())
    torch.testing.assert_close(log_prob, normal.log_prob(noise).sum(-1))
    rows = contexts.repeat_interleave(5, 0)
    samples = flow.sample(5, contexts, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(flow.decode(noise.flatten(0, 1), rows), samples.flatten(0, 1))


def test_samples_of_one_context_share_its_memory() -> None:
    strides = []

    def velocity(x, t, context):
        strides.append(context.stride(0))
        return context

    flow, context = ODEFlow(velocity, (2,), context_shape=(2,)), torch.randn(2)
    for draw in (flow.given(context).sample_and_log_prob, lambda n: flow.rsample_and_log_prob(n, context[None])):
        x, log_prob = draw(5)
        torch.testing.assert_close(log_prob.view(5), flow.given(context).log_prob(x.view(5, 2)))
    assert set(strides) == {0}


def test_numbers_of_any_dtype_where_no_weight_has_one() -> None:
    flow = ODEFlow(lambda x, t: -x, (2,))
    x = torch.tensor([[1, 2]])
    for given in (x, x.half()):
        assert torch.equal(flow.log_prob(given), flow.log_prob(x.float()))
        assert torch.equal(flow.score(given), flow.score(x.float()))
    assert flow.log_prob(x.double()).dtype == torch.float64


def test_guidance_of_another_kind_of_flow() -> None:
    flow = ODEFlow(MLPVelocity(2, channels=8, context_size=3), (2,))
    with pytest.raises(ValueError, match="LinearGuidance guides autoregressive flows"):
        flow.guided(LinearGuidance(1.0), torch.zeros(1, 3))


def test_a_class_or_a_name_in_the_place_of_an_object_is_told() -> None:
    field = MLPVelocity(2, channels=8)
    mistakes = {
        "solver": [lambda: ODEFlow(field, (2,), solver=RK4), lambda: ODEFlow(field, (2,), solver="rk4"),
                   lambda: ODEFlow(field, (2,)).with_solver(Heun)],
        "path": [lambda: ODEFlow(field, (2,), path=LinearPath),
                 lambda: FlowMap(MLPFlowMap(2, channels=8), 2, path="ot")],
        "velocity": [lambda: ODEFlow(MLPVelocity, (2,)), lambda: FlowMap(MLPFlowMap, (2,))],
    }  # fmt: skip
    for name, calls in mistakes.items():
        for call in calls:
            with pytest.raises(ValueError, match=f"^{name} must be an object such as .*, got .*[.]$"):
                call()


def test_a_distribution_of_another_event_shape_is_told() -> None:
    normal = torch.distributions.Normal(torch.zeros(3), 1.0)
    base = torch.distributions.Independent(normal, 1)
    for make in (lambda shape: ODEFlow(swirl, shape, distribution=base),
                 lambda shape: FlowMap(lambda x, r, t: x, shape, distribution=StandardNormal((3,)))):  # fmt: skip
        assert make(3).event_shape == (3,)
        with pytest.raises(ValueError, match=r"event_shape is \(2,\), and the distribution .* of shape \(3,\)"):
            make(2)
