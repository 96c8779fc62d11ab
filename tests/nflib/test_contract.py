"""What a flow owes its users whoever wrote the decoder, the base or the loop."""

from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from nflows.distributions import StandardNormal as NFlowsStandardNormal
from nflows.distributions.uniform import BoxUniform
from nflows.transforms import (
    CompositeTransform,
    IdentityTransform,
    InverseTransform,
    MultiscaleCompositeTransform,
    SqueezeTransform,
    Transform,
)
from torch import Tensor, nn

from nflib import Flow, decoding
from nflib.continuous import Heun, MLPVelocity, ODEFlow, ODETransform
from nflib.decoding import Jacobi
from nflib.distributions import StandardNormal
from nflib.flows import TARFlow
from nflib.montecarlo import importance_sample
from nflib.transforms import LinearGuidance, Standardize, VectorPatches
from tests.perturb import perturb

SMALL = {"channels": 32, "num_blocks": 2, "layers_per_block": 1, "head_dim": 16}


def make(event_shape=(6,), strength: float = 0.3, **settings) -> TARFlow:
    """A flow that is far from the identity."""
    torch.manual_seed(0)
    return perturb(TARFlow(event_shape, **(SMALL | settings)), strength)


# --- decoders and transforms of others ---


def two_sweeps(map, noise, encoded_context, prefix=None):
    """A decoder of somebody's own that stops early and says nothing of it."""
    tokens, logabsdet = noise.clone(), None
    for _ in range(2):
        tokens, logabsdet = map.from_noise(noise, map.conditionals(tokens, encoded_context))
    return tokens, logabsdet.flatten(1).sum(-1)


def test_a_decoder_that_stops_early_gets_the_density_of_what_it_returned():
    flow = make((16,)).double()
    x, log_prob = flow.sample_and_log_prob(32, seed=0, decoding=two_sweeps)
    exact = flow.sample(32, seed=0)
    assert (x - exact).abs().max() > 1e-2  # it did stop early
    torch.testing.assert_close(log_prob, flow.log_prob(x), rtol=0, atol=1e-8)


def test_the_two_argument_inverse_of_a_map_with_such_a_decoder_is_exact_for_its_tokens():
    block = make((16,)).double()._transform._transforms[1]
    block.decoding = two_sweeps
    tokens, logabsdet = block.inverse(torch.randn(4, 16, 1, dtype=torch.float64))
    torch.testing.assert_close(logabsdet, -block(tokens)[1], rtol=0, atol=1e-12)


def test_what_a_decoder_does_not_say_is_unknown_and_seen_in_the_round_trip():
    with decoding.report() as report:
        make((16,)).sample(2, seed=0, decoding=two_sweeps)
    assert len(report.blocks) == 2 and report.residual is None and "unknown" in repr(report)
    assert report.round_trip_error > 1e-3


def test_a_residual_that_is_no_number_is_inexact():
    flow = make((16,)).double()

    def lost(*call):
        return decoding.Inversion(*two_sweeps(*call), math.nan, (decoding.BlockReport(32, 16, (16, 16), math.nan),))

    with decoding.report() as report:
        x, log_prob = flow.sample_and_log_prob(32, seed=0, decoding=lost)
    assert math.isnan(report.residual)
    torch.testing.assert_close(log_prob, flow.log_prob(x), rtol=0, atol=1e-8)


class Cube(Transform):
    """``z = x^3 + x``, whose inverse takes three steps of Newton's method: an nflows transform that iterates."""

    def forward(self, inputs, context=None):
        return inputs**3 + inputs, (3 * inputs**2 + 1).log().flatten(1).sum(-1)

    def inverse(self, inputs, context=None):
        x = inputs.clone()
        for _ in range(3):
            x = x - (x**3 + x - inputs) / (3 * x**2 + 1)
        return x, -self.forward(x)[1]


def test_an_nflows_transform_with_an_iterative_inverse_gets_the_density_of_what_it_returned():
    flow = Flow(CompositeTransform([Cube()]), StandardNormal((3,)))
    x, log_prob = flow.sample_and_log_prob(100, seed=0)
    torch.testing.assert_close(log_prob, flow.log_prob(x), rtol=0, atol=1e-5)
    z = flow.encode(x)
    assert (z - StandardNormal((3,)).draw(100, None, torch.Generator().manual_seed(0))).abs().max() > 1e-2


@pytest.mark.parametrize("decoder", ["jacobi", Jacobi])
def test_what_is_no_decoder_is_an_error(decoder):
    flow = make()
    for call in (lambda: flow.sample(1, decoding=decoder), lambda: flow.decode(torch.zeros(1, 6, 1), decoding=decoder)):
        with pytest.raises(ValueError, match=r"decoding must be an object such as decoding\.Jacobi\(\)"):
            call()


# --- bases of others ---


def test_any_base_will_do():
    box = Flow(IdentityTransform(), BoxUniform(torch.zeros(2), torch.ones(2)))
    assert box.log_prob(torch.rand(3, 2)).tolist() == [0.0] * 3
    x, log_prob = box.sample_and_log_prob(5, seed=0)
    assert torch.equal(box.sample(5, seed=0), x) and not log_prob.any()
    normal = torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2))
    flow = Flow(Cube(), normal)
    assert flow.event_shape == (2,) and flow.given().event_shape == (2,)
    with pytest.raises(ValueError, match="Independent"):
        Flow(IdentityTransform(), torch.distributions.Normal(torch.zeros(2), torch.ones(2)))


# --- forward is log_prob ---


def test_a_flow_is_a_module():
    flow, x = make(), torch.randn(5, 6)
    expected = flow.log_prob(x)
    torch.testing.assert_close(flow(x), expected)
    torch.testing.assert_close(nn.DataParallel(flow)(x), expected)
    torch.testing.assert_close(torch.func.functional_call(flow, dict(flow.named_parameters()), (x,)), expected)
    torch.testing.assert_close(copy.deepcopy(flow)(x), expected)
    torch.testing.assert_close(torch.compile(flow, fullgraph=True, backend="eager")(x), expected)
    torch.testing.assert_close(torch.export.export(flow, (x,)).module()(x), expected)


@pytest.mark.parametrize("conditional", ["affine", "spline"])
def test_one_graph_with_a_context(conditional):
    flow, x = make(patch_size=2, num_classes=3, positions="rotary", conditional=conditional), torch.randn(4, 6)
    context = torch.tensor([0, 2, -1, 1])
    compiled = torch.compile(flow, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x, context), flow(x, context))


def test_a_flow_on_the_meta_device_has_shapes():
    with torch.device("meta"):
        flow = TARFlow((6,), **SMALL)
    assert flow(torch.zeros(3, 6, device="meta")).shape == (3,)


@pytest.mark.parametrize(
    "settings",
    [
        {"context_shape": (None, 3)},
        {"positions": "rotary"},
        {"positions": "sinusoidal"},
        {"conditional": ["spline", "circular"]},
    ],
)
def test_a_flow_on_the_meta_device_becomes_real(settings):
    flow = make(patch_size=2, **settings)
    context = torch.randn(3, 5, 3) if "context_shape" in settings else None
    x, weights = torch.randn(3, 6), flow.state_dict()
    with torch.device("meta"):
        assigned, emptied = (TARFlow((6,), 2, **(SMALL | settings)) for _ in range(2))
    shape = emptied(x.to("meta"), None if context is None else context.to("meta")).shape
    assigned.load_state_dict(weights, assign=True)
    emptied.to_empty(device="cpu").load_state_dict(weights)
    for again in (assigned, emptied):
        assert torch.equal(again(x, context), flow(x, context)) and shape == (3,)
        assert torch.equal(again.sample(2, context, seed=0), flow.sample(2, context, seed=0))


@pytest.mark.parametrize("conditional", ["affine", "spline"])
def test_a_flow_in_half_precision_is_sampled_token_by_token(conditional):
    flow = make(patch_size=2, conditional=conditional).bfloat16()
    samples, log_prob = flow.sample_and_log_prob(3, seed=0)
    torch.testing.assert_close(flow.log_prob(samples), log_prob, rtol=0.05, atol=0.2)


def test_ddp(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        flow, x = make(), torch.randn(5, 6)
        wrapped = nn.parallel.DistributedDataParallel(flow)
        wrapped(x).sum().backward()
        assert all(parameter.grad is not None for parameter in flow.parameters() if parameter.numel() > 1)
    finally:
        torch.distributed.destroy_process_group()


# --- inputs ---


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float16, torch.bfloat16, torch.bool])
def test_integers_and_half_precision_are_converted(dtype):
    flow = make()
    x = torch.randint(0, 2, (4, 6)).to(dtype)
    for call in (flow.log_prob, flow.score, flow.encode, flow.bits_per_dim):
        assert torch.equal(call(x), call(x.float()))
    assert flow.log_prob(x).dtype == torch.float32


def test_float32_is_widened_and_float64_refused():
    flow, x = make(), torch.randn(4, 6)
    for call in (flow.log_prob, flow.score, flow.encode):
        with pytest.raises(ValueError, match=r"float64 and the flow is float32"):
            call(x.double())
    wide = make().double()
    assert torch.equal(wide.log_prob(x), wide.log_prob(x.double())) and wide.log_prob(x).dtype == torch.float64
    assert flow.log_prob(x.numpy()).shape == (4,)


def test_a_flow_in_half_precision_has_noise_and_densities_in_float32():
    flow = make().bfloat16()
    x, log_prob = flow.sample_and_log_prob(4, seed=0)
    assert x.dtype == log_prob.dtype == flow.log_prob(x).dtype == torch.float32
    assert flow.encode(x).dtype == torch.float32
    drawn = StandardNormal((3,)).bfloat16().draw(1000, None, torch.Generator().manual_seed(0))
    assert len(drawn.unique()) > 2000


def test_a_single_token_learns():
    for flow in (TARFlow((1,), **SMALL), TARFlow((1, 4, 4), 4, **SMALL), TARFlow(6, 6, **SMALL)):
        flow.log_prob(torch.randn(3, *flow.event_shape)).sum().backward()
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in flow.parameters())


def test_batches_give_the_same_numbers_and_gradients():
    flow, x = make(patch_size=2).double(), torch.randn(7, 6, dtype=torch.float64, requires_grad=True)
    whole, parts = flow.log_prob(x), flow.log_prob(x, batch_size=3)
    torch.testing.assert_close(parts, whole, rtol=1e-12, atol=1e-12)
    wanted = [x, *flow.parameters()]
    pairs = zip(*(torch.autograd.grad(v.sum(), wanted, allow_unused=True) for v in (whole, parts)), strict=True)
    for one, other in pairs:
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=0, atol=1e-10 * float(one.abs().max().clamp_min(1.0)))
    torch.testing.assert_close(flow.score(x.detach(), batch_size=2), flow.score(x.detach()), rtol=1e-12, atol=1e-12)
    noise = flow.encode(x)
    torch.testing.assert_close(flow.encode(x, batch_size=3), noise, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(flow.decode(noise, batch_size=3), x.detach(), rtol=1e-9, atol=1e-9)
    for call in (flow.log_prob, flow.encode, flow.decode):
        with pytest.raises(ValueError, match="batch_size"):
            call(noise if call == flow.decode else x, batch_size=0)


def test_what_is_meant_plainly_works():
    flow = make(64, patch_size=8, num_classes=3)
    assert flow.event_shape == (64,)
    assert flow.sample(2, context=1, seed=np.int64(3)).shape == (1, 2, 64)
    assert torch.equal(flow.sample(2, 1, seed=3), flow.sample(np.int64(2), torch.tensor([1]), seed=3))
    assert flow.guided(LinearGuidance(1.0), -1).sample(1, torch.tensor([0, 2]), seed=0).shape == (2, 1, 64)
    for width in (0, -1.0, math.nan):
        with pytest.raises(ValueError, match="bin_width"):
            flow.bits_per_dim(torch.zeros(2, 64), bin_width=width)


def test_dropout_has_no_density_to_sample():
    flow = make(dropout=0.5).train()
    for call in (flow.sample, flow.sample_and_log_prob, flow.rsample, lambda n: flow.decode(torch.zeros(n, 6, 1))):
        with pytest.raises(ValueError, match="eval"):
            call(2)
    x, log_prob = flow.eval().sample_and_log_prob(2, seed=0)
    torch.testing.assert_close(flow.log_prob(x), log_prob, rtol=0, atol=1e-4)
    make().train().sample(2)  # without dropout nothing is refused


# --- second derivatives ---


@pytest.mark.parametrize("conditional", ["affine", "spline"])
def test_hessians(conditional):
    flow = make((4,), conditional=conditional).double()
    x = torch.randn(1, 4, dtype=torch.float64)
    hessian = torch.autograd.functional.hessian(lambda y: flow.log_prob(y).sum(), x).reshape(4, 4)
    step = 1e-5 * torch.eye(4, dtype=torch.float64)
    numerical = torch.stack([(flow.score(x + d) - flow.score(x - d))[0] / 2e-5 for d in step])
    torch.testing.assert_close(hessian, numerical, rtol=1e-5, atol=1e-5)
    functional = torch.func.hessian(lambda y: flow.log_prob(y).sum())(x).reshape(4, 4)
    torch.testing.assert_close(functional, hessian, rtol=1e-9, atol=1e-9)
    y = x.clone().requires_grad_()
    (twice,) = torch.autograd.grad(flow.score(y)[0, 1], y)
    torch.testing.assert_close(twice[0], hessian[1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("norm", ["layer_norm", "rms_norm"])
def test_third_derivatives(norm):
    """Of the trace of the Hessian, by a parameter, as score matching takes it."""
    flow = make((3,), norm=norm).double()
    x = torch.randn(1, 3, dtype=torch.float64).requires_grad_()
    weight = flow._transform._transforms[1].network.proj_in.weight

    def trace() -> Tensor:
        score = flow.score(x)
        return sum(torch.autograd.grad(score[0, k], x, create_graph=True)[0][0, k] for k in range(3))

    (gradient,) = torch.autograd.grad(trace(), weight)
    step, traces = 1e-5 * torch.randn_like(weight), []
    for factor in (1, -2):
        with torch.no_grad():
            weight += factor * step
        traces.append(trace())
    torch.testing.assert_close((gradient * step).sum(), (traces[0] - traces[1]).detach() / 2, rtol=1e-5, atol=1e-12)


def test_forward_derivatives():
    flow = make((4,)).double().requires_grad_(False)
    x, direction = torch.randn(2, 3, 4, dtype=torch.float64)
    (_, along) = torch.func.jvp(flow.log_prob, (x,), (direction,))
    torch.testing.assert_close(along, (flow.score(x) * direction).sum(1), rtol=1e-9, atol=1e-9)


# --- inference mode ---


@pytest.mark.parametrize("build", [make, lambda: ODEFlow(MLPVelocity(6), (6,))])
def test_derivatives_in_inference_mode(build):
    flow, x = build(), torch.randn(2, 6)
    flow.requires_grad_(False)
    expected = flow.log_prob(x), flow.score(x)
    with torch.inference_mode():
        torch.testing.assert_close((flow.log_prob(x), flow.score(x)), expected)
        drawn, log_prob = flow.sample_and_log_prob(2, seed=0)
    torch.testing.assert_close(flow.log_prob(drawn), log_prob, rtol=0, atol=1e-4)
    assert flow.score(drawn).shape == (2, 6)
    flow.requires_grad_(True)
    with torch.no_grad():
        assert not flow.log_prob(drawn).requires_grad


def test_a_flow_made_in_inference_mode_plans_its_decoding():
    with torch.inference_mode():
        assert make().sample(2, decoding=decoding.Auto()).shape == (2, 6)


# --- bases ---


def test_a_flow_is_the_base_of_another():
    inner, std = make().double(), torch.linspace(0.5, 2, 6).double()
    flow = Flow(Standardize(torch.zeros(6), std), inner)
    x, log_prob = flow.rsample_and_log_prob(3, seed=0)
    torch.testing.assert_close(log_prob, inner.log_prob(x / std.float()) - std.float().double().log().sum())
    (own,) = torch.autograd.grad(x.sum(), inner._transform._transforms[1].network.proj_out.bias)
    generator = torch.Generator().manual_seed(0)
    same = inner.rsample(3, generator=generator) * std.float()
    torch.testing.assert_close(x, same)
    (expected,) = torch.autograd.grad(same.sum(), inner._transform._transforms[1].network.proj_out.bias)
    torch.testing.assert_close(own, expected)


def test_a_base_flow_that_takes_no_context_stands_under_a_map_that_does():
    conditional = make(context_shape=(3,))
    transform = CompositeTransform([conditional._transform, InverseTransform(VectorPatches((6,), 1))])
    flow, context = Flow(transform, make()).double(), torch.randn(2, 3, dtype=torch.float64)
    x, log_prob = flow.sample_and_log_prob(4, context, seed=0)
    expected = flow.log_prob(x.flatten(0, 1), context.repeat_interleave(4, 0))
    torch.testing.assert_close(log_prob.flatten(), expected, rtol=1e-9, atol=1e-9)
    with pytest.raises(ValueError, match="takes no context"):
        Flow(Standardize(torch.zeros(6), torch.ones(6)), make()).sample(2, context)


def test_samples_have_the_gradient_of_a_base_of_torch():
    location = torch.zeros(6, requires_grad=True)
    base = torch.distributions.Independent(torch.distributions.Normal(location, 1.0), 1)
    flow = Flow(Standardize(torch.zeros(6), 2 * torch.ones(6)), base)
    (gradient,) = torch.autograd.grad(flow.rsample(3, seed=0).sum(), location)
    torch.testing.assert_close(gradient, torch.full((6,), 6.0))
    assert not flow.sample(3).requires_grad


def test_a_base_that_only_estimates_is_told():
    inner = ODEFlow(MLPVelocity(6), (6,), density="hutchinson")
    flow = Flow(Standardize(torch.zeros(6), torch.ones(6)), inner)
    assert flow.stochastic_density and flow.given().stochastic_density
    # Bound to its context it is a torch distribution, which others may be made of.
    scaled = torch.distributions.TransformedDistribution(inner.given(), [torch.distributions.AffineTransform(0.0, 2.0)])
    assert Flow(Standardize(torch.zeros(6), torch.ones(6)), inner.given()).stochastic_density
    exact = ODEFlow(MLPVelocity(6), (6,), density="map")
    assert not Flow(Standardize(torch.zeros(6), torch.ones(6)), exact.given()).stochastic_density
    for proposal in (scaled, Flow(Standardize(torch.zeros(6), torch.ones(6)), scaled)):
        with pytest.raises(ValueError, match="proposal estimates its log-density"):
            importance_sample(proposal, scaled, 5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bases_of_others_draw_in_the_dtype_of_the_flow(dtype):
    normal = torch.distributions.Normal(torch.zeros(6, 1), 1.0)
    other = torch.distributions.Normal(torch.zeros(6, 1, dtype=torch.float64), 1.0)
    for base in (NFlowsStandardNormal((6, 1)), *(torch.distributions.Independent(own, 2) for own in (normal, other))):
        assert Flow(make()._transform, base).to(dtype).sample(2).dtype == dtype


def test_noise_to_decode_is_converted_as_inputs_are():
    flow = make()
    with pytest.raises(ValueError, match="noise values are float64"):
        flow.decode(torch.zeros(2, 6, 1, dtype=torch.float64))
    assert flow.double().decode(torch.zeros(2, 6, 1)).dtype == torch.float64


# --- compositions ---


def test_the_inverse_of_an_integrated_trace_is_not_taken_for_exact():
    velocity = perturb(MLPVelocity(2, channels=16), 0.3).double()
    transform = InverseTransform(ODETransform(velocity, Heun(2), "trace"))
    flow = Flow(transform, StandardNormal((2,))).double()
    x, log_prob = flow.sample_and_log_prob(4, seed=0)
    torch.testing.assert_close(log_prob, flow.log_prob(x), rtol=0, atol=1e-12)


def test_events_of_transforms_that_change_shapes():
    scales = MultiscaleCompositeTransform(2)
    scales.add_transform(IdentityTransform(), scales.add_transform(SqueezeTransform(), (4, 2, 2)))
    for transform, shape in (
        (SqueezeTransform(), (4, 2, 2)),
        (InverseTransform(SqueezeTransform()), (1, 4, 4)),
        (scales, (16,)),
        (InverseTransform(VectorPatches((6,), 2)), (6,)),
    ):
        flow = Flow(transform, StandardNormal(shape))
        assert flow.event_shape == tuple(flow.sample(1).shape[1:])
        assert flow.given().sample((2,)).shape == (2, *flow.event_shape)


def test_a_flow_with_a_decoder_that_plans_itself_is_pickled():
    flow = make()
    flow._transform._transforms[1].decoding = decoding.Auto(tolerance=1e-3)
    again = pickle.loads(pickle.dumps(flow))
    assert again._transform._transforms[1].decoding.tolerance == 1e-3
    torch.testing.assert_close(again.sample(2, seed=0), flow.sample(2, seed=0), rtol=0, atol=1e-2)


# --- given ---


def test_a_flow_given_a_context_is_a_distribution():
    flow = make(num_classes=3)
    three = flow.given(2)
    assert isinstance(three, torch.distributions.Distribution)
    assert (three.batch_shape, three.event_shape) == ((), (6,))
    x, log_prob = three.sample_and_log_prob(5, seed=0)
    assert x.shape == (5, 6) and torch.equal(three.sample((5,), seed=0), x)
    labels = torch.full((5,), 2)
    torch.testing.assert_close(log_prob, flow.log_prob(x, labels), rtol=0, atol=1e-5)
    torch.testing.assert_close(three.log_prob(x), flow.log_prob(x, labels))
    torch.testing.assert_close(three.score(x), flow.score(x, labels))
    assert three.sample().shape == (6,) and three.sample((2, 3)).shape == (2, 3, 6)
    assert three.log_prob(three.sample((2, 3))).shape == (2, 3) and three.log_prob(x[0]).shape == ()
    assert three.rsample((2,)).requires_grad and not three.sample((2,)).requires_grad
    assert torch.equal(flow.given().sample((2,), seed=1), flow.sample(2, seed=1))
    for context in (torch.tensor([0, 1]), 0.5, 3):
        with pytest.raises(ValueError):
            flow.given(context).log_prob(x)
    with pytest.raises(ValueError, match="no context"):
        make().given(torch.zeros(3))
    with pytest.raises(ValueError, match="expected values"):
        three.log_prob(torch.zeros(5, 7))


def test_a_flow_without_a_context_takes_none():
    flow, context = make(), torch.randn(3, 5)
    for call in (
        lambda: flow.log_prob(torch.zeros(3, 6), context),
        lambda: flow.sample(2, context),
        lambda: flow.sample_and_log_prob(2, context),
        lambda: flow.rsample(2, context),
        lambda: flow.score(torch.zeros(3, 6), context),
        lambda: flow.encode(torch.zeros(3, 6), context),
        lambda: flow.decode(torch.zeros(3, 6, 1), context),
    ):
        with pytest.raises(ValueError, match="takes no context"):
            call()


def test_samples_do_not_depend_on_grad_mode():
    flow = make()
    assert torch.equal(flow.sample(3, seed=0), flow.rsample(3, seed=0).detach())
    assert isinstance(flow.sample(3, seed=0), Tensor)
