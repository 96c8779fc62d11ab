"""Fields: conversions against closed forms, guidance, blocks of time, and the pseudo-corrector's order."""

import math
from itertools import pairwise

import pytest
import torch

from nflib.continuous import (
    RK4,
    BlockwiseVelocity,
    FlowMap,
    FlowMatching,
    FromDenoiser,
    FromNoise,
    FromScore,
    GuidedVelocity,
    Heun,
    LinearPath,
    MLPVelocity,
    ODEFlow,
    PseudoCorrector,
    RatioAware,
    RefinedVelocity,
    TrigonometricPath,
    VarianceExplodingPath,
    VariancePreservingPath,
)
from nflib.transforms import PairedContext
from tests.nflib.continuous.gaussian_mixtures import Exact
from tests.perturb import perturb

PATHS = [LinearPath(), LinearPath(0.01), TrigonometricPath(), VariancePreservingPath(), VarianceExplodingPath(0.1, 5.0)]
X = torch.randn(40, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
T = torch.rand(40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def at(t: float) -> torch.Tensor:
    return torch.full((len(X),), t, dtype=torch.float64)


def conversions(exact: Exact, path) -> tuple[FromScore, FromDenoiser, FromNoise]:
    return FromScore(exact.score, path), FromDenoiser(exact.denoised, path), FromNoise(exact.noise_given, path)


@pytest.mark.parametrize("path", PATHS, ids=repr)
def test_conversions_are_exact(path) -> None:
    exact = Exact(path)
    for field in conversions(exact, path):
        torch.testing.assert_close(field(X, T), exact.velocity(X, T), rtol=1e-9, atol=1e-9)
        assert not field.uses_context


@pytest.mark.parametrize("path", [LinearPath(), TrigonometricPath()], ids=repr)
def test_ends_with_a_limit_are_exact(path) -> None:
    exact = Exact(path)
    expected = exact.velocity(X, at(1.0))
    for field in conversions(exact, path):
        torch.testing.assert_close(field(X, at(1.0)), expected, rtol=1e-9, atol=1e-9)
    denoiser = FromDenoiser(exact.denoised, path)
    torch.testing.assert_close(denoiser(X, at(0.0)), exact.velocity(X, at(0.0)), rtol=1e-9, atol=1e-9)

    def slope(field, t):
        return torch.func.jvp(lambda x: field(x, at(t)), (X,), (torch.ones_like(X),))[1]

    torch.testing.assert_close(slope(denoiser, 1.0), slope(exact.velocity, 1.0), rtol=1e-9, atol=1e-9)


def test_ends_without_a_limit_say_what_to_do() -> None:
    exact = Exact(LinearPath())
    for field, t in (
        (FromScore(exact.score, LinearPath()), 0.0),
        (FromNoise(exact.noise_given, LinearPath()), 0.0),
        (FromDenoiser(lambda x, t: x, VariancePreservingPath()), 1.0),
        (FromScore(lambda x, t: -x, VariancePreservingPath()), 1.0),
    ):
        with pytest.raises(ValueError, match=rf"no velocity at t = {t:g}.*start > 0, or to stop < 1"):
            field(X, at(t))
    with pytest.raises(ValueError, match="the velocity is not finite"):  # which is the network's own doing
        ODEFlow(FromScore(lambda x, t: x * torch.nan, LinearPath()), (2,), start=0.1).sample(3, seed=0)


def test_flow_of_scores_has_the_density_of_the_velocity() -> None:
    exact = Exact(LinearPath())
    flows = [
        ODEFlow(field, (2,), solver=Heun(6), start=0.05)
        for field in (exact.velocity, FromScore(exact.score, LinearPath()))
    ]
    expected, found = (flow.log_prob(X) for flow in flows)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


# ---- guidance


class Pushed(torch.nn.Module):
    """The exact velocity of a normal around its context."""

    uses_context = True

    def forward(self, x, t, context):
        # x_t ~ N(t c, (1 - t)^2 + t^2 / 4)
        s = t[:, None]
        along = s / 4 - (1 - s)
        return context + along / ((1 - s) ** 2 + s**2 / 4) * (x - s * context)


def test_guidance_of_a_linear_field_is_that_of_the_guided_mean() -> None:
    flow = ODEFlow(Pushed(), (2,), solver=Heun(8), context_shape=(2,))
    context, none = torch.randn(7, 2, dtype=torch.float64), torch.zeros(1, 2, dtype=torch.float64)
    guided = flow.guided(2.5, none)
    # Linear in the context, so that guidance extrapolates the context itself.
    x = X[:7]
    torch.testing.assert_close(guided.log_prob(x, context), flow.log_prob(x, 2.5 * context), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(flow.guided(1.0, none).log_prob(x, context), flow.log_prob(x, context))
    single = flow.guided(2.5, torch.zeros(1, 2))
    drawn, log_prob = single.sample_and_log_prob(20, torch.ones(1, 2), seed=0)
    torch.testing.assert_close(single.given(torch.ones(2)).log_prob(drawn[0]), log_prob[0], rtol=1e-4, atol=1e-4)


def test_guided_flow_embeds_contexts_and_keeps_weights() -> None:
    embedding = torch.nn.Embedding(4, 3)
    net = perturb(MLPVelocity(2, channels=16, context_size=3), 0.3)
    flow = ODEFlow(net, (2,), embedding_net=embedding, context_shape=())
    guided = flow.guided(RatioAware(3.0, 1.0), torch.tensor([3]))
    labels = torch.tensor([0, 1, 2, 1])
    x = X[:4].float()
    by_hand = ODEFlow(
        GuidedVelocity(flow._transform.velocity, RatioAware(3.0, 1.0)),
        (2,),
        embedding_net=PairedContext(torch.tensor([3]), embedding),
    )
    assert torch.equal(guided.log_prob(x, labels), by_hand.log_prob(x, labels))
    before = guided.log_prob(x, labels)
    with torch.no_grad():
        flow._transform.velocity.network.proj_out.weight.mul_(2)
    assert not torch.allclose(guided.log_prob(x, labels), before)
    with pytest.raises(ValueError, match="given a context"):
        guided.sample(3)


def test_ratio_at_the_noise_end_in_closed_form() -> None:
    # At t = 0 a velocity is E[x1] - x0, so that rho = |m_c - m_u| / |m_u - x0|.
    field, strength = Pushed(), RatioAware(18.0, 12.0)
    conditional = field(X, at(0.0), torch.tensor([1.0, 2.0], dtype=torch.float64).expand_as(X))
    unconditional = field(X, at(0.0), torch.tensor([0.5, 1.0], dtype=torch.float64).expand_as(X))
    rho = math.hypot(0.5, 1.0) / (torch.tensor([0.5, 1.0]) - X).norm(dim=1)
    expected = 1 + 17 * torch.exp(-12 * rho)
    torch.testing.assert_close(strength(conditional, unconditional)[:, 0], expected)
    assert strength(conditional, 0 * conditional).eq(1).all()
    with pytest.raises(ValueError, match="alpha is -1"):
        RatioAware(2.0, -1)


def test_ratio_aware_flow_has_its_own_density() -> None:
    flow = ODEFlow(Pushed(), (2,), solver=Heun(12), context_shape=(2,)).guided(RatioAware(4.0, 1.0), torch.zeros(1, 2))
    given = flow.given(torch.tensor([1.0, -0.5]))
    grid = torch.linspace(-4, 4, 161)
    x = torch.cartesian_prod(grid, grid) + torch.tensor([1.5, -0.75])
    with torch.no_grad():
        total = given.log_prob(x).exp().sum() * (grid[1] - grid[0]) ** 2
    assert abs(float(total) - 1) < 2e-3


# ---- refinement


def test_refined_field_is_fitted_to_the_rest() -> None:
    exact, light = Exact(LinearPath()), Pushed()
    none = torch.zeros_like(X)

    def rest(x, t, v):
        return exact.velocity(x, t) - v

    field = RefinedVelocity(lambda x, t: light(x, t, none), rest)
    torch.testing.assert_close(field(X, T), exact.velocity(X, T))

    class Refiner(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.zeros(()))

        def forward(self, x, t, v):
            return self.scale * v

    base, refiner = perturb(MLPVelocity(2, channels=8), 0.3).requires_grad_(False), Refiner()
    flow = ODEFlow(RefinedVelocity(base, refiner), (2,))
    FlowMatching()(flow, {"inputs": X.float()}, torch.Generator().manual_seed(0))[0].backward()
    assert refiner.scale.grad.abs() > 0 and base.network.proj_out.weight.grad is None


# ---- blocks of time


def test_blocks_of_one_field_are_that_field() -> None:
    net = perturb(MLPVelocity(2, channels=16), 0.3).double()
    blocks = BlockwiseVelocity([net, net, net, net])
    assert blocks.edges == (0.25, 0.5, 0.75)
    torch.testing.assert_close(blocks(X, T), net(X, T))
    whole, cut = (ODEFlow(field, (2,), solver=Heun(8)) for field in (net, blocks))
    torch.testing.assert_close(cut.log_prob(X), whole.log_prob(X), rtol=1e-10, atol=1e-10)


def test_steps_never_cross_an_edge_and_the_density_is_continuous() -> None:
    class Recording(torch.nn.Module):
        def __init__(self, rate, first, last):
            super().__init__()
            self.rate, self.first, self.last = rate, first, last

        def forward(self, x, t):
            assert ((t >= self.first) & (t <= self.last)).all()
            return self.rate * x

    field = BlockwiseVelocity([Recording(-1.0, 0, 0.3), Recording(2.0, 0.3, 1)], edges=[0.3])
    flow = ODEFlow(field, (2,), solver=Heun(40))
    scale = math.exp(-0.3 + 1.4)
    normal = torch.distributions.Independent(torch.distributions.Normal(torch.zeros(2).double(), scale), 1)
    torch.testing.assert_close(flow.log_prob(X), normal.log_prob(X), rtol=2e-3, atol=2e-3)
    for start in (0.3 - 1e-7, 0.3 + 1e-7):
        part = ODEFlow(field, (2,), solver=Heun(10), start=start).log_prob(X)
        torch.testing.assert_close(
            part, ODEFlow(field, (2,), solver=Heun(10), start=0.3).log_prob(X), atol=1e-5, rtol=0
        )
    with pytest.raises(ValueError, match="an edge of the fields lies between"):
        field.within(0.2, 0.4)


def test_blocks_train_each_at_its_own_times() -> None:
    blocks = BlockwiseVelocity([MLPVelocity(2, channels=8), MLPVelocity(2, channels=8)], edges=[0.4])
    flow = ODEFlow(blocks, (2,))
    loss, _ = FlowMatching()(flow, {"inputs": X.float()}, torch.Generator().manual_seed(0))
    loss.backward()
    assert all(parameter.grad is not None for parameter in flow.parameters())
    assert all(field.network.proj_out.weight.grad.abs().sum() > 0 for field in blocks.fields)


def test_edges_that_do_not_fit() -> None:
    nets = [MLPVelocity(2), MLPVelocity(2)]
    for edges in ([], [0.5, 0.6], [1.0], [-0.1]):
        with pytest.raises(ValueError, match="2 fields take 1 edges"):
            BlockwiseVelocity(nets, edges)


def test_blocks_of_which_some_take_a_context() -> None:
    with pytest.raises(ValueError, match="make all of one kind"):
        BlockwiseVelocity([MLPVelocity(2), MLPVelocity(2, context_size=3)])


def test_guided_blocks_keep_their_edges() -> None:
    blocks = BlockwiseVelocity([Pushed(), Pushed()], [0.3])
    context = torch.randn(len(X), 2, dtype=torch.float64)
    plain, cut = (
        ODEFlow(field, (2,), solver=Heun(10)).guided(2.0, torch.zeros(1, 2).double()) for field in (Pushed(), blocks)
    )
    assert cut._transform.velocity.edges == (0.3,)
    torch.testing.assert_close(cut.log_prob(X, context), plain.log_prob(X, context), rtol=1e-9, atol=1e-9)


# ---- the pseudo-corrector


def growth(x, t, context=None):
    return x * torch.cos(3 * t)[:, None] - 0.1 * x**3  # a Bernoulli equation


def errors(solver_type, numbers) -> list[float]:
    exact = RK4(200).solve(growth, X, 0.0, 1.0).state
    return [float((solver_type(n).solve(growth, X, 0.0, 1.0).state - exact).abs().max()) for n in numbers]


def test_pseudo_corrector_is_of_second_order_and_saves_evaluations() -> None:
    numbers = (16, 32, 64, 128)
    found = errors(PseudoCorrector, numbers)
    for coarse, fine in pairwise(found):
        assert 1.8 < math.log2(coarse / fine) < 2.2
    solution = PseudoCorrector(64).solve(growth, X, 0.0, 1.0)
    assert (solution.evaluations == 65).all()
    # Heun needs 2 x 32 = 64 evaluations, and has more than the error of these.
    assert errors(Heun, [32])[0] > found[2]


def test_pseudo_corrector_is_one_map_with_a_density() -> None:
    exact = Exact(LinearPath())
    flow = ODEFlow(exact.velocity, (2,), solver=PseudoCorrector(8))
    x, log_prob = flow.sample_and_log_prob(200, seed=0)
    torch.testing.assert_close(flow.log_prob(x), log_prob, rtol=1e-4, atol=1e-4)
    noise = torch.randn(5, 2, dtype=torch.float64)
    data, logabsdet = flow._transform.inverse(noise)
    matrices = [torch.autograd.functional.jacobian(lambda z: flow._transform.generate(z[None])[0], z) for z in noise]
    torch.testing.assert_close(logabsdet, torch.stack(matrices).det().log(), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(flow._transform(data)[0], noise, rtol=1e-8, atol=1e-8)
    backwards = PseudoCorrector(64).solve(growth, PseudoCorrector(64).solve(growth, X, 0.0, 1.0).state, 1.0, 0.0)
    torch.testing.assert_close(backwards.state, X, rtol=0, atol=1e-3)


# ---- all of them


@pytest.mark.parametrize("name", ["blocks", "denoiser", "guided", "pseudo-corrector"])
def test_saved_and_loaded(name, tmp_path) -> None:
    nets = [perturb(MLPVelocity(2, channels=8, context_size=size), 0.3) for size in (0, 0, 3)]
    flow = {
        "blocks": lambda: ODEFlow(BlockwiseVelocity(nets[:2], [0.3]), (2,)),
        "denoiser": lambda: ODEFlow(FromDenoiser(nets[0], TrigonometricPath()), (2,), path=TrigonometricPath()),
        "guided": lambda: ODEFlow(nets[2], (2,), context_shape=(3,)).guided(RatioAware(3.0, 1.0), torch.zeros(1, 3)),
        "pseudo-corrector": lambda: ODEFlow(nets[0], (2,), solver=PseudoCorrector(4)),
    }[name]()
    context = torch.ones(4, 3) if name == "guided" else None
    flow.save_pretrained(tmp_path / "flow")
    again = type(flow).from_pretrained(tmp_path / "flow")
    assert torch.equal(again.log_prob(X[:4].float(), context), flow.log_prob(X[:4].float(), context))


class OfContext(torch.nn.Module):
    """A network of one's own that cannot do without a context."""

    def forward(self, x, t, context):
        return context - x


def test_a_context_that_is_missing_is_told() -> None:
    x, t = torch.zeros(3, 2), torch.full((3,), 0.5)
    flows = [ODEFlow(OfContext(), 2), ODEFlow(OfContext(), 2, context_shape=(2,))]
    flows += [FlowMap(lambda x, r, t, context: context - x, 2)]
    flows += [ODEFlow(RefinedVelocity(lambda x, t, context=None: x, lambda x, t, v, context: v), 2)]
    flows += [ODEFlow(lambda x, t, context=None: torch.cat([x, context], 1)[:, :2], 2, context_shape=2)]
    flows += [ODEFlow(lambda x, t, context=None: x * context.mean(), 2)]
    for flow in flows:
        for call in (lambda flow=flow: flow.sample(3), lambda flow=flow: flow.velocity(x, t)):
            with pytest.raises(
                ValueError, match=r"takes a context \(.*('context'|NoneType.*)\); pass the flow one[.]$"
            ):
                call()
        assert flow.sample(3, torch.ones(1, 2)).shape == (1, 3, 2)


def test_a_type_error_of_the_network_itself_stays() -> None:
    with pytest.raises(TypeError, match="unsupported operand"):
        ODEFlow(lambda x, t, context=None: x + "1", 2).sample(3)


class Shrinking(torch.nn.Module):
    def forward(self, x, t):
        return -x


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_network_without_a_signature_says_whether_it_takes_a_context() -> None:
    traced = torch.jit.trace(Shrinking(), (X, T))
    with pytest.raises(ValueError, match="no signature tells .* uses_context"):
        ODEFlow(traced, 2)
    traced.uses_context = False
    assert ODEFlow(traced, 2).sample(3).shape == (3, 2)
    with pytest.raises(ValueError, match="no signature tells .* wrap it"):
        ODEFlow(torch.mul, 2)
