"""Where decoding starts: given first tokens, sweeps in a lower precision, and first guesses of all kinds."""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nflib import decoding
from nflib.decoding import AffineGuess, Auto, GaussSeidelJacobi, Jacobi, PreviousFrame, Sequential
from nflib.networks import EncodedContext
from nflib.transforms import GuidedAutoregressive, LinearGuidance
from nflib.transforms.autoregressive import AffineAutoregressive
from tests.nflib.cases import AUTOREGRESSIVE, NUM_CLASSES, SCOPED, Cliff, autoregressive, labels, pairs_of_labels, solve
from tests.perturb import perturb

MAPS = AUTOREGRESSIVE + [case for case in SCOPED if case.name.startswith("guided")]
PREFIXED = [
    case
    for case in MAPS
    if case.name
    in (
        "plain", "start-learned", "start-learned-one-token", "rotary-2d", "norm-adaptive", "class-embedding", "prefix",
        "prefix-start-learned", "padding-start-learned", "everything", "guided-linear-ramp", "guided-product-text",
    )
]  # fmt: skip
EXACT = [Sequential(), Jacobi(0.0), GaussSeidelJacobi(2, 0.0), GaussSeidelJacobi(4, 0.0, initial_guess="zeros")]


def as_written_out(decoder: GaussSeidelJacobi) -> str:
    return f"{type(decoder).__name__}-{decoder.block_size}"


every_decoder = pytest.mark.parametrize("decoder", EXACT, ids=as_written_out)


class LinearMap(AffineAutoregressive):
    """``u_t = sum over s < t of weights[t, s] u_s + scale z_t``: its solution is that of a triangular system."""

    def __init__(self, weights: Tensor, scale: float):
        super().__init__()
        self.weights = nn.Parameter(weights.tril(-1))
        self.scale = scale
        self.decoding = Sequential()

    @property
    def token_size(self) -> int:
        return 2

    def encode_context(self, context: Any) -> EncodedContext:
        return EncodedContext()

    def new_cache(self, batch_size: int, num_tokens: int, encoded_context: EncodedContext) -> Any:
        storage = self.weights.new_empty(batch_size, num_tokens, self.token_size)
        return SimpleNamespace(storage=storage, dtype=storage.dtype)

    def conditionals(
        self, tokens: Tensor, encoded_context: Any, cache: Any = None, start: int = 0, stop: int | None = None
    ) -> tuple[Tensor, Tensor]:
        stop = tokens.shape[1] if stop is None else stop
        read = tokens[:, : stop - 1]
        if cache is not None:
            first = max(start - 1, 0)
            cache.storage[:, first : stop - 1] = read[:, first:]
            read = cache.storage[:, : stop - 1]
        shift = torch.einsum("ts,bsc->btc", self.weights[start:stop, : stop - 1], read)
        return shift, torch.full_like(shift, math.log(self.scale))

    def solution(self, z: Tensor) -> Tensor:
        number = z.shape[1]
        system = torch.eye(number, dtype=z.dtype) - self.weights[:number, :number].detach()
        return torch.linalg.solve_triangular(system, self.scale * z, upper=False)


@pytest.fixture
def linear() -> LinearMap:
    return LinearMap(0.5 * torch.randn(8, 8, dtype=torch.float64), 0.7)


# --- first tokens that are given ---


@every_decoder
def test_a_triangular_system_is_solved_from_any_prefix(decoder, linear):
    z = torch.randn(4, 8, 2, dtype=torch.float64)
    expected = linear.solution(z)
    for length in (None, 0, 1, 5, 7, 8):
        prefix = None if length is None else expected[:, :length]
        u, log_scale = solve(decoder, linear, z, None, prefix)
        torch.testing.assert_close(u, expected, rtol=0, atol=1e-12)
        torch.testing.assert_close(log_scale, torch.full((4,), 16 * math.log(0.7), dtype=z.dtype))


@pytest.mark.parametrize("case", PREFIXED, ids=str)
@torch.no_grad()
def test_the_tokens_that_follow_a_prefix_solve_their_equations(case):
    """Whatever is given first; the solution's own tokens give the rest of the solution."""
    transform = perturb(case.build()).double()
    z, context = case.inputs(3, torch.float64), case.context(3, torch.float64)
    num_tokens = z.shape[1]
    solution, _ = transform.inverse(z, context)
    for length in sorted({0, 1, num_tokens - 1, num_tokens}):
        unread = z.clone()
        unread[:, :length] = math.nan
        other = torch.cat([torch.randn_like(z[:, :length]), z[:, length:]], dim=1)
        for decoder in EXACT:
            with decoding.report() as report:
                u, log_scale = solve(decoder, transform, unread, context, prefix=solution[:, :length])
            assert torch.equal(u[:, :length], solution[:, :length])
            torch.testing.assert_close(u, solution, rtol=0, atol=1e-10)
            torch.testing.assert_close(log_scale, -transform(u, context)[1], rtol=0, atol=1e-9)
            assert report.blocks[0].num_tokens == num_tokens and report.residual == 0
            assert report.sweeps <= num_tokens - length
            if length:
                u, log_scale = solve(decoder, transform, unread, context, prefix=other[:, :length])
                back, logabsdet = transform(u, context)
                assert torch.equal(u[:, :length], other[:, :length])
                torch.testing.assert_close(back[:, length:], z[:, length:], rtol=0, atol=1e-9)
                torch.testing.assert_close(log_scale, -logabsdet, rtol=0, atol=1e-9)


@pytest.mark.parametrize("tolerance", [1e-2, 10.0])
def test_log_scale_is_that_of_the_result_at_any_tolerance_with_a_prefix(tolerance):
    transform = perturb(autoregressive(12, 2, start_token=True)).double()
    z = torch.randn(3, 12, 2, dtype=torch.float64)
    for decoder in (Jacobi(tolerance), GaussSeidelJacobi(4, tolerance), Jacobi(0.0, max_sweeps=2)):
        u, log_scale = solve(decoder, transform, z, None, torch.randn(3, 5, 2, dtype=torch.float64))
        torch.testing.assert_close(log_scale, -transform(u)[1], rtol=0, atol=1e-10)


@pytest.mark.parametrize("decoder", [*EXACT, Jacobi(1e-9)], ids=as_written_out)
def test_a_prefix_that_is_not_finite_spoils_its_own_sample_alone(decoder):
    transform = perturb(autoregressive(10, 2)).double()
    z = torch.randn(4, 10, 2, dtype=torch.float64)
    prefix = torch.randn(4, 3, 2, dtype=torch.float64)
    with decoding.report() as report:
        expected, expected_log_scale = solve(decoder, transform, z, None, prefix)
    prefix[1, 1, 0], prefix[2, 0] = math.nan, math.inf
    with decoding.report() as spoilt_report:
        u, log_scale = solve(decoder, transform, z, None, prefix)
    torch.testing.assert_close(u[[0, 3]], expected[[0, 3]], rtol=0, atol=1e-7)
    torch.testing.assert_close(log_scale[[0, 3]], expected_log_scale[[0, 3]], rtol=0, atol=1e-7)
    assert u[[1, 2], 3:].isnan().all() and log_scale[[1, 2]].isnan().all()
    assert spoilt_report.sweeps <= report.sweeps


@pytest.mark.parametrize("decoder", [*EXACT, Jacobi(warmup=torch.bfloat16), Auto()], ids=lambda d: type(d).__name__)
@pytest.mark.parametrize("shape", [(3, 7, 2), (2, 2, 2), (1, 2, 2), (3, 2, 1), (3, 2), (3, 0, 1)], ids=str)
def test_a_prefix_of_another_shape_is_an_error(decoder, shape):
    with pytest.raises(ValueError, match="prefix of shape"):
        solve(decoder, autoregressive(6, 2), torch.randn(3, 6, 2), None, torch.zeros(shape))


def test_a_prefix_is_not_written_to_and_its_length_counts_in_the_report():
    transform = perturb(autoregressive(8, 2))
    z, prefix = torch.randn(2, 8, 2), torch.randn(2, 3, 2)
    before = prefix.clone()
    with decoding.report() as report:
        solve(Sequential(), transform, z, None, prefix)
        solve(GaussSeidelJacobi(4, 0.0), transform, z, None, prefix)
        solve(Jacobi(warmup=torch.bfloat16), transform, z, None, prefix)
        solve(Jacobi(), transform, z, None, torch.randn(2, 8, 2))
    assert torch.equal(prefix, before)
    assert report.blocks[0].windows == (1,) * 5
    assert report.blocks[1].windows[0] == 4 and report.blocks[2].windows[0] == 5 and report.blocks[2].warmup_sweeps == 0
    assert report.blocks[3].windows == () and report.blocks[3].tokens_computed == 0
    assert len(str(report).splitlines()) == 6


# --- drafts ---


def drafted(tolerance: float = 0.0, **arguments: Any) -> Jacobi:
    return Jacobi(tolerance, warmup=torch.bfloat16, **arguments)


@pytest.mark.parametrize("case", MAPS, ids=str)
def test_drafts_do_not_change_the_solution(case):
    """With text, classes, conditions, padding or guidance, in float32 and float64."""
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-10)):
        transform = perturb(case.build()).to(dtype)
        z, context = case.inputs(4, dtype), case.context(4, dtype)
        expected, _ = transform.inverse(z, context)
        with decoding.report() as report:
            u, log_scale = solve(drafted(), transform, z, context)
        assert u.dtype == log_scale.dtype == dtype
        torch.testing.assert_close(u, expected, rtol=0, atol=tolerance)
        torch.testing.assert_close(log_scale, -transform(u, context)[1], rtol=0, atol=10 * tolerance)
        assert (report.blocks[0].warmup_sweeps > 0) == (z.shape[1] > 1) and report.residual == 0


@pytest.mark.parametrize("tolerance", [1e-3, 1.0])
def test_density_after_drafts_is_that_of_the_result(tolerance):
    transform = perturb(autoregressive(12, 2)).double()
    z = torch.randn(3, 12, 2, dtype=torch.float64)
    with decoding.report() as report:
        u, log_scale = solve(drafted(tolerance), transform, z)
    with torch.no_grad():
        shift, own_log_scale = transform.conditionals(u, transform.encode_context(None))
    missed = float((shift + z * own_log_scale.exp() - u).abs().max())
    assert missed == pytest.approx(report.residual, abs=1e-9) and missed <= tolerance
    torch.testing.assert_close(log_scale, -transform(u)[1], rtol=0, atol=1e-10)


def test_drafts_save_sweeps_and_the_report_counts_both():
    transform = perturb(autoregressive(32, 2), 0.2)
    z = torch.randn(4, 32, 2)
    with decoding.report() as report:
        solve(Jacobi(1e-3), transform, z)
        solve(drafted(1e-3), transform, z)
        solve(GaussSeidelJacobi(8, 1e-3, warmup=torch.bfloat16), transform, z)
        solve(GaussSeidelJacobi(32, 1e-3, warmup=torch.bfloat16), transform, z)
    plain, with_drafts, window, whole = report.blocks
    assert plain.warmup_sweeps == window.warmup_sweeps == 0
    assert 0 < with_drafts.warmup_sweeps < 32 and with_drafts.sweeps < plain.sweeps
    assert whole == with_drafts
    assert f"{with_drafts.warmup_sweeps:6d}" in str(report).splitlines()[2]


def test_drafts_end_when_they_no_longer_help():
    """An identity is found by the first, whatever the number of tokens."""
    with decoding.report() as report:
        solve(drafted(), autoregressive(12, 2), torch.randn(3, 12, 2))
    assert report.blocks[0].warmup_sweeps == 1 and report.blocks[0].windows == (12,)


def test_a_draft_is_not_overwritten_by_the_previous_frame():
    transform = perturb(autoregressive(24, 2))
    z = torch.randn(3, 24, 2)
    with decoding.report() as report:
        for start in ("latent", PreviousFrame(4)):
            solve(drafted(1e-4, initial_guess=start), transform, z)
        solve(Jacobi(1e-4), transform, z)
    assert report.blocks[0] == report.blocks[1] and report.blocks[0].sweeps < report.blocks[2].sweeps


def test_drafts_leave_modules_as_they_were():
    transform = perturb(autoregressive(8, 2, num_classes=NUM_CLASSES, positions="rotary"))
    names = {name: set(vars(module)) for name, module in transform.named_modules()}
    parameters = dict(transform.named_parameters())
    values = {name: tensor.clone() for name, tensor in (*transform.named_parameters(), *transform.named_buffers())}
    solve(drafted(1e-3), transform, torch.randn(5, 8, 2), labels(5))
    assert {name: set(vars(module)) for name, module in transform.named_modules()} == names
    for name, tensor in (*transform.named_parameters(), *transform.named_buffers()):
        assert tensor.dtype == torch.float32 and torch.equal(tensor, values[name])
    for name, parameter in transform.named_parameters():
        assert parameter is parameters[name] and parameter.requires_grad and parameter.grad is None


def test_parts_that_are_shared_are_shared_in_the_draft():
    from nflib.decoding.warmup import in_precision

    transform = perturb(autoregressive(8, 2))
    transform.network.layers[1] = transform.network.layers[0]
    rounded = in_precision(transform, torch.bfloat16)
    assert rounded.network.layers[1] is rounded.network.layers[0]
    for parameter, original in zip(rounded.parameters(), transform.parameters(), strict=True):
        assert parameter.dtype == torch.bfloat16 and not parameter.requires_grad
        torch.testing.assert_close(parameter.float(), original.detach(), rtol=2**-8, atol=0)


class OneHot(nn.Module):
    """Conditions in float32, whatever the weights are: from integers, or from labels too fine for bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, context: Tensor) -> Tensor:
        classes = nn.functional.one_hot(context.long() - 997, 4)
        return self.linear(classes.float()).unsqueeze(1).expand(-1, 5, -1)


@pytest.mark.parametrize("dtype", [torch.long, torch.float32], ids=str)
def test_the_context_of_a_draft_is_embedded_in_full_precision(dtype):
    transform = autoregressive(6, 2, conditioner=True)
    transform.network.conditioner = OneHot()
    perturb(transform)
    z, context = torch.randn(4, 6, 2), torch.tensor([997, 998, 999, 1000]).to(dtype)
    u, _ = solve(drafted(), transform, z, context)
    torch.testing.assert_close(u, transform.inverse(z, context)[0], rtol=0, atol=1e-5)


def test_overflow_in_a_draft_is_contained():
    """From other tokens than the solution, the draft's sweeps overflow; the solution is found all the same."""
    torch.manual_seed(2)
    transform = perturb(autoregressive(12, 2, positions="rotary", start_token=True))
    solution = 0.05 * torch.randn(3, 12, 2)
    start = 3 * torch.randn(1, 12, 2)
    with torch.no_grad():
        transform.scale = Cliff(float(transform.network(solution)[..., :2].max()) + 1e-3)
        z, _ = transform(solution)
        shift, log_scale = transform.conditionals(start.expand_as(z), transform.encode_context(None))
        assert not (shift + z * log_scale.exp()).isfinite().all()
    for first in ("latent", start):
        inversion = drafted(1e-6, initial_guess=first).begin(transform, z, transform.encode_context(None))
        assert inversion.warmup_sweeps > 0 and inversion.u.isfinite().all()
        u, log_scale = solve(drafted(1e-6, initial_guess=first), transform, z)
        torch.testing.assert_close(u, solution, rtol=0, atol=1e-5)
        assert not log_scale.any()


def test_a_draft_that_overflows_in_its_own_precision_is_outlived():
    """float16 ends at 65504: a weight beyond that is infinite there, and each parameter not a number."""
    transform = perturb(autoregressive(8, 2))
    transform.network.proj_in.bias.data[0] = 1e5
    z = torch.randn(3, 8, 2)
    inversion = Jacobi(0.0, warmup=torch.float16).begin(transform, z, transform.encode_context(None))
    assert inversion.warmup_sweeps > 0 and inversion.u.isfinite().all()
    u, _ = solve(Jacobi(0.0, warmup=torch.float16), transform, z)
    torch.testing.assert_close(u, transform.inverse(z)[0], rtol=0, atol=1e-5)


def test_a_sample_that_overflows_does_not_disturb_the_drafts_of_others():
    transform = perturb(autoregressive(10, 2), 0.2)
    z = torch.randn(4, 10, 2)
    expected, _ = solve(drafted(1e-5), transform, z)
    z[1, 4], z[3, 0] = math.inf, math.nan
    u, log_scale = solve(drafted(1e-5), transform, z)
    torch.testing.assert_close(u[[0, 2]], expected[[0, 2]], rtol=0, atol=1e-3)
    assert u[[1, 3]].isnan().all() and log_scale[[1, 3]].isnan().all()


def test_drafts_of_a_guided_map_with_a_temperature():
    transform = GuidedAutoregressive(
        perturb(autoregressive(num_classes=NUM_CLASSES)), LinearGuidance(1.0, attention_temperature=1.3)
    )
    z, context = torch.randn(3, 6, 2), pairs_of_labels(3)
    u, _ = solve(drafted(), transform, z, context)
    torch.testing.assert_close(u, transform.inverse(z, context)[0], rtol=0, atol=1e-5)
    in_bfloat16 = copy.deepcopy(transform).bfloat16()(u.bfloat16(), context)[0]
    torch.testing.assert_close(in_bfloat16, z, rtol=0, atol=0.1, check_dtype=False)


# --- first guesses: the previous frame ---


@pytest.mark.parametrize("window", [1, 2, 4, 5, 8, 11, None])
def test_from_the_previous_frame_every_window_finds_the_solution(window):
    transform = perturb(autoregressive(12, 2)).double()
    z = torch.randn(3, 12, 2, dtype=torch.float64)
    expected, _ = transform.inverse(z)
    for frame_length in (1, 4, 5, 12, 100):
        start = PreviousFrame(frame_length)
        u, _ = solve(GaussSeidelJacobi(window, 0.0, initial_guess=start), transform, z)
        torch.testing.assert_close(u, expected, rtol=0, atol=1e-10)
        u, _ = solve(GaussSeidelJacobi(window, 0.0, initial_guess=start), transform, z, None, expected[:, :6])
        torch.testing.assert_close(u, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("first", "stop"), [(0, 4), (4, 8), (5, 7), (2, 6), (3, 12), (0, 12), (8, 12), (7, 7)])
def test_guesses_are_the_tokens_one_frame_earlier(first, stop):
    u = torch.randn(2, 12, 3)
    expected = u.clone()
    for t in range(max(first, 4), stop):
        expected[:, t] = expected[:, t - 4]
    start = PreviousFrame(4)
    guess = start.guess(u)
    start.extend(guess, first, stop)
    assert torch.equal(guess, expected) and guess.data_ptr() != u.data_ptr()


def test_nearly_repeated_frames_take_fewer_sweeps_from_the_previous_one():
    # A gentle map: one that magnifies the first frame's error beyond the tolerance would hide the better guess.
    transform = perturb(autoregressive(24, 2, positions="rotary"), 0.05).double()
    frame = torch.randn(3, 1, 6, 2, dtype=torch.float64)
    solution = (frame + 1e-5 * torch.randn(3, 4, 6, 2, dtype=torch.float64)).flatten(1, 2)
    with torch.no_grad():
        z, _ = transform(solution)
    sweeps = {}
    for start in ("latent", "zeros", PreviousFrame(6)):
        with decoding.report() as report:
            u, _ = solve(GaussSeidelJacobi(6, 1e-4, initial_guess=start), transform, z)
        torch.testing.assert_close(u, solution, rtol=0, atol=1e-2)
        sweeps[start if isinstance(start, str) else "frame"] = report.sweeps
    assert sweeps["frame"] < sweeps["latent"] and sweeps["frame"] < sweeps["zeros"]
    # The first frame takes its sweeps; each of the other three is guessed to within the tolerance.
    assert sweeps["frame"] <= 6 + 3 * 2


@pytest.mark.parametrize("frame_length", [0, -2])
def test_a_frame_of_no_tokens_is_an_error(frame_length):
    with pytest.raises(ValueError, match="frame_length"):
        PreviousFrame(frame_length)


# --- first guesses: affine ---


def test_an_affine_function_is_found():
    matrix, bias = torch.randn(6, 6, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    z = torch.randn(50, 3, 2, dtype=torch.float64)
    u = (z.flatten(1) @ matrix + bias).view_as(z)
    start = AffineGuess.fit(z, u, ridge=1e-12)
    torch.testing.assert_close(start.matrix, matrix, rtol=0, atol=1e-9)
    torch.testing.assert_close(start.bias, bias, rtol=0, atol=1e-9)
    torch.testing.assert_close(start.guess(z), u, rtol=0, atol=1e-9)


@pytest.mark.parametrize("number", [3, 40])
def test_the_fit_minimises_the_penalised_squares(number):
    """``mean |u - z A - b|^2 + ridge |A - 1|^2``: its gradient vanishes, also for fewer samples than numbers."""
    z = torch.randn(number, 4, 2, dtype=torch.float64) + 1
    u = torch.randn(number, 4, 2, dtype=torch.float64)
    start = AffineGuess.fit(z, u, ridge=0.03)
    matrix, bias = start.matrix.clone().requires_grad_(), start.bias.clone().requires_grad_()
    missed = u.flatten(1) - z.flatten(1) @ matrix - bias
    objective = missed.square().sum(-1).mean() + 0.03 * (matrix - torch.eye(8, dtype=torch.float64)).square().sum()
    gradients = torch.autograd.grad(objective, (matrix, bias))
    assert max(float(gradient.abs().max()) for gradient in gradients) < 1e-12


def test_the_fit_ignores_samples_that_are_not_finite():
    z, u = torch.randn(2, 30, 3, 2)
    expected = AffineGuess.fit(z[:27], u[:27])
    u[27, 1, 0], u[28, 0, 1], z[29, 2, 1] = math.nan, -math.inf, math.nan
    start = AffineGuess.fit(z, u)
    assert torch.equal(start.matrix, expected.matrix) and torch.equal(start.bias, expected.bias)
    assert start.matrix.dtype == torch.float32


def test_without_a_finite_sample_the_guess_is_the_latent():
    nothing = torch.full((5, 3, 2), math.nan)
    start = AffineGuess.fit(nothing, nothing)
    z = torch.randn(4, 3, 2)
    torch.testing.assert_close(start.guess(z), z)


def test_a_linear_map_takes_one_sweep_from_its_affine_start(linear):
    z = torch.randn(200, 8, 2, dtype=torch.float64)
    start = AffineGuess.fit(z, linear.solution(z), ridge=1e-12)
    z = torch.randn(5, 8, 2, dtype=torch.float64)
    with decoding.report() as report:
        for first in ("latent", start):
            u, _ = solve(Jacobi(1e-7, initial_guess=first), linear, z)
            torch.testing.assert_close(u, linear.solution(z), rtol=0, atol=1e-5)
    assert report.blocks[0].sweeps > 4 and report.blocks[1].sweeps == 1


def test_a_map_with_a_strong_linear_part_takes_fewer_sweeps():
    transform = perturb(autoregressive(16, 2), 0.15)
    z = torch.randn(600, 16, 2)
    start = AffineGuess.fit(z, transform.inverse(z)[0])
    z = torch.randn(5, 16, 2)
    with decoding.report() as report:
        for first in ("latent", start):
            u, _ = solve(Jacobi(1e-3, initial_guess=first), transform, z)
            torch.testing.assert_close(u, transform.inverse(z)[0], rtol=0, atol=2e-2)
    assert report.blocks[2].sweeps < report.blocks[0].sweeps


def test_an_affine_start_for_other_tokens_falls_back_on_the_latent(linear):
    start = AffineGuess.fit(torch.randn(50, 6, 2), torch.randn(50, 6, 2))
    z = torch.randn(3, 5, 2)
    guess = start.guess(z)
    assert torch.equal(guess, z) and guess.data_ptr() != z.data_ptr()
    with decoding.report() as report:
        for first in (start, "latent"):
            solve(Jacobi(1e-9, initial_guess=first), linear.float(), z)
    assert report.blocks[0] == report.blocks[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_an_affine_guess_has_the_latents_dtype_and_is_finite_where_it_is(dtype):
    start = AffineGuess(3 * torch.eye(4), torch.ones(4))
    z = torch.zeros(2, 2, 2, dtype=dtype)
    z[1, 1, 0] = torch.finfo(dtype).max / 2  # overflows in the product
    guess = start.guess(z)
    assert guess.dtype == dtype and guess.isfinite().all()
    assert torch.equal(guess[0], torch.ones(2, 2, dtype=dtype)) and guess[1, 1, 0] == z[1, 1, 0]


class OwnMap(AffineAutoregressive):
    """A map of somebody's own, which encodes its context in its own way."""

    token_size, uses_context = 2, False

    def __init__(self, encoded: Any):
        super().__init__()
        self.linear, self.encoded, self.decoding = nn.Linear(2, 2), encoded, Sequential()

    def encode_context(self, context: Any) -> Any:
        return self.encoded

    def new_cache(self, batch_size: int, num_tokens: int, encoded_context: Any) -> Any:
        return SimpleNamespace(dtype=torch.float32)

    def conditionals(self, tokens: Tensor, encoded_context: Any, cache: Any = None, start: int = 0, stop: Any = None):
        before = nn.functional.pad(tokens, (0, 0, 1, 0))[:, start : tokens.shape[1] if stop is None else stop]
        shift = torch.tanh(self.linear(before)).float()
        return shift, 0.1 * shift


@pytest.mark.parametrize("encoded", [None, torch.ones(2), (torch.ones(2), None), {"ones": torch.ones(2)}])
@pytest.mark.parametrize("decoder", [Jacobi(1e-6, warmup=torch.bfloat16), Auto()])
def test_warm_up_of_contexts_encoded_in_any_way(encoded, decoder):
    own, noise = OwnMap(encoded), torch.randn(3, 5, 2)
    found = own.invert(noise, decoder=decoder).tokens
    torch.testing.assert_close(found, own.invert(noise).tokens, rtol=0, atol=1e-3)


class OfFullPrecision(OwnMap):
    """A map whose plain tensor no copy in bfloat16 rounds."""

    def __init__(self):
        super().__init__(None)
        self.table = torch.eye(2)

    def conditionals(self, tokens: Tensor, encoded_context: Any, cache: Any = None, start: int = 0, stop: Any = None):
        return super().conditionals(tokens @ self.table, encoded_context, cache, start, stop)


def test_auto_leaves_out_a_warm_up_that_a_map_does_not_compute():
    own, noise = OfFullPrecision(), torch.randn(3, 5, 2)
    torch.testing.assert_close(own.invert(noise, decoder=Auto()).tokens, own.invert(noise).tokens, rtol=0, atol=1e-3)
    with pytest.raises(RuntimeError):
        own.invert(noise, decoder=Jacobi(warmup=torch.bfloat16))
