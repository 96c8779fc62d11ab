"""Velocity networks: shapes, who sees whom, derivatives of higher order, contexts, and flows made of them."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path as FilePath

import pytest
import torch

from nflib.continuous import (
    AdaptiveRMSNorm,
    BlockwiseVelocity,
    FlowMap,
    FromDenoiser,
    Heun,
    LinearPath,
    MLPFlowMap,
    MLPVelocity,
    ODEFlow,
    RefinedSteps,
    TimeFeatures,
    TransformerVelocity,
)
from nflib.flows import Flow
from nflib.networks import checkpoint_activations, use_attention_backend
from tests.perturb import check_gradients, perturb

SMALL = {"channels": 16, "num_layers": 1, "head_dim": 8, "expansion": 2}
tokens = partial(TransformerVelocity, (3, 2), patch_size=2, **SMALL)
images = partial(TransformerVelocity, (1, 4, 4), patch_size=2, **SMALL)
vectors = partial(TransformerVelocity, (6,), patch_size=2, **SMALL)
CASES = {"tokens": (tokens, (3, 2)), "images": (images, (1, 4, 4)), "vectors": (vectors, (6,)),
         "mlp": (partial(MLPVelocity, 6, channels=16), (6,))}  # fmt: skip


@pytest.fixture(params=CASES)
def case(request):
    build, shape = CASES[request.param]
    return perturb(build(), 0.15).double(), shape


def test_a_new_network_is_zero_and_shaped_as_x() -> None:
    for build, shape in CASES.values():
        v = build()(torch.randn(5, *shape), torch.rand(5))
        assert v.shape == (5, *shape) and not v.any()


def test_a_number_is_the_shape_of_a_vector() -> None:
    assert ODEFlow(TransformerVelocity(4, patch_size=2, **SMALL), 4).event_shape == (4,)
    assert FlowMap(MLPFlowMap(2, channels=8), 2).event_shape == (2,)
    for shape in (0, (2, -1), 2.0, "2", True):
        with pytest.raises(ValueError, match="event_shape must list positive sizes"):
            ODEFlow(MLPVelocity(2, channels=8), shape)


FIELDS = {
    "vectors": (lambda: MLPVelocity(6, channels=16, context_size=3), (3,)),
    "converted": (lambda: FromDenoiser(MLPVelocity(6, channels=16, context_size=3), LinearPath()), (3,)),
    "in blocks": (lambda: BlockwiseVelocity([vectors(context_size=3), vectors(context_size=3)]), (3,)),
    "labels": (lambda: vectors(num_classes=3), ()),
    "none": (lambda: MLPVelocity(6, channels=16), None),
}


@pytest.mark.parametrize("name", FIELDS)
def test_a_flow_takes_the_contexts_that_its_velocity_says(name: str, tmp_path: FilePath) -> None:
    build, shape = FIELDS[name]
    flow = ODEFlow(build(), (6,))
    assert flow.context_shape == shape
    assert ODEFlow(build(), (6,), embedding_net=torch.nn.Linear(5, 3)).context_shape is None
    if shape is None:
        return
    one = torch.zeros(shape, dtype=torch.long if shape == () else torch.float32)
    assert flow.given(one).sample((2,)).shape == (2, 6)
    wrong = torch.zeros(4, *shape, 5) if shape == () else torch.zeros(4, 5)
    with pytest.raises(ValueError, match="this flow takes a context of shape"):
        flow.sample(2, wrong)
    for number, made in enumerate([flow, flow.guided(1.5, one)]):
        made.save_pretrained(tmp_path / str(number))
        again = Flow.from_pretrained(tmp_path / str(number))
        assert again.context_shape == made.context_shape == shape
        assert torch.equal(again.given(one).sample((2,), seed=0), made.given(one).sample((2,), seed=0))


def test_a_flow_map_takes_the_contexts_that_its_network_says() -> None:
    flow = FlowMap(MLPFlowMap(2, channels=8, context_size=3), (2,))
    assert flow.given(torch.ones(3)).sample((2,)).shape == (2, 2)
    refiner = MLPVelocity(2, channels=8, context_size=5)
    assert FlowMap(RefinedSteps(MLPVelocity(2, channels=8, context_size=3), refiner), (2,)).context_shape == (3,)


def test_rows_are_apart_and_all_numbers_seen(case) -> None:
    network, shape = case
    x, t = torch.randn(4, *shape).double(), torch.rand(4).double()
    full = network(x, t)
    for i in range(4):
        torch.testing.assert_close(network(x[i : i + 1], t[i : i + 1])[0], full[i], rtol=1e-12, atol=1e-12)
    jacobian = torch.autograd.functional.jacobian(lambda x: network(x[None], t[:1])[0].flatten(), x[0]).flatten(1)
    assert (jacobian != 0).all()  # causal attention would leave half of it zero
    assert (network(x, t + 1e-3) != full).all()


@pytest.mark.parametrize("name", ["tokens", "mlp"])
def test_derivatives_of_every_order(name: str) -> None:
    """Scores of densities take third derivatives of the field: by x twice, and by x or a parameter once more."""
    build, shape = CASES[name]
    network = perturb(build(), 0.3).double()
    x, t = torch.randn(2, *shape).double().requires_grad_(), torch.tensor([0.2, 0.7]).double()
    assert torch.autograd.gradcheck(lambda x: network(x, t), x)
    assert torch.autograd.gradgradcheck(lambda x: network(x, t), x)
    direction = torch.randn_like(x).detach()

    def second(x):
        (first,) = torch.autograd.grad((network(x, t) * direction).sum(), x, create_graph=True)
        return torch.autograd.grad((first * direction).sin().sum(), x, create_graph=True)[0]

    (third,) = torch.autograd.grad((second(x) * direction).sum(), x)
    h = 1e-5
    change = (second(x + h * direction) - second(x - h * direction)) / (2 * h)
    # <d second/dx . direction, direction> two ways
    torch.testing.assert_close((third * direction).sum(), (change * direction).sum(), rtol=1e-6, atol=1e-8)


def test_norm() -> None:
    norm, x, c = AdaptiveRMSNorm(4, 3), torch.randn(2, 5, 4), torch.randn(2, 1, 3)
    gain, bias = norm.modulation(c).chunk(2, -1)
    expected = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * (1 + gain) + bias
    torch.testing.assert_close(norm(x, c), expected)


def test_time_features_tell_times_apart() -> None:
    features = TimeFeatures(3)(torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64))
    assert features.shape == (3, 7) and features.dtype == torch.float64
    pi = torch.pi
    angles = torch.tensor([0.5 * pi, pi, 2 * pi], dtype=torch.float64)
    torch.testing.assert_close(features[1], torch.cat([torch.tensor([0.5]).double(), angles.sin(), angles.cos()]))
    assert torch.pdist(features).min() > 0.5


def test_contexts() -> None:
    x, t = torch.randn(4, 3, 2), torch.rand(4)
    classes = perturb(tokens(num_classes=3), 0.3)
    labels = torch.tensor([0, 1, 2, -1])
    v = classes(x, t, labels)
    torch.testing.assert_close(v[3:], classes(x[3:], t[3:]))
    assert not torch.allclose(v[:3], classes(x[:3], t[:3]), atol=1e-3)
    conditioned = perturb(tokens(context_size=5), 0.3)
    context = torch.randn(4, 5)
    assert not torch.allclose(conditioned(x, t, context), conditioned(x, t, context.flip(0)), atol=1e-3)
    with pytest.raises(ValueError, match="conditioned on a vector of 5"):
        conditioned(x, t)
    with pytest.raises(ValueError, match="pass the flow a context"):
        MLPVelocity(2, context_size=3)(torch.zeros(1, 2), torch.zeros(1))
    with pytest.raises(ValueError, match="must lie in 0"):
        classes(x, t, labels + 1)


def test_flows_of_them(case, tmp_path: FilePath) -> None:
    network, shape = case
    flow = ODEFlow(network, shape, solver=Heun(2)).double()
    x, log_prob = flow.sample_and_log_prob(2, seed=0)
    torch.testing.assert_close(flow.log_prob(x), log_prob, rtol=0, atol=1e-10)
    flow.save_pretrained(tmp_path)
    again = Flow.from_pretrained(tmp_path)
    assert torch.equal(again.log_prob(x), flow.log_prob(x))


def test_gradients_reach_all_parameters(case) -> None:
    network, shape = case
    flow = ODEFlow(network, shape, solver=Heun(2)).double()
    flow.log_prob(torch.randn(2, *shape).double()).sum().backward()
    check_gradients(network)


def test_conditioned_flow() -> None:
    flow = ODEFlow(perturb(tokens(num_classes=3)), (3, 2), solver=Heun(3), context_shape=()).double()
    labels = torch.tensor([0, 1, 2])
    x, log_prob = flow.sample_and_log_prob(2, labels, seed=0)
    assert x.shape == (3, 2, 3, 2)
    for row, label in enumerate(labels):
        torch.testing.assert_close(flow.given(int(label)).log_prob(x[row]), log_prob[row], rtol=0, atol=1e-10)


def test_recomputed_activations() -> None:
    network = perturb(tokens(), 0.3)
    x, t = torch.randn(4, 3, 2), torch.rand(4)
    parameters = list(network.parameters())
    plain = torch.autograd.grad(network(x, t).square().sum(), parameters)
    with checkpoint_activations(network):
        again = torch.autograd.grad(network(x, t).square().sum(), parameters)
    for a, b in zip(plain, again, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", ["tokens", "mlp", "denoiser", "blocks"])
def test_half_precision_weights(name: str) -> None:
    """A field of bfloat16 weights is computed in float32: the same as of those weights widened, and one-to-one."""
    build, shape = CASES.get(name, CASES["mlp"])
    field = perturb(build(), 0.15)
    field = {"denoiser": FromDenoiser(field, LinearPath()), "blocks": BlockwiseVelocity([field])}.get(name, field)
    flow = ODEFlow(field.bfloat16(), shape, solver=Heun(4))
    wide = copy.deepcopy(flow).float()
    x, log_prob = flow.sample_and_log_prob(8, seed=0)
    assert x.dtype == log_prob.dtype == torch.float32
    torch.testing.assert_close(flow.log_prob(x), wide.log_prob(x), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(flow.log_prob(x), log_prob, rtol=0, atol=1e-3)
    v = flow.velocity(x, 0.5)
    assert v.dtype == torch.float32
    v.square().mean().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.bfloat16 for p in flow.parameters())


def test_every_backend_sees_all_tokens() -> None:
    pytest.importorskip("xformers")
    network = perturb(tokens(), 0.3)
    x, t = torch.randn(4, 3, 2), torch.rand(4)
    expected = network(x, t)
    use_attention_backend(network, "xformers")
    torch.testing.assert_close(network(x, t), expected)


def test_errors() -> None:
    with pytest.raises(ValueError, match="not both"):
        tokens(num_classes=2, context_size=2)
    with pytest.raises(ValueError, match="must divide"):
        TransformerVelocity((1, 4, 4), patch_size=3)
    with pytest.raises(ValueError, match="multiple of head_dim"):
        TransformerVelocity((4, 2), channels=20, head_dim=16)
    with pytest.raises(ValueError, match="expected inputs of shape"):
        tokens()(torch.zeros(2, 4, 2), torch.zeros(2))
