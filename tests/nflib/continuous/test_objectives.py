"""Objectives: known minima on normal densities, gradients to all parameters, straighter paths, rewards."""

import math
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from nflib.continuous import (
    RK4,
    Dispersive,
    Distill,
    Euler,
    FlowCoupling,
    FlowMap,
    FlowMatching,
    Heun,
    InterpolantFlow,
    InterpolantMatching,
    Invertible,
    MeanFlow,
    MLPFlowMap,
    MLPVelocity,
    NearReference,
    ODEFlow,
    OptimalTransportCoupling,
    Pairs,
    PathPolicyGradient,
    PseudoHuber,
    RefinedSteps,
    RefinerMatching,
    Rollouts,
    SymmetricMatching,
    TwinFlow,
    UniformTimes,
    pairs_of,
)
from nflib.continuous.objectives.dispersive import log_mean_kernel
from nflib.interfaces import stated
from nflib.training import TrainingConfig, fit
from nflib.training.objectives import Demands, maximum_likelihood
from tests.nflib.continuous.cases import mixture_velocity
from tests.nflib.continuous.normal_map import MEAN, STD, NormalMap, normal_data
from tests.nflib.training_cases import Gaussian, Record, configuration
from tests.perturb import perturb
from tests.quiet import QUIET


class NormalVelocity(NormalMap):
    """The velocity at a time."""

    def forward(self, x, t):
        return super().forward(x, t, t)


def normal_ode(mean=MEAN, std=STD):
    return ODEFlow(NormalVelocity(mean, std), (2,))


def normal_map(mean=MEAN, std=STD):
    return FlowMap(NormalMap(mean, std), (2,))


def losses(objective, flow, count=30, size=2000):
    values = []
    for seed in range(count):
        batch = {"inputs": normal_data(size, 100 + seed)} if stated(Demands, objective).needs_data else {}
        values.append(objective(flow, batch, torch.Generator().manual_seed(seed))[0])
    return torch.stack(values)


def agrees(values, expected):
    """Whether the mean of values is within three standard errors of what is expected."""
    return abs(float(values.mean()) - expected) < 3 * float(values.std()) / len(values) ** 0.5 + 1e-9


def test_the_exact_velocity_has_the_least_loss_of_flow_matching():
    # Given x_t the variance of x1 - x0 is s^2 / s_t^2; over times its mean is pi s / 2.
    least = losses(FlowMatching(), normal_ode()).detach()
    assert agrees(least, math.pi * STD / 2)
    assert float(losses(FlowMatching(), normal_ode(std=0.7), 5).detach().mean()) > float(least.mean()) + 0.01


@pytest.mark.parametrize(
    ("objective", "make", "least"),
    [
        (FlowMatching(), normal_ode, math.pi * STD / 2),
        (MeanFlow(share_instant=0.5), normal_map, None),
        (MeanFlow(share_instant=0.0, both_ways=False), normal_map, None),
        (Distill(normal_ode().requires_grad_(False)), normal_map, 0.0),
    ],
    ids=["flow matching", "mean flow", "mean flow, no instants", "distillation"],
)
def test_training_finds_the_normal(objective, make, least, tmp_path):
    flow = make(0.3, 1.0)
    config = TrainingConfig(batch_size=512, max_steps=150, learning_rate=3e-2, weight_decay=0, ema_decay=0.9, **QUIET)
    data = normal_data(20_000) if stated(Demands, objective).needs_data else None
    fit(flow, data, config=config, objective=objective, output=tmp_path)
    field = flow._transform.velocity
    assert field.mean.item() == pytest.approx(MEAN, abs=0.05)
    assert field.std.item() == pytest.approx(STD, abs=0.05)
    if least is not None:
        assert float(losses(objective, flow, 10).mean()) == pytest.approx(least, abs=0.03)


def test_the_exact_map_is_where_mean_flow_has_no_gradient():
    flow = normal_map()
    for share in (0.0, 0.75):
        gradients = []
        for value in losses(MeanFlow(share_instant=share), flow):
            gradients.append(torch.stack(torch.autograd.grad(value, list(flow.parameters()), retain_graph=True)))
        for each in torch.stack(gradients).T:
            assert agrees(each, 0.0)


def test_mean_flow_has_the_derivative_of_the_definition():
    """Its target, against finite differences in float64, whichever way the jump leads."""
    torch.manual_seed(0)
    network = perturb(MLPFlowMap(2, channels=16, num_layers=1), 0.3).double()
    flow = FlowMap(network, (2,))
    objective = MeanFlow(share_instant=0.0)
    batch = {"inputs": normal_data(50).double()}
    value, _ = objective(flow, batch, torch.Generator().manual_seed(1))
    x, r, t, _, v = objective.jumps(flow, batch, torch.Generator().manual_seed(1))
    step = 1e-5
    with torch.no_grad():
        ahead = flow.average_velocity(x + step * v, r + step, t)
        behind = flow.average_velocity(x - step * v, r - step, t)
        target = v + (t - r)[:, None] * (ahead - behind) / (2 * step)
        expected = (flow.average_velocity(x, r, t) - target).square().mean()
    assert bool((t < r).any()) and bool((t > r).any())
    assert float(value) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize(
    "objective",
    [
        MeanFlow(),
        Invertible(MeanFlow()),
        Distill(normal_ode(), num_samples=32),
        Invertible(Distill(normal_ode(), num_samples=32)),
        Dispersive(MeanFlow(), "_transform.velocity.network.layers.0"),
        TwinFlow(),
    ],
    ids=lambda objective: type(objective).__name__,
)
def test_gradients_reach_all_parameters_of_a_map(objective):
    torch.manual_seed(0)
    flow = FlowMap(perturb(MLPFlowMap(2, channels=16, num_layers=2), 0.3), (2,))
    batch = {"inputs": normal_data(32)} if stated(Demands, objective).needs_data else {}
    loss, scalars = objective(flow, batch, torch.Generator().manual_seed(0))
    loss.backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in flow.parameters())
    assert all(value.isfinite() and not value.requires_grad for value in scalars.values())


def test_maps_are_fitted_given_contexts(tmp_path):
    flow = FlowMap(MLPFlowMap(2, channels=16, num_layers=1, context_size=3), (2,), context_shape=(3,))
    config = TrainingConfig(batch_size=32, max_steps=3, **QUIET)
    data = {"inputs": normal_data(64), "context": torch.randn(64, 3)}
    assert fit(flow, data, config=config, objective=Invertible(MeanFlow()), output=tmp_path).steps == 3


def test_invertible_measures_the_way_there_and_back():
    """Of the very jumps that the objective inside is trained on."""
    flow = FlowMap(lambda x, r, t: 0.5 * x, (2,))  # there and back x is multiplied by 1 - (t - r)^2 / 4
    objective, batch = Invertible(MeanFlow(), 3.0), {"inputs": normal_data(64)}
    loss, scalars = objective(flow, batch, torch.Generator().manual_seed(0))
    plain, _ = MeanFlow()(flow, batch, torch.Generator().manual_seed(0))
    x, r, t = MeanFlow().jumps(flow, batch, torch.Generator().manual_seed(0))[:3]
    expected = (x * (t - r)[:, None].square() / 4).square().mean()
    torch.testing.assert_close(scalars["there_and_back"], expected)
    torch.testing.assert_close(loss, plain + 3 * expected)


def test_times_are_weighted_beside_rows():
    objective, rows = FlowMatching(weight=lambda t: 1 + t), torch.arange(64.0)
    flow, batch = normal_ode(), {"inputs": normal_data(64), "weights": rows}
    x, v, t, _ = objective.drawn(flow, batch, torch.Generator().manual_seed(0))
    loss, _ = objective(flow, batch, torch.Generator().manual_seed(0))
    torch.testing.assert_close(loss, (rows * (1 + t) * (flow.velocity(x, t) - v).square().mean(1)).mean())


def test_pseudo_huber_is_quadratic_and_then_linear():
    loss = PseudoHuber(0.1)
    small, large = torch.tensor([[1e-3, 0.0]]).double(), torch.tensor([[300.0, 400.0]]).double()
    torch.testing.assert_close(loss(small), torch.tensor([1e-6 / 0.2]).double(), rtol=1e-3, atol=0)
    torch.testing.assert_close(loss(large), torch.tensor([499.9]).double(), rtol=1e-6, atol=0)
    torch.testing.assert_close(
        PseudoHuber()(large), torch.tensor([500 - 0.00108], dtype=torch.float64), rtol=1e-9, atol=0
    )


def bend(flow, noise):
    """Mean square of the velocity along the flow's own paths less the straight way from beginning to end."""
    times = torch.linspace(0, 1, 21)
    path = [noise]
    with torch.no_grad():
        for start, stop in zip(times[:-1].tolist(), times[1:].tolist(), strict=True):
            path.append(RK4(1).solve(lambda x, t, _: flow.velocity(x, t), path[-1], start, stop).state)
        straight = path[-1] - path[0]
        errors = [(flow.velocity(x, t) - straight).square().mean() for x, t in zip(path, times, strict=True)]
    return float(torch.stack(errors).mean())


@pytest.mark.parametrize("loss", [None, PseudoHuber()], ids=["squares", "pseudo-Huber"])
def test_reflow_straightens_paths(loss, tmp_path):
    torch.manual_seed(0)
    teacher = ODEFlow(mixture_velocity, (2,), solver=RK4(16))
    flow = ODEFlow(MLPVelocity(2, channels=32, num_layers=2), (2,))
    config = TrainingConfig(batch_size=256, max_steps=300, learning_rate=3e-3, ema_decay=0.95, **QUIET)
    objective = FlowMatching(Pairs()) if loss is None else FlowMatching(Pairs(), loss=loss)
    fit(flow, pairs_of(teacher, 8000, seed=0), config=config, objective=objective, output=tmp_path)
    noise = torch.randn(500, 2, generator=torch.Generator().manual_seed(5))
    assert bend(flow, noise) < 0.3 * bend(teacher, noise)
    # So one step is enough to come near to where the teacher leads.
    reached, one_step = teacher.decode(noise), ODEFlow(mixture_velocity, (2,), solver=Euler(1)).decode(noise)
    error = (flow.with_solver(Euler(1)).decode(noise) - reached).square().mean()
    assert float(error) < 0.3 * float((one_step - reached).square().mean())


def test_maximum_likelihood_of_the_map_improves_on_flow_matching(tmp_path):
    """Of two steps of Heun's method, whose density flow matching does not look at."""
    torch.manual_seed(0)
    flow = ODEFlow(MLPVelocity(2, channels=32, num_layers=1), (2,), solver=Heun(2))
    data, held_out = normal_data(4000), normal_data(500, seed=7)
    config = TrainingConfig(batch_size=256, max_steps=150, learning_rate=3e-3, ema_decay=0.9, **QUIET)
    fit(flow, data, config=config, objective=FlowMatching(), output=tmp_path / "matched")
    with torch.no_grad():
        before = float(flow.log_prob(held_out).mean())
    config = TrainingConfig(batch_size=128, max_steps=40, learning_rate=1e-3, ema_decay=0.9, **QUIET)
    fit(flow, data, config=config, objective=maximum_likelihood, output=tmp_path / "likeliest")
    with torch.no_grad():
        after = float(flow.log_prob(held_out).mean())
    exact = float(torch.distributions.Normal(MEAN, STD).log_prob(held_out).sum(1).mean())
    assert before < after
    assert after == pytest.approx(exact, abs=0.02)


def test_dispersion_is_zero_of_equal_rows_and_lower_of_others():
    same = torch.ones(4, 3, requires_grad=True)
    term = log_mean_kernel(same, 0.5)
    term.backward()
    assert float(term) == pytest.approx(0.0, abs=1e-6)
    assert bool(same.grad.isfinite().all())
    two = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    for rows in (two, two + 4096):
        assert float(log_mean_kernel(rows, 0.5)) == pytest.approx(math.log((1 + math.exp(-2)) / 2), abs=1e-6)


def test_dispersive_names_a_layer_of_the_flow(tmp_path):
    flow = FlowMap(MLPFlowMap(2, channels=16, num_layers=1), (2,))
    config = TrainingConfig(batch_size=32, max_steps=3, **QUIET)
    objective = Dispersive(MeanFlow(), "_transform.velocity.network.layers.0")
    assert fit(flow, normal_data(64), config=config, objective=objective, output=tmp_path).steps == 3
    batch = {"inputs": normal_data(8)}
    with pytest.raises(ValueError, match="no layer"):
        Dispersive(MeanFlow(), "nothing")(flow, batch, torch.Generator())
    with pytest.raises(ValueError, match="took no part"):
        Dispersive(MeanFlow(), "_distribution")(flow, batch, torch.Generator())


def test_the_first_call_of_a_layer_is_dispersed():
    """Of mean flow that on the pairs with t = r."""
    torch.manual_seed(0)
    flow, layer = FlowMap(MLPFlowMap(2, channels=16, num_layers=1), (2,)), "_transform.velocity.network.layers.0"
    batch, objective = {"inputs": normal_data(32)}, MeanFlow(share_instant=0.25)
    outputs = []
    handle = flow.get_submodule(layer).register_forward_hook(lambda *call: outputs.append(call[-1].detach()))
    plain, _ = objective(flow, batch, torch.Generator().manual_seed(0))
    handle.remove()
    h = outputs[0]
    assert h.shape == (8, 16)
    term = (-(h[:, None] - h[None]).square().mean(-1) / 0.7).exp().mean().log()
    loss, scalars = Dispersive(objective, layer, 0.3, 0.7)(flow, batch, torch.Generator().manual_seed(0))
    torch.testing.assert_close(scalars["dispersion"], term)
    torch.testing.assert_close(loss, plain + 0.3 * term)


class Drift(nn.Module):
    """A constant velocity."""

    def __init__(self):
        super().__init__()
        self.value = nn.Parameter(torch.tensor([0.2, -0.1]))

    def forward(self, x, t):
        return self.value.expand_as(x)


@pytest.mark.parametrize(("start", "stop"), [(0.0, 1.0), (0.25, 0.75)])
def test_the_policy_gradient_is_that_of_the_mean_reward(start, stop):
    """A constant velocity and a linear reward: mean and variance of the path's end by recursion."""
    epsilon, num_steps, direction = 0.2, 8, torch.tensor([1.0, 2.0])
    flow, policy = ODEFlow(Drift(), (2,), start=start, stop=stop), PathPolicyGradient(epsilon)
    slope, variance, length = 0.0, (1 - start) ** 2, (stop - start) / num_steps
    for t in [start + k * length for k in range(num_steps)]:
        keeps = 1 - length * epsilon / (1 - t)
        slope = keeps * slope + length * (1 + epsilon * t / (1 - t))
        variance = keeps**2 * variance + 2 * epsilon * length
    expected = slope * direction / (variance * 5) ** 0.5  # rewards are divided by their standard deviation
    gradients = []
    for seed in range(10):
        rollouts = Rollouts(flow, lambda x: x @ direction, policy, num_paths=5000, num_steps=num_steps, seed=seed)
        loss, scalars = policy(flow, rollouts.batch(torch.arange(5000)), torch.Generator())
        gradients.append(-torch.autograd.grad(loss, flow._transform.velocity.value)[0])
        assert float(scalars["clipped"]) == 0
    for each, value in zip(torch.stack(gradients).T, expected.tolist(), strict=True):
        assert agrees(each, value)


def test_a_ratio_out_of_bounds_pulls_no_more():
    flow, policy = ODEFlow(Drift(), (2,)), PathPolicyGradient(0.2, clip=0.1)
    rows = Rollouts(flow, lambda x: x[:, 0], policy, num_paths=16, num_steps=4).rows
    good = rows["advantage"] > 0
    far = {**rows, "log_prob": rows["log_prob"] + torch.where(good, -1.0, 1.0)[:, None]}  # ratios e and 1 / e
    loss, scalars = policy(flow, far, torch.Generator())
    (gradient,) = torch.autograd.grad(loss, flow._transform.velocity.value)
    assert float(scalars["clipped"]) == 1
    assert gradient.tolist() == [0.0, 0.0]


def test_noise_is_in_the_dtype_of_the_flow():
    base = torch.distributions.Independent(torch.distributions.Normal(torch.zeros(2), 1.0), 1)
    flow = ODEFlow(MLPVelocity(2, channels=8), (2,), distribution=base).double()
    rows = Rollouts(flow, lambda x: x[:, 0], PathPolicyGradient(0.2), num_paths=4, num_steps=2).rows
    assert rows["inputs"].dtype == rows["log_prob"].dtype == torch.float64
    jumps = FlowMap(MLPFlowMap(2, channels=8), (2,), distribution=base).double()
    assert Distill(flow, num_samples=4)(jumps, {}, torch.Generator())[0].dtype == torch.float64


def test_a_rewarded_flow_moves_where_it_is_told(tmp_path):
    flow, policy = ODEFlow(Drift(), (2,)), PathPolicyGradient(0.2)
    rollouts = Rollouts(flow, lambda x: -(x - 1).square().sum(1), policy, num_paths=256, num_steps=5)
    before = rollouts.mean_reward
    config = TrainingConfig(
        batch_size=128, max_steps=60, refresh_interval=2, ema_decay=0, learning_rate=3e-2, weight_decay=0, **QUIET
    )
    fit(flow, rollouts, config=config, objective=policy, output=tmp_path)
    assert rollouts.mean_reward > before + 0.5
    with pytest.raises(ValueError, match="reward"):
        Rollouts(flow, lambda x: x, policy)


@pytest.mark.parametrize("num_paths", [64, 1000])
def test_equal_rewards_are_no_reason_to_move(num_paths):
    flow, policy = ODEFlow(MLPVelocity(2, channels=8), (2,)), PathPolicyGradient()
    rollouts = Rollouts(flow, lambda x: torch.full((len(x),), 0.1), policy, num_paths=num_paths, num_steps=2)
    assert torch.equal(rollouts.rows["advantage"], torch.zeros(num_paths))


@pytest.mark.parametrize(("weight", "expected"), [(0.0, MEAN + STD**2), (100.0, MEAN)])
def test_weighted_flow_matching_tilts_a_normal_as_far_as_the_reference_allows(weight, expected, tmp_path):
    """Weights exp(x) shift the mean by the variance; held to the reference, the flow stays."""
    data = normal_data(20_000)
    weights = data.sum(1).exp()
    flow = normal_ode()
    config = TrainingConfig(batch_size=512, max_steps=150, learning_rate=2e-2, weight_decay=0, ema_decay=0.9, **QUIET)
    objective = NearReference(FlowMatching(), normal_ode().requires_grad_(False), weight)
    fit(flow, {"inputs": data, "weights": weights}, config=config, objective=objective, output=tmp_path)
    assert float(flow._transform.velocity.mean) == pytest.approx(expected, abs=0.05)
    assert float(flow._transform.velocity.std) == pytest.approx(STD, abs=0.05)


def test_both_terms_near_a_reference_are_of_the_same_points():
    """The second drew noise and times of its own."""
    seen = []

    class Seen(NormalVelocity):
        def forward(self, x, t, context=None):
            seen.append((x, t))
            return super().forward(x, t)

    flow, reference = (ODEFlow(Seen(), (2,)) for _ in range(2))
    NearReference(FlowMatching(), reference)(flow, {"inputs": normal_data(8)}, torch.Generator().manual_seed(0))
    (x, t), (again, then) = seen
    assert torch.equal(x, again) and torch.equal(t, then)


def test_an_objective_of_another_asks_for_what_that_one_asks():
    assert TwinFlow(Dispersive(MeanFlow(), "layer")).whole_batch and not TwinFlow().whole_batch

    @dataclass(frozen=True)
    class Annealed:
        progress: float = 0.0

        def at(self, progress):
            return Annealed(progress)

    assert TwinFlow(Annealed()).at(0.5).objective.progress == 0.5


def new_ode():
    return ODEFlow(MLPVelocity(2, channels=8, num_layers=1), (2,))


def new_map():
    return FlowMap(MLPFlowMap(2, channels=8, num_layers=1), (2,), num_steps=2)


def new_refined():
    field = perturb(MLPVelocity(2, channels=8, num_layers=1), 0.3)
    return FlowMap(RefinedSteps(field, MLPVelocity(2, channels=8, num_layers=1, context_size=2)), (2,))


def data_for(objective, flow):
    """What a training by the objective begins with."""
    if isinstance(objective, PathPolicyGradient):
        return Rollouts(flow, lambda x: x[:, 0], objective, num_paths=64, num_steps=3)
    return normal_data(64) if stated(Demands, objective).needs_data else None


@pytest.mark.parametrize(
    ("objective", "make"),
    [
        (FlowMatching(), new_ode),
        (NearReference(FlowMatching(), normal_ode()), new_ode),
        (PathPolicyGradient(), new_ode),
        (MeanFlow(), new_map),
        (Distill(normal_ode(), num_samples=16), new_map),
        (Invertible(MeanFlow()), new_map),
        (Dispersive(MeanFlow(), "_transform.velocity.network.layers.0"), new_map),
        (TwinFlow(), new_map),
        (RefinerMatching(), new_refined),
    ],
    ids=lambda value: type(value).__name__ if not callable(value) or hasattr(value, "keys") else value.__name__,
)
def test_training_is_resumed_bit_for_bit(objective, make, tmp_path):
    def train(output, record):
        torch.manual_seed(0)
        flow = make()
        fit(flow, data_for(objective, flow), objective=objective, output=output, callbacks=[record], **settings)

    refresh = 4 if isinstance(objective, PathPolicyGradient) else None
    settings, whole, second = {"config": configuration(refresh_interval=refresh)}, Record(), Record()
    train(tmp_path / "whole", whole)
    with pytest.raises(InterruptedError):
        train(tmp_path / "parts", Record(fail_at=8))
    train(tmp_path / "parts", second)
    assert second.losses == whole.losses[-len(second.losses) :]
    assert len(set(whole.losses)) == 12 and 0 < len(second.losses) < 12


OF_OTHER_FLOWS = {
    "FlowMatching": (FlowMatching(), "an ODEFlow or a FlowMap"),
    "MeanFlow": (MeanFlow(), "a FlowMap"),
    "Invertible": (Invertible(MeanFlow()), "a FlowMap"),
    "Dispersive": (Dispersive(FlowMatching(), "layer"), "an ODEFlow or a FlowMap"),
    "TwinFlow": (TwinFlow(FlowMatching()), "a FlowMap"),
    "RefinerMatching": (RefinerMatching(), "a FlowMap of RefinedSteps"),
    "PathPolicyGradient": (PathPolicyGradient(), "an ODEFlow"),
    "InterpolantMatching": (InterpolantMatching(), "an InterpolantFlow"),
    "SymmetricMatching": (SymmetricMatching(1), "an ODEFlow or a FlowMap"),
}


@pytest.mark.parametrize("name", OF_OTHER_FLOWS)
def test_an_objective_of_other_flows_names_them(name, tmp_path):
    objective, kinds = OF_OTHER_FLOWS[name]
    with pytest.raises(
        ValueError, match=f"the objective {name} needs a flow with .*Gaussian does not.* train {kinds}[.]$"
    ):
        fit(Gaussian(), torch.randn(8, 2), config=configuration(), objective=objective, output=tmp_path)


def test_an_objective_of_maps_refuses_velocities_and_a_class_is_no_objective(tmp_path):
    flow = ODEFlow(MLPVelocity(2, channels=8), (2,))
    with pytest.raises(ValueError, match="needs a flow with 'average_velocity', which ODEFlow does not have"):
        fit(flow, torch.randn(8, 2), config=configuration(), objective=MeanFlow(), output=tmp_path)
    for objective in (FlowMatching, "flow_matching"):
        with pytest.raises(ValueError, match=r"^objective must be an object such as FlowMatching\(\), got "):
            fit(flow, torch.randn(8, 2), config=configuration(), objective=objective, output=tmp_path)


def of_interpolants():
    return InterpolantFlow(*(MLPVelocity(2, channels=8, num_layers=1) for _ in range(2)), (2,))


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize(
    ("objective", "make"),
    [
        (FlowMatching(), new_ode),
        (FlowMatching(OptimalTransportCoupling()), new_ode),
        (FlowMatching(Pairs()), new_ode),
        (FlowMatching(FlowCoupling(normal_ode())), new_ode),
        (NearReference(FlowMatching(), normal_ode()), new_ode),
        (SymmetricMatching(1), new_ode),
        (MeanFlow(), new_map),
        (Invertible(MeanFlow()), new_map),
        (TwinFlow(), new_map),
        (RefinerMatching(), new_refined),
        (InterpolantMatching(), of_interpolants),
    ],
    ids=lambda value: type(value).__name__ if hasattr(value, "keys") else "",
)
def test_data_of_another_shape_are_refused(objective, make, size):
    """One column was copied into both coordinates by broadcasting with the noise, and trained on."""
    batch = {"inputs": torch.randn(8, size), "noise": torch.randn(8, size)}
    with pytest.raises(ValueError, match=rf"expected inputs of shape \(batch, 2\), got \(8, {size}\)|vectors of x"):
        objective(make(), batch, torch.Generator())


class Dropped(nn.Module):
    """A network of every kind, with dropout."""

    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def forward(self, x, *times):
        return self.drop(x + 1)


@pytest.mark.parametrize(
    ("make_objective", "make"),
    [
        (Distill, lambda: FlowMap(lambda x, r, t: x, 2)),
        (lambda flow: NearReference(FlowMatching(), flow), lambda: ODEFlow(lambda x, t: x, 2)),
        (lambda flow: FlowMatching(FlowCoupling(flow)), lambda: ODEFlow(lambda x, t: x, 2)),
    ],
    ids=["Distill", "NearReference", "FlowCoupling"],
)
def test_a_teacher_has_no_dropout(make_objective, make):
    objective, flow = make_objective(ODEFlow(Dropped(), 2).train()), make()
    batch = {"inputs": normal_data(8)}
    first, second = (objective(flow, batch, torch.Generator().manual_seed(0))[0] for _ in range(2))
    assert torch.equal(first, second)


def test_the_field_of_refined_steps_has_no_dropout():
    refiner = MLPVelocity(2, channels=8, num_layers=1, context_size=2)
    flow = FlowMap(RefinedSteps(Dropped(), refiner), (2,)).train()
    first, second = (
        RefinerMatching()(flow, {"inputs": normal_data(8)}, torch.Generator().manual_seed(0))[0] for _ in range(2)
    )
    assert torch.equal(first, second) and refiner.training


@pytest.mark.parametrize("kind", [torch.Tensor.bool, torch.Tensor.long, torch.Tensor.numpy, torch.Tensor.tolist])
def test_rewards_are_any_numbers(kind):
    flow, policy = new_ode(), PathPolicyGradient()
    rollouts = Rollouts(flow, lambda x: kind((x[:, 0] > 0).float()), policy, num_paths=64, num_steps=3)
    expected = Rollouts(flow, lambda x: (x[:, 0] > 0).float(), policy, num_paths=64, num_steps=3)
    assert rollouts.mean_reward == expected.mean_reward
    torch.testing.assert_close(rollouts.rows, expected.rows)


def test_what_is_no_part_of_an_objective_is_told():
    network = MLPVelocity(2, channels=8)
    mistakes = {
        "coupling": [lambda kind=kind: kind(OptimalTransportCoupling)
                     for kind in (FlowMatching, MeanFlow, RefinerMatching, InterpolantMatching)],
        "times": [lambda kind=kind: kind(times=UniformTimes)
                  for kind in (FlowMatching, MeanFlow, RefinerMatching, InterpolantMatching, TwinFlow)],
        "times ": [lambda: SymmetricMatching(1, UniformTimes), lambda: Distill(normal_ode(), times="uniform")],
        "loss": [lambda: FlowMatching(loss=PseudoHuber), lambda: MeanFlow(loss=PseudoHuber)],
        "teacher": [lambda: Distill(network), lambda: Distill(ODEFlow)],
        "reference": [lambda: NearReference(FlowMatching(), network)],
        "objective": [lambda: NearReference(MeanFlow(), normal_ode()), lambda: Invertible(FlowMatching()),
                      lambda: TwinFlow(MeanFlow), lambda: Dispersive(MeanFlow, "layer")],
        "flow": [lambda: FlowCoupling(network)],
    }  # fmt: skip
    for name, calls in mistakes.items():
        for call in calls:
            with pytest.raises(ValueError, match=f"^{name.strip()} must be an object such as .*, got "):
                call()
