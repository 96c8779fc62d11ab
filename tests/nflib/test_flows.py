"""Every flow of the table through the same checks; then sampling, scores and composition with nflows."""

from __future__ import annotations

import math
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import nflows.flows
import nflows.transforms
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nflows.flows import Flow as NFlowsFlow
from torch import Tensor

from nflib import Flow, decoding
from nflib.distributions import StandardNormal
from nflib.flows import TARFlow
from nflib.networks import ClassEmbedding, Rotary, grid_coordinates
from nflib.transforms import TransformerAffineAutoregressive
from tests.nflib.cases import (
    FLOWS,
    NUM_CLASSES,
    SMALL,
    Case,
    autoregressive,
    blocks,
    dense_logabsdet,
    relative_error,
    spline_coupling,
    spline_on_top,
)
from tests.perturb import check_gradients, perturb

every_flow = pytest.mark.parametrize("case", FLOWS, ids=str)


@pytest.fixture
def flow(case: Case) -> Flow:
    return perturb(case.build())


@pytest.fixture
def small_flow() -> Flow:
    return perturb(TARFlow((1, 4, 4), patch_size=2, num_classes=NUM_CLASSES, **SMALL))


# --- the table ---


@every_flow
def test_is_an_nflows_flow_and_keeps_shapes(case, flow):
    assert isinstance(flow, NFlowsFlow)
    for context in case.contexts(5):
        log_prob = flow.log_prob(case.inputs(5), context)
        assert log_prob.shape == (5,)
        assert log_prob.dtype == torch.float32
        assert log_prob.isfinite().all()
        assert flow.transform_to_noise(case.inputs(5), context).shape == (5, *case.output_shape)
        rows = () if context is None else (5,)
        for samples in (flow.sample(3, context), flow.sample_and_log_prob(3, context)[0]):
            assert samples.shape == (*rows, 3, *case.event_shape)
            assert samples.dtype == torch.float32 and samples.isfinite().all()
        assert flow.sample_and_log_prob(3, context)[1].shape == (*rows, 3)


@every_flow
def test_a_batch_of_one_is_a_row_of_a_batch(case, flow):
    flow = flow.double()
    x = case.inputs(3, torch.float64)
    for context in case.contexts(3, torch.float64):
        row = None if context is None else context[1:2]
        torch.testing.assert_close(flow.log_prob(x[1:2], row), flow.log_prob(x, context)[1:2], rtol=0, atol=1e-12)


@every_flow
def test_no_rows_give_empty_results(case, flow):
    if case.name.startswith("nflows") or case.name == "spline-on-top":
        pytest.skip("parts of nflows take no empty batch")
    for context in case.contexts(0):
        x = case.inputs(0)
        assert flow.log_prob(x, context).shape == flow.log_prob(x, context, batch_size=2).shape == (0,)
        assert flow.score(x, context).shape == x.shape and flow.bits_per_dim(x, context).shape == (0,)
        noise = flow.transform_to_noise(x, context)
        for decoder in (None, decoding.Jacobi(), decoding.GaussSeidelJacobi(2), decoding.Auto()):
            assert flow.decode(noise, context, decoding=decoder).shape == x.shape
            if context is not None:
                samples, log_prob = flow.sample_and_log_prob(3, context, decoding=decoder)
                assert samples.shape == (0, 3, *case.event_shape) and log_prob.shape == (0, 3)
    for context in case.contexts(1):
        rows = () if context is None else (1,)
        assert flow.sample(0, context).shape == (*rows, 0, *case.event_shape)
        flow.rsample(0, context).sum().backward()
        given = flow.given(context)
        assert given.sample((0,)).shape == given.rsample((0,)).shape == (0, *case.event_shape)
        assert given.sample((2, 0)).shape == (2, 0, *case.event_shape)
        assert given.log_prob(case.inputs(0)).shape == (0,)
        with pytest.raises(ValueError, match=r"sample_shape is a shape.*pass \(5,\)"):
            given.sample(5)


@every_flow
def test_gradients_reach_all_parameters_and_the_inputs(case, flow):
    for context in case.contexts(5):
        flow.zero_grad()
        x = case.inputs(5).requires_grad_(True)
        flow.log_prob(x, context).sum().backward()
        assert x.grad is not None and x.grad.isfinite().all() and x.grad.any()
        check_gradients(flow)


@every_flow
def test_decoding_the_noise_returns_the_inputs(case, flow):
    x = case.inputs(8)
    for context in case.contexts(8):
        back = flow.decode(flow.transform_to_noise(x, context), context)
        assert (back - x).abs().max() <= 1e-4


@every_flow
def test_log_prob_is_that_of_the_dense_jacobian(case, flow):
    flow = flow.double()
    x = case.inputs(2, torch.float64)
    for context in case.contexts(2, torch.float64):
        embedded = flow._embedding_net(context)
        noise = flow.transform_to_noise(x, context)
        base = flow._distribution.log_prob(noise, embedded)
        expected = base + dense_logabsdet(flow._transform, x, embedded)
        assert (flow.log_prob(x, context) - expected).abs().max() <= 1e-8


# Measured over the table: 0.0005 to 0.008.
@every_flow
def test_bfloat16_agrees_with_float32(case, flow):
    x = case.inputs(64)
    for context in case.contexts(64):
        with torch.no_grad():
            log_prob = flow.log_prob(x, context)
            with torch.autocast("cpu", torch.bfloat16):
                low_log_prob = flow.log_prob(x, context)
                samples, low_sampled = flow.sample_and_log_prob(4, context, seed=0)
        assert low_log_prob.dtype == low_sampled.dtype == samples.dtype == torch.float32
        assert 0 < relative_error(low_log_prob, log_prob) <= 0.02


@every_flow
def test_saved_and_loaded_it_is_equal_to_the_last_bit(case, flow, tmp_path):
    folder = flow.save_pretrained(tmp_path / "model")
    if flow.config is None:
        torch.manual_seed(1234)
        other = perturb(case.build(), seed=99).load_pretrained(folder)
    else:
        other = Flow.from_pretrained(folder)
        assert type(other) is type(flow) and other.config == flow.config and not other.training
    x = case.inputs(3)
    for context in case.contexts(3):
        assert torch.equal(flow.log_prob(x, context), other.log_prob(x, context))
        assert torch.equal(flow.sample(2, context, seed=7), other.sample(2, context, seed=7))


@every_flow
def test_sampled_log_prob_is_that_of_the_samples(case, flow):
    for context in case.contexts(4):
        x, log_prob = flow.sample_and_log_prob(6, context, seed=3)
        if context is not None:
            x, log_prob, context = x.flatten(0, 1), log_prob.flatten(), context.repeat_interleave(6, dim=0)
        assert (log_prob - flow.log_prob(x, context)).abs().max() <= 1e-4


@every_flow
def test_seeds_and_generators_reproduce_samples(case, flow):
    for context in case.contexts(2):
        untouched = torch.get_rng_state()
        by_seed = flow.sample(4, context, seed=11)
        by_generator = flow.sample(4, context, generator=torch.Generator().manual_seed(11))
        assert torch.equal(torch.get_rng_state(), untouched)
        assert torch.equal(by_seed, by_generator)
        assert torch.equal(by_seed, flow.sample_and_log_prob(4, context, seed=11)[0])
        assert not torch.isclose(by_seed, flow.sample(4, context, seed=12)).any()
        generator = torch.Generator().manual_seed(11)
        flow.sample(4, context, generator=generator)
        assert not torch.isclose(by_seed, flow.sample(4, context, generator=generator)).any()


@every_flow
def test_sampling_in_batches_equals_sampling_at_once(case, flow):
    flow = flow.double()
    if case.name.startswith("nflows"):
        flow = flow.float()  # nflows' base densities draw in float32 alone
    for context in case.contexts(2, next(flow.parameters()).dtype):
        x, log_prob = flow.sample_and_log_prob(7, context, seed=5)
        for batch_size in (1, 3, 100):
            x_of_batches, log_prob_of_batches = flow.sample_and_log_prob(7, context, batch_size, seed=5)
            tolerance = 1e-12 if x.dtype == torch.float64 else 1e-5
            torch.testing.assert_close(x_of_batches, x, rtol=tolerance, atol=tolerance)
            torch.testing.assert_close(log_prob_of_batches, log_prob, rtol=tolerance, atol=tolerance)


@every_flow
def test_score_equals_finite_differences(case, flow):
    flow = flow.double()
    x = case.inputs(2, torch.float64)
    for context in case.contexts(2, torch.float64):
        with torch.no_grad():
            score = flow.score(x, context)
            step = 1e-5
            expected = torch.zeros_like(x)
            for index in range(x[0].numel()):
                shift = torch.zeros_like(x[0]).flatten()
                shift[index] = step
                shift = shift.view_as(x[0])
                rise = flow.log_prob(x + shift, context) - flow.log_prob(x - shift, context)
                expected.flatten(1)[:, index] = rise / (2 * step)
        torch.testing.assert_close(score, expected, rtol=1e-6, atol=1e-6)
        assert not score.requires_grad
        assert all(parameter.grad is None for parameter in flow.parameters())


# --- densities ---


@pytest.mark.parametrize("settings", [{}, {"scale": "softplus", "positions": "rotary", "start_token": True}], ids=str)
def test_density_integrates_to_one(settings):
    flow = perturb(TARFlow((2,), **(SMALL | settings))).double()
    axis = torch.linspace(-12, 12, 241, dtype=torch.float64)
    with torch.no_grad():
        density = flow.log_prob(torch.cartesian_prod(axis, axis)).exp()
    assert abs(float(density.sum()) * float(axis[1] - axis[0]) ** 2 - 1) < 1e-6
    assert density.std() > 0 and not torch.allclose(density, density.flip(0)), "not a standard normal"


def test_samples_follow_the_density():
    """Mean and covariance of samples against those of the density, integrated on a grid."""
    flow = perturb(TARFlow((2,), **SMALL))
    axis = torch.linspace(-12, 12, 161)
    grid = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        weights = flow.log_prob(grid).double().softmax(0)
    mean = weights @ grid.double()
    covariance = (grid - mean).T @ (weights.unsqueeze(-1) * (grid - mean))
    count = 20_000
    samples = flow.sample(count, seed=0).double()
    error = covariance.diagonal().sqrt() / math.sqrt(count)
    assert ((samples.mean(0) - mean).abs() < 5 * error).all()
    torch.testing.assert_close(samples.T.cov(), covariance, rtol=0.1, atol=0.05)


def test_bits_per_dim_closed_form():
    flow = TARFlow((1, 4, 4), patch_size=2, **SMALL)  # at its start the identity: a standard normal
    x = torch.rand(5, 1, 4, 4) * 2 - 1
    nats = 0.5 * x.square().sum(dim=(1, 2, 3)) + 8 * math.log(2 * math.pi)
    torch.testing.assert_close(flow.bits_per_dim(x), nats / (16 * math.log(2)))
    in_levels = nats / (16 * math.log(2)) - math.log2(2 / 256)
    torch.testing.assert_close(flow.bits_per_dim(x, bin_width=2 / 256), in_levels)


def test_base_density_closed_form_and_dtypes():
    base = StandardNormal((3, 2))
    x = torch.randn(4, 3, 2)
    expected = torch.distributions.Normal(0, 1).log_prob(x).sum(dim=(1, 2))
    torch.testing.assert_close(base.log_prob(x), expected)
    assert base.log_prob(x.bfloat16()).dtype == torch.float32
    assert base.double().log_prob(x.double()).dtype == base.sample(2).dtype == torch.float64


# --- conditioning ---


def test_label_minus_one_means_the_mean_embedding(small_flow):
    x = torch.randn(3, 1, 4, 4)
    nobody = torch.full((3,), -1)
    unconditional = small_flow.log_prob(x, nobody)
    torch.testing.assert_close(small_flow.log_prob(x), unconditional)
    # Classes differ ...
    of_classes = torch.stack([small_flow.log_prob(x, torch.full((3,), c)) for c in range(NUM_CLASSES)])
    assert of_classes.std(dim=0).min() > 1e-3
    # ... until each is the mean of all.
    with torch.no_grad():
        for module in small_flow.modules():
            if isinstance(module, ClassEmbedding):
                module.weight.copy_(module.weight.mean(dim=0).expand_as(module.weight))
    torch.testing.assert_close(small_flow.log_prob(x, torch.arange(3)), unconditional)
    torch.testing.assert_close(small_flow.log_prob(x, nobody), unconditional)


def test_each_row_of_the_context_gets_its_own_samples(small_flow):
    labels = torch.tensor([2, 0, -1])
    together = small_flow.sample(4, labels, seed=0)
    noise = torch.randn(3, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    for row, label in enumerate(labels):
        alone = small_flow.decode(noise[row], label.expand(4))
        torch.testing.assert_close(together[row], alone, rtol=1e-5, atol=1e-5)
    assert torch.equal(small_flow.sample(4, labels.tolist(), seed=0), together)


# --- size of everything ---


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(
    image=st.booleans(),
    patch_size=st.integers(1, 3),
    across=st.integers(1, 4),
    down=st.integers(1, 3),
    colours=st.integers(1, 3),
    layers=st.lists(st.integers(1, 2), min_size=1, max_size=3),
    scale=st.sampled_from(["exponential", "softplus"]),
    positions=st.sampled_from(["learned", "sinusoidal", "rotary"]),
    norm=st.sampled_from(["layer_norm", "rms_norm"]),
    mlp=st.sampled_from(["gelu", "gated"]),
    start_token=st.booleans(),
    batch=st.integers(1, 3),
)
def test_flows_of_any_size_invert_and_know_their_density(
    image, patch_size, across, down, colours, layers, scale, positions, norm, mlp, start_token, batch
):
    event_shape = (colours, down * patch_size, across * patch_size) if image else (down, across * patch_size)
    flow = perturb(TARFlow(
        event_shape, patch_size, 8, len(layers), layers, head_dim=4, expansion=2, scale=scale,
        positions=positions, norm=norm, mlp=mlp, start_token=start_token,
    )).double()  # fmt: skip
    x, log_prob = flow.sample_and_log_prob(batch, seed=1)
    assert x.shape == (batch, *event_shape)
    torch.testing.assert_close(flow.log_prob(x), log_prob, rtol=0, atol=1e-9)
    torch.testing.assert_close(flow.decode(flow._transform(x)[0]), x, rtol=0, atol=1e-9)


# --- no state between calls ---


def test_two_threads_sample_at_once(small_flow):
    """Different batches and labels, decoded at the same time from the same modules."""
    jobs = [(3, 0, 21), (5, 2, 22), (3, 1, 23), (4, -1, 24)]
    expected = [small_flow.sample(n, torch.tensor([label]), seed=seed) for n, label, seed in jobs]
    barrier = threading.Barrier(len(jobs))

    def work(job: tuple[int, int, int]) -> list[Tensor]:
        barrier.wait(timeout=60)
        n, label, seed = job
        return [small_flow.sample(n, torch.tensor([label]), seed=seed) for _ in range(5)]

    with ThreadPoolExecutor(len(jobs)) as pool:
        for results, alone in zip(pool.map(work, jobs), expected, strict=True):
            for result in results:
                torch.testing.assert_close(result, alone, rtol=1e-6, atol=1e-6)


def test_sampling_leaves_no_trace_on_the_modules(small_flow):
    before = {name: set(vars(module)) for name, module in small_flow.named_modules()}
    state = {name: tensor.clone() for name, tensor in small_flow.state_dict().items()}
    small_flow.sample(2, torch.tensor([0]), seed=0)
    small_flow.log_prob(torch.randn(2, 1, 4, 4))
    assert {name: set(vars(module)) for name, module in small_flow.named_modules()} == before
    assert all(torch.equal(tensor, state[name]) for name, tensor in small_flow.state_dict().items())


def test_samples_carry_no_gradient(small_flow):
    x, log_prob = small_flow.sample_and_log_prob(2, seed=0)
    assert not x.requires_grad and not log_prob.requires_grad


# --- composition with nflows ---


def test_our_transforms_work_in_an_nflows_flow():
    transform = nflows.transforms.CompositeTransform(blocks(4, 2))
    theirs = perturb(NFlowsFlow(transform, StandardNormal((4, 2))))
    ours = Flow(transform, StandardNormal((4, 2)))
    x = torch.randn(5, 4, 2)
    assert torch.equal(theirs.log_prob(x), ours.log_prob(x))
    samples, log_prob = theirs.sample_and_log_prob(6)
    assert samples.shape == (6, 4, 2)
    torch.testing.assert_close(log_prob, ours.log_prob(samples), rtol=0, atol=1e-4)
    torch.manual_seed(3)
    assert theirs.sample(7, batch_size=3).shape == (7, 4, 2)


def test_inverse_autoregressive_flow_by_nflows_inverse_transform():
    """nflows' InverseTransform turns the map around: parallel sampling, sequential likelihood."""
    transform = perturb(autoregressive(4, 2))
    flow = Flow(nflows.transforms.InverseTransform(transform), StandardNormal((4, 2)))
    x, log_prob = flow.sample_and_log_prob(5, seed=0)
    torch.testing.assert_close(flow.log_prob(x), log_prob, rtol=0, atol=1e-4)
    torch.testing.assert_close(transform(flow._transform(x)[0])[0], x, rtol=0, atol=1e-5)


def test_a_spline_coupling_on_top_adds_its_log_determinant():
    flow = perturb(spline_on_top())
    spline, *rest = flow._transform._transforms
    assert type(spline) is type(spline_coupling(8))
    below = Flow(nflows.transforms.CompositeTransform(rest), flow._distribution)
    x = torch.randn(6, 8)
    y, logabsdet = spline(x)
    assert logabsdet.abs().min() > 1e-3
    torch.testing.assert_close(flow.log_prob(x), below.log_prob(y) + logabsdet)


def test_blocks_alternate_their_direction():
    flow = TARFlow((8,), patch_size=2, channels=16, head_dim=8, num_blocks=4, layers_per_block=1)
    kinds = [type(transform).__name__ for transform in flow._transform._transforms[1:]]
    there_and_back = ["Reverse", "TransformerAffineAutoregressive", "Reverse"]
    assert kinds == ["TransformerAffineAutoregressive", *there_and_back] * 2


def test_rotary_positions_follow_the_grid_and_the_direction():
    flow = TARFlow((1, 4, 6), patch_size=2, positions="rotary", **SMALL)
    forwards, backwards = (m for m in flow.modules() if isinstance(m, Rotary))
    grid = Rotary(grid_coordinates((2, 3)), SMALL["head_dim"])
    assert torch.equal(forwards.phase, grid.phase)
    assert torch.equal(backwards.phase, grid.phase.flip(0))


def test_layers_per_block_are_those_asked_for():
    flow = TARFlow((8,), channels=16, head_dim=8, num_blocks=3, layers_per_block=[3, 1, 2])
    maps = [m for m in flow.modules() if isinstance(m, TransformerAffineAutoregressive)]
    assert [len(m.network.layers) for m in maps] == [3, 1, 2]


# --- what importing costs ---


def test_importing_the_engine_imports_no_application():
    """nflows' MADE imports matplotlib by itself; beyond what nflows and torch bring, the engine adds none."""
    script = (
        "import sys, torch, nflows.flows, nflows.transforms, nflows.distributions; "
        "theirs = set(sys.modules); "
        "import nflib, nflib.flows, nflib.transforms, nflib.networks, nflib.decoding; "
        "print(*{name.partition('.')[0] for name in sys.modules.keys() - theirs})"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    new = set(run.stdout.split())
    assert "nflib" in new
    unwanted = {
        "openmm",
        "mdtraj",
        "rdkit",
        "matplotlib",
        "lightning_fabric",
        "tensorboard",
        "molecular",
        "video",
    }
    assert not new & unwanted
