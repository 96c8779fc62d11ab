"""Every transform of the table through the same checks; then what is particular to each kind."""

from __future__ import annotations

import pytest
import torch
from nflows.transforms import Transform
from safetensors.torch import load_file, save_file
from torch import Tensor

from nflib.networks.transformer import CausalTransformer
from nflib.transforms import (
    ExponentialScale,
    ImagePatches,
    Permute,
    Reverse,
    SoftplusScale,
    Standardize,
    VectorPatches,
)
from tests.nflib.cases import (
    AUTOREGRESSIVE,
    FIXED,
    TRANSFORMS,
    Case,
    autoregressive,
    dense_logabsdet,
    relative_error,
)
from tests.perturb import check_gradients, perturb

every_transform = pytest.mark.parametrize("case", TRANSFORMS, ids=str)
every_autoregressive = pytest.mark.parametrize("case", AUTOREGRESSIVE, ids=str)


@pytest.fixture
def transform(case: Case) -> Transform:
    return perturb(case.build())


@every_transform
def test_is_an_nflows_transform_and_keeps_shapes(case, transform):
    assert isinstance(transform, Transform)
    x = case.inputs(5)
    for context in case.contexts(5):
        z, logabsdet = transform(x, context)
        assert z.shape == (5, *case.output_shape)
        assert logabsdet.shape == (5,)
        assert z.dtype == logabsdet.dtype == torch.float32
        assert z.isfinite().all() and logabsdet.isfinite().all()
        back, logabsdet = transform.inverse(z, context)
        assert back.shape == x.shape
        assert logabsdet.shape == (5,)


@every_transform
def test_a_batch_of_one_is_a_row_of_a_batch(case, transform):
    transform = transform.double()
    x = case.inputs(3, torch.float64)
    for context in case.contexts(3, torch.float64):
        row = None if context is None else context[1:2]
        for method, inputs in ((transform.forward, x), (transform.inverse, transform(x, context)[0])):
            outputs, logabsdet = method(inputs, context)
            outputs_of_one, logabsdet_of_one = method(inputs[1:2], row)
            torch.testing.assert_close(outputs_of_one, outputs[1:2], rtol=0, atol=1e-12)
            torch.testing.assert_close(logabsdet_of_one, logabsdet[1:2], rtol=0, atol=1e-12)


@every_transform
def test_gradients_reach_all_parameters_and_the_inputs(case, transform):
    for context in case.contexts(5):
        transform.zero_grad()
        x = case.inputs(5).requires_grad_(True)
        z, logabsdet = transform(x, context)
        ((z * torch.randn_like(z)).sum() + logabsdet.sum()).backward()
        assert x.grad is not None and x.grad.isfinite().all() and x.grad.any()
        check_gradients(transform)


@every_transform
def test_inverse_undoes_forward(case, transform):
    """In float64; test_nflows_harness.py has float32."""
    transform = transform.double()
    x = case.inputs(8, torch.float64)
    for context in case.contexts(8, torch.float64):
        z, logabsdet = transform(x, context)
        back, logabsdet_back = transform.inverse(z, context)
        assert (back - x).abs().max() <= 1e-10
        assert (logabsdet_back + logabsdet).abs().max() <= 1e-10


@every_transform
def test_forward_undoes_inverse(case, transform):
    transform = transform.double()
    for context in case.contexts(4, torch.float64):
        # Any noise in the range of an elementwise map; for the rest simply noise.
        z = torch.randn(4, *case.output_shape, dtype=torch.float64)
        x, logabsdet = transform.inverse(z, context)
        again, logabsdet_again = transform(x, context)
        torch.testing.assert_close(again, z, rtol=0, atol=1e-9)
        torch.testing.assert_close(logabsdet_again, -logabsdet, rtol=0, atol=1e-9)


@every_transform
def test_logabsdet_is_that_of_the_dense_jacobian(case, transform):
    transform = transform.double()
    x = case.inputs(2, torch.float64)
    for context in case.contexts(2, torch.float64):
        _, logabsdet = transform(x, context)
        assert (logabsdet - dense_logabsdet(transform, x, context)).abs().max() <= 1e-8


@every_autoregressive
def test_a_token_changes_no_parameter_at_or_before_it(case, transform):
    network = transform.double().network
    x = case.inputs(2, torch.float64)
    num_tokens = case.event_shape[0]
    for context in case.contexts(2, torch.float64):
        before = network(x, network.encode_context(context))
        for t in range(num_tokens):
            changed = x.clone()
            changed[:, t] += 10.0
            after = network(changed, network.encode_context(context))
            assert torch.equal(after[:, : t + 1], before[:, : t + 1])
            # ... and every parameter behind it, so that nothing that could be seen is missed; padding has none.
            moved = (after - before).abs().amax(-1) > 0
            exists = network.encode_context(context).token_mask
            expected = torch.ones_like(moved) if exists is None else exists
            assert torch.equal(moved[:, t + 1 :], expected[:, t + 1 :])


@every_autoregressive
def test_no_gradient_flows_back_in_time(case, transform):
    network = transform.double().network
    context = case.context(1, torch.float64)
    x = case.inputs(1, torch.float64)
    # (T, channels, T, token size): how each parameter depends on each number read.
    jacobian = torch.autograd.functional.jacobian(lambda tokens: network(tokens, network.encode_context(context)), x)[
        0, :, :, 0
    ]
    strength = jacobian.abs().amax(dim=(1, 3))
    expected = torch.ones_like(strength).tril(-1) > 0
    exists = network.encode_context(context).token_mask
    assert torch.equal(strength > 0, expected if exists is None else expected & exists[0, :, None])


# Measured over the table: at most 0.006 for outputs and 0.026 for log-determinants, some of them near zero.
@every_transform
def test_bfloat16_agrees_with_float32(case, transform):
    x = case.inputs(64)
    for context in case.contexts(64):
        with torch.no_grad():
            z, logabsdet = transform(x, context)
            with torch.autocast("cpu", torch.bfloat16):
                low_z, low_logabsdet = transform(x, context)
        assert low_z.dtype == low_logabsdet.dtype == torch.float32
        assert relative_error(low_z, z) <= 0.012
        assert relative_error(low_logabsdet, logabsdet) <= 0.05
        moves_only = case in FIXED or case.name == "permute-by-context"
        assert torch.equal(low_z, z) == moves_only, "was bfloat16 used at all?"


@every_transform
def test_saved_and_loaded_it_is_equal_to_the_last_bit(case, transform, tmp_path):
    save_file(transform.state_dict(), tmp_path / "transform.safetensors")
    torch.manual_seed(1234)
    other = perturb(case.build(), seed=99)
    other.load_state_dict(load_file(tmp_path / "transform.safetensors"))
    x = case.inputs(3)
    for context in case.contexts(3):
        for ours, theirs in zip(transform(x, context), other(x, context), strict=True):
            assert torch.equal(ours, theirs)


# --- the autoregressive map ---


@every_autoregressive
def test_at_its_start_it_is_the_identity(case):
    transform = case.build().eval()
    x = case.inputs(3)
    for context in case.contexts(3):
        for outputs, logabsdet in (transform(x, context), transform.inverse(x, context)):
            torch.testing.assert_close(outputs, x, rtol=0, atol=1e-6)
            torch.testing.assert_close(logabsdet, torch.zeros(3), rtol=0, atol=1e-6)


def test_is_the_affine_map_of_its_parameters():
    transform = perturb(autoregressive(scale=SoftplusScale)).double()
    x = torch.randn(4, 6, 2, dtype=torch.float64)
    raw_scale, shift = transform.network(x).chunk(2, dim=-1)
    scale = torch.log1p(torch.exp(raw_scale) * (torch.e - 1))
    z, logabsdet = transform(x)
    torch.testing.assert_close(z, (x - shift) / scale, rtol=0, atol=1e-12)
    torch.testing.assert_close(logabsdet, -scale.log().sum(dim=(1, 2)), rtol=0, atol=1e-12)


def test_the_first_token_passes_unchanged_unless_its_start_is_learned():
    x = torch.randn(3, 6, 2)
    assert torch.equal(perturb(autoregressive())(x)[0][:, 0], x[:, 0])
    assert not torch.isclose(perturb(autoregressive(start_token=True))(x)[0][:, 0], x[:, 0]).any()


def test_one_token_with_a_shifted_start_is_left_alone():
    transform = perturb(autoregressive(num_tokens=1))
    x = torch.randn(3, 1, 2)
    for outputs, logabsdet in (transform(x), transform.inverse(x)):
        assert torch.equal(outputs, x)
        assert torch.equal(logabsdet, torch.zeros(3))


def test_soft_clip_bounds_shift_and_log_scale():
    transform = perturb(autoregressive(clip=0.5), scale=3.0)
    shift, log_scale = transform.conditionals(100 * torch.randn(50, 6, 2), transform.encode_context(None))
    assert 0.45 < shift.abs().max() <= 0.5
    assert 0.45 < log_scale.abs().max() <= 0.5


def test_parameters_are_accumulated_in_float32_at_least():
    transform = autoregressive().bfloat16()
    shift, log_scale = transform.conditionals(
        torch.randn(1, 4, 2, dtype=torch.bfloat16), transform.encode_context(None)
    )
    assert shift.dtype == log_scale.dtype == torch.float32


def chunked_parameters(
    network: CausalTransformer, x: Tensor, lengths: tuple[int, ...], context: Tensor | None
) -> Tensor:
    """Parameters of all tokens of x, computed a chunk at a time behind a cached prefix."""
    embedded = network.encode_context(context)
    cache = network.new_cache(len(x), x.shape[1], embedded)
    # What was not written must not be read.
    cache.storage.fill_(torch.nan)
    address, shape = cache.storage.data_ptr(), cache.storage.shape
    pieces, start = [], 0
    for length in lengths:
        pieces.append(network(x, embedded, cache, start, start + length))
        start += length
    assert start == x.shape[1]
    assert (cache.storage.data_ptr(), cache.storage.shape) == (address, shape)
    assert not cache.storage.isnan().any()
    assert cache.length == embedded.prefix_length + network.num_start_tokens + x.shape[1] - 1
    return torch.cat(pieces, dim=1)


@every_autoregressive
def test_extending_a_cached_prefix_equals_one_parallel_pass(case, transform):
    network = transform.double().network
    x = case.inputs(3, torch.float64)
    num_tokens = case.event_shape[0]
    splits = {(1,) * num_tokens, (num_tokens,)}
    if num_tokens >= 6:
        splits |= {(1, 3, num_tokens - 4), (2, 1, num_tokens - 3), (num_tokens - 1, 1)}
    with torch.no_grad():
        for context in case.contexts(3, torch.float64):
            parallel = network(x, network.encode_context(context))
            for lengths in splits:
                torch.testing.assert_close(
                    chunked_parameters(network, x, lengths, context), parallel, rtol=0, atol=1e-12
                )


def test_inverse_under_autocast_keeps_its_cache_in_bfloat16(monkeypatch):
    dtypes = []
    new_cache = CausalTransformer.new_cache

    def spy(self, *args):
        cache = new_cache(self, *args)
        dtypes.append(cache.storage.dtype)
        return cache

    monkeypatch.setattr(CausalTransformer, "new_cache", spy)
    transform = perturb(autoregressive())
    z = torch.randn(4, 6, 2)
    x, logabsdet = transform.inverse(z)
    with torch.autocast("cpu", torch.bfloat16):
        low_x, low_logabsdet = transform.inverse(z)
    assert dtypes == [torch.float32, torch.bfloat16]
    assert low_x.dtype == low_logabsdet.dtype == torch.float32
    # Measured: 0.003 and 0.01.
    assert 0 < relative_error(low_x, x) <= 0.012
    assert relative_error(low_logabsdet, logabsdet) <= 0.05


# --- scales ---


def test_exponential_is_its_own_log():
    raw = torch.randn(10)
    assert torch.equal(ExponentialScale()(raw), raw)


def test_softplus_closed_form():
    raw = torch.linspace(-30, 30, 301, dtype=torch.float64)
    scale = torch.log1p(torch.exp(raw) * (torch.e - 1))
    torch.testing.assert_close(SoftplusScale()(raw), scale.log(), rtol=1e-6, atol=1e-9)
    assert SoftplusScale()(torch.zeros(())).abs() < 1e-7


def test_softplus_and_its_gradient_stay_finite_far_out():
    raw = torch.tensor([-1e4, -200.0, -15.6, 200.0, 1e4], requires_grad=True)
    log_scale = SoftplusScale()(raw)
    log_scale.sum().backward()
    # Far below zero softplus is the exponential, far above the identity.
    offset = torch.log(torch.tensor(torch.e - 1))
    expected = torch.cat([raw[:3] + offset, (raw[3:] + offset).log()]).detach()
    torch.testing.assert_close(log_scale.detach(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(raw.grad, torch.tensor([1.0, 1.0, 1.0, 1 / 200.541, 1e-4]), rtol=1e-3, atol=1e-7)


# --- orderings and patches ---


def test_reverse_inside_frames():
    x = torch.arange(6.0).reshape(1, 6, 1)
    assert Reverse()(x)[0].flatten().tolist() == [5, 4, 3, 2, 1, 0]
    assert Reverse(frame_length=3)(x)[0].flatten().tolist() == [2, 1, 0, 5, 4, 3]
    assert Reverse(frame_length=1)(x)[0].flatten().tolist() == [0, 1, 2, 3, 4, 5]


def test_permute_lists_its_inputs_in_the_order_given():
    x = torch.arange(4.0).reshape(1, 4, 1)
    assert Permute(torch.tensor([2, 0, 3, 1]))(x)[0].flatten().tolist() == [2, 0, 3, 1]


def test_image_patches_stand_in_raster_order():
    image = torch.arange(2 * 4 * 4.0).reshape(1, 2, 4, 4)
    tokens, _ = ImagePatches((2, 4, 4), 2)(image)
    for token, (row, column) in enumerate([(0, 0), (0, 2), (2, 0), (2, 2)]):
        patch = image[0, :, row : row + 2, column : column + 2]
        assert torch.equal(tokens[0, token], patch.flatten())
    rows, _ = ImagePatches((2, 4, 4), (1, 4))(image)
    assert torch.equal(rows[0], image[0].transpose(0, 1).reshape(4, 8))


def test_vector_patches_cut_in_raster_order():
    x = torch.arange(12.0).reshape(1, 3, 4)
    assert torch.equal(VectorPatches((3, 4), 2)(x)[0], x.reshape(1, 6, 2))


def test_standardize_gives_zero_mean_and_unit_variance():
    data = 5 * torch.randn(200, 3, 2) - 7
    z, logabsdet = Standardize.fit(data)(data)
    torch.testing.assert_close(z.mean(0), torch.zeros(3, 2), rtol=0, atol=1e-5)
    torch.testing.assert_close(z.std(0), torch.ones(3, 2), rtol=0, atol=1e-5)
    torch.testing.assert_close(logabsdet, -data.std(0).log().sum().expand(200))
