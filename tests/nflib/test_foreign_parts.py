"""Parts of others in a flow: torch's bases of bounded support, maps of one's own, and torch's tracers."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from nflows.distributions import Distribution
from nflows.transforms import (
    CompositeTransform,
    InverseTransform,
    MaskedAffineAutoregressiveTransform,
    PointwiseAffineTransform,
    Transform,
)
from torch import nn
from torch.distributions import Independent, Uniform

from nflib import Flow
from nflib.continuous import FlowMap, InterpolantFlow, MLPFlowMap, MLPVelocity, RefinedSteps, RefinerMatching
from nflib.continuous.objectives.twin_flow import twin_velocity
from nflib.distributions import StandardNormal
from nflib.flows import TARFlow, autoregressive_blocks
from nflib.montecarlo import BoltzmannDensity, smc
from nflib.transforms import GaussianizeMarginals, LinearGuidance, Standardize, VectorPatches, Whiten
from tests.perturb import perturb

SMALL = {"channels": 16, "num_blocks": 2, "layers_per_block": 1, "head_dim": 8}


class Doubled(Transform):
    """Whose log-determinant has a shape of its own, and whose `invert` is a pair."""

    def __init__(self, shape):
        super().__init__()
        self.shape = shape

    def forward(self, inputs, context=None):
        return 2 * inputs, torch.full((len(inputs), *self.shape), 2 * math.log(2))

    def invert(self, inputs, context=None, decoder=None):
        return inputs / 2 + 0.01, torch.full((len(inputs), *self.shape), -2 * math.log(2))


def test_a_uniform_base_ends():
    flow = Flow(PointwiseAffineTransform(0.0, 2.0), Independent(Uniform(-torch.ones(3), torch.ones(3)), 1))
    x = torch.tensor([[0.1, 0.2, 0.3], [0.1, 0.2, 0.6], [0.1, 0.2, math.nan], [math.inf, 0.0, 0.0]])
    expected = torch.tensor([0.0, -math.inf, math.nan, -math.inf])
    torch.testing.assert_close(flow.log_prob(x), expected, equal_nan=True)
    assert torch.equal(flow.score(x[:2]), torch.zeros(2, 3))
    torch.testing.assert_close(torch.func.vmap(lambda own: flow.log_prob(own[None])[0])(x[:2]), expected[:2])
    assert flow.log_prob(x[:0]).shape == flow.sample_and_log_prob(0)[1].shape == (0,)


def test_smc_from_a_flow_of_a_uniform_base():
    flow = Flow(PointwiseAffineTransform(0.0, 0.25), Independent(Uniform(-torch.ones(2), torch.ones(2)), 1))
    moved = smc(flow, BoltzmannDensity(lambda x: 0.5 * x.square().sum(1)), 500, seed=0)
    assert abs(moved.log_normalizer - math.log(2 * math.pi)) < 0.3


def test_log_determinants_that_are_not_one_number_a_row():
    x = torch.randn(5, 2)
    for shape in ((1,), (2,)):
        flow = Flow(Doubled(shape), StandardNormal((2,)))
        with pytest.raises(ValueError, match="return one number for each"):
            flow.log_prob(x[:2])
        with pytest.raises(ValueError, match="return one number for each"):
            flow.sample_and_log_prob(2)
    columns = Flow(CompositeTransform([Doubled((1,))]), StandardNormal((2,)))
    for call in (columns.log_prob, columns.encode):
        with pytest.raises(ValueError, match="not one number for each input"):
            call(x)
    flow = Flow(CompositeTransform([Doubled(())]), StandardNormal((2,)))
    samples, log_prob = flow.sample_and_log_prob(5, seed=0)
    torch.testing.assert_close(flow.log_prob(samples), log_prob)


class Bend(Transform):
    """Whose inverse iterates, and does not say so."""

    def forward(self, inputs, context=None):
        return inputs + 0.8 * inputs.sin(), (1 + 0.8 * inputs.cos()).log().flatten(1).sum(1)

    def inverse(self, inputs, context=None):
        x = inputs
        for _ in range(5):
            x = inputs - 0.8 * x.sin()
        return x, -self.forward(x)[1]


def test_an_inverse_within_an_inverse_is_no_formula():
    halved = PointwiseAffineTransform(0.0, 2.0)
    inner, blocks = InverseTransform(Bend()), autoregressive_blocks((3, 1), **SMALL)
    nested = [InverseTransform(inner), InverseTransform(CompositeTransform([halved, inner]))]
    for transform in nested:
        flow = Flow(transform, StandardNormal((3,)))
        x, log_prob = flow.sample_and_log_prob(50, seed=0)
        torch.testing.assert_close(log_prob, flow.log_prob(x))
    # The caller's decoder reaches the maps in it.
    shaped = VectorPatches((3,), 1)
    flow = Flow(InverseTransform(InverseTransform(CompositeTransform([shaped, *blocks]))), StandardNormal((3, 1)))
    with pytest.raises(ValueError, match="an inversion is a pair of tokens and logabsdet.*not a Tensor"):
        flow.sample(2, decoding=lambda map, noise, encoded, prefix=None: noise)


def test_ensembles_by_torch_func():
    """Weights of several flows under vmap: log-determinants are added out of place."""
    flows = [perturb(TARFlow((4,), patch_size=2, **SMALL), 0.1, seed) for seed in range(3)]
    parameters, buffers = torch.func.stack_module_state(flows)
    x = torch.randn(5, 4)

    def log_prob(parameters, buffers):
        return torch.func.functional_call(flows[0], (parameters, buffers), (x,))

    expected = torch.stack([flow.log_prob(x) for flow in flows])
    torch.testing.assert_close(torch.func.vmap(log_prob)(parameters, buffers), expected)


class Unconditional(Distribution):
    """A base of one's own that reads no context."""

    uses_context, event_shape = False, (6, 1)

    def _log_prob(self, inputs, context):
        return -0.5 * inputs.square().sum((1, 2)) - 3 * math.log(2 * math.pi)

    def _sample(self, num_samples, context):
        return torch.randn(num_samples, 6, 1)


def test_a_base_that_reads_no_context_in_a_conditional_flow():
    flow = Flow(TARFlow((6,), context_shape=(5,), **SMALL)._transform, Unconditional(), context_shape=(5,))
    x, log_prob = flow.sample_and_log_prob(4, torch.zeros(2, 5), seed=0)
    assert x.shape == (2, 4, 6)
    torch.testing.assert_close(flow.log_prob(x.flatten(0, 1), torch.zeros(8, 5)), log_prob.flatten())


def test_a_given_flow_as_a_base_is_saved_moved_and_trained_with_the_flow(tmp_path):
    def build(seed):
        inner = perturb(TARFlow((2, 2), patch_size=2, context_shape=(3,), **SMALL), 0.1, seed)
        return Flow(TARFlow((4,), patch_size=2, **SMALL)._transform, inner.given(torch.zeros(3)))

    flow, x = build(1), torch.randn(3, 4)
    loaded = build(2).load_pretrained(flow.save_pretrained(tmp_path))
    torch.testing.assert_close(loaded.log_prob(x), flow.log_prob(x))
    assert any(parameter.requires_grad for parameter in flow._distribution.parameters())
    torch.testing.assert_close(loaded.double().log_prob(x.double()).float(), flow.log_prob(x))


def test_an_unconditional_context_goes_where_the_flow_is():
    transform = TARFlow((8,), patch_size=2, context_shape=(4,), **SMALL)._transform
    flow = Flow(transform, StandardNormal((4, 2)), nn.Linear(5, 4), context_shape=(5,)).to("meta")
    guided = flow.guided(LinearGuidance(1.0), unconditional=torch.zeros(5))
    assert guided.log_prob(torch.zeros(2, 8, device="meta"), torch.zeros(2, 5)).shape == (2,)


def test_numbers_and_arrays_of_numpy_are_taken():
    data = np.random.default_rng(0).normal(size=(64, 6)).astype(np.float32)
    for kind in (Standardize, Whiten, GaussianizeMarginals):
        expected = kind.fit(torch.from_numpy(data)).forward(torch.from_numpy(data))
        torch.testing.assert_close(kind.fit(data).forward(torch.from_numpy(data)), expected)
    sizes = SMALL | {"layers_per_block": np.int64(1)}
    transform = TARFlow((6,), context_shape=(5,), **sizes)._transform
    flow, context = Flow(transform, StandardNormal((6, 1)), context_shape=5), torch.zeros(5)
    given = flow.given(context)
    torch.testing.assert_close(given.log_prob(data), given.log_prob(torch.from_numpy(data)))
    torch.testing.assert_close(given.score(data[:2]), given.score(torch.from_numpy(data[:2])))


def test_any_dropout_in_training_mode_is_told():
    net = nn.Sequential(nn.Linear(5, 3), nn.AlphaDropout(0.5))
    flow = Flow(TARFlow((6,), context_shape=(3,), **SMALL)._transform, StandardNormal((6, 1)), net, context_shape=(5,))
    with pytest.raises(ValueError, match="has dropout and is in training mode"):
        flow.train().sample(1, torch.zeros(1, 5))


def test_maps_that_know_no_guidance_take_the_conditional_context():
    foreign = MaskedAffineAutoregressiveTransform(6, 16, context_features=3)
    blocks = autoregressive_blocks((3, 2), context_shape=(3,), start_token=True, **SMALL)
    parts = CompositeTransform([CompositeTransform([foreign]), VectorPatches((6,), 2), *blocks])
    flow = perturb(Flow(parts, StandardNormal((3, 2)), context_shape=(3,))).double().eval()
    x, context = torch.randn(2, 6).double(), torch.randn(2, 3).double()
    none = torch.zeros(3).double()
    torch.testing.assert_close(flow.guided(LinearGuidance(0.0), none).log_prob(x, context), flow.log_prob(x, context))
    tokens = Flow(CompositeTransform([VectorPatches((6,), 2), *blocks]), StandardNormal((3, 2)), context_shape=(3,))
    moved, logabsdet = foreign(x, context)
    guided = flow.guided(LinearGuidance(1.5), none)
    expected = tokens.guided(LinearGuidance(1.5), none).log_prob(moved, context) + logabsdet
    torch.testing.assert_close(guided.log_prob(x, context), expected)
    samples, log_prob = guided.sample_and_log_prob(1, context, seed=0)
    torch.testing.assert_close(guided.log_prob(samples[:, 0], context), log_prob[:, 0])
    assert guided.event_shape == (6,)


def test_an_exported_flow_takes_batches_of_any_size():
    flow = TARFlow(event_shape=(6,), patch_size=2, context_shape=(3,), **SMALL | {"num_blocks": 1}).eval()
    rows = {0: torch.export.Dim("batch", min=2)}
    inputs = torch.randn(4, 6), torch.randn(4, 3)
    program = torch.export.export(flow, inputs, dynamic_shapes=(rows, rows))
    inputs = torch.randn(7, 6), torch.randn(7, 3)
    torch.testing.assert_close(program.module()(*inputs), flow(*inputs))


def test_an_embedding_net_without_a_context():
    blocks = autoregressive_blocks((3, 2), **SMALL, context_shape=(4,))
    flow = Flow(CompositeTransform([VectorPatches((6,), 2), *blocks]), StandardNormal((3, 2)), nn.Linear(5, 4))
    x, t = torch.randn(2, 6), torch.rand(2)
    of_noise = (flow.sample, flow.sample_and_log_prob, flow.rsample, flow.rsample_and_log_prob, flow.noise_and_log_prob)
    calls = [flow.given, lambda: flow.decode(torch.randn(2, 3, 2)), *(partial(method, 2) for method in of_noise)]
    calls += [partial(method, x) for method in (flow, flow.log_prob, flow.score, flow.bits_per_dim, flow.encode)]

    net, velocity = nn.Linear(5, 4), MLPVelocity(6, channels=8, context_size=4)
    ode = InterpolantFlow(velocity, velocity, (6,), embedding_net=net)
    flow_map = FlowMap(MLPFlowMap(6, channels=8, context_size=4), (6,), embedding_net=net)
    calls += [partial(method, x, t) for method in (ode.velocity, ode.path_score, flow_map.velocity)]
    calls += [partial(method, x, 0.0, t) for method in (flow_map.average_velocity, flow_map.jump)]
    calls += [partial(twin_velocity, flow_map, x, t)]
    refined = FlowMap(RefinedSteps(velocity, velocity), (6,), embedding_net=net)
    calls += [lambda: RefinerMatching()(refined, {"inputs": x}, torch.Generator())]
    for call in calls:
        with pytest.raises(ValueError, match="embedding net of this flow, a Linear, needs a context"):
            call()
    with pytest.raises(TypeError):  # a mistake of the net's own
        Flow(blocks[0], StandardNormal((3, 2)), Mistaken()).log_prob(torch.randn(2, 3, 2), torch.ones(2, 5))


class Mistaken(nn.Module):
    def forward(self, context):
        return len(3)


def test_gradients_of_each_sample_by_torch_func():
    """`vmap`, `grad` and `functional_call`, of labels, of intervals, and in batches."""
    labelled = perturb(TARFlow((6,), patch_size=2, num_classes=3, **SMALL).double())
    everywhere = torch.ones(6, dtype=torch.bool)
    bounded = Flow(GaussianizeMarginals.fit(torch.rand(100, 6), everywhere, bounds=(0, 1)), StandardNormal((6,)))
    x, labels = torch.rand(4, 6, dtype=torch.float64), torch.tensor([0, 2, -1, 1])
    weights = dict(labelled.named_parameters())

    def log_prob(weights, x, label):
        return torch.func.functional_call(labelled, weights, (x[None], label[None]))[0]

    each = torch.func.vmap(torch.func.grad(log_prob), in_dims=(None, 0, 0))(weights, x, labels)
    whole = torch.autograd.grad(labelled.log_prob(x, labels).sum(), list(weights.values()))
    for own, gradient in zip(each.values(), whole, strict=True):
        torch.testing.assert_close(own.sum(0), gradient)
    torch.testing.assert_close(torch.func.vmap(lambda own: bounded.log_prob(own[None])[0])(x), bounded.log_prob(x))
    batched = torch.func.grad(lambda x: labelled.log_prob(x, labels, batch_size=2).sum())(x)
    torch.testing.assert_close(batched, labelled.score(x, labels))
