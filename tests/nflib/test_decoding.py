"""All decoders against token-by-token decoding and against `log_prob`; then overflow, reports, and whose turn it is."""

from __future__ import annotations

import itertools
import math
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nflib import Flow, decoding
from nflib.decoding import GaussSeidelJacobi, Jacobi, Sequential
from nflib.distributions import StandardNormal
from nflib.flows import TARFlow
from nflib.networks import KeyValueCache
from nflib.transforms import TransformerAffineAutoregressive
from tests.nflib.cases import AUTOREGRESSIVE, FLOWS, SMALL, Cliff, autoregressive, solve
from tests.perturb import perturb

every_autoregressive = pytest.mark.parametrize("case", AUTOREGRESSIVE, ids=str)
every_flow = pytest.mark.parametrize("case", FLOWS, ids=str)


def exact_decoders() -> list[decoding.Decoder]:
    return [
        Jacobi(0.0),
        Jacobi(0.0, initial_guess="zeros"),
        *(GaussSeidelJacobi(size, 0.0) for size in (1, 2, 3, 5, 100)),
    ]


def token_by_token(transform: TransformerAffineAutoregressive, z: Tensor, context: Tensor | None = None) -> Tensor:
    """Decoding without a cache or a solver: T forward passes, each of which finds one more token."""
    u = torch.zeros_like(z)
    with torch.no_grad():
        for t in range(z.shape[1]):
            parameters = transform.conditionals(u, transform.encode_context(context))
            u[:, t] = transform.from_noise(z, parameters)[0][:, t]
    return u


@pytest.fixture
def flow() -> Flow:
    return perturb(TARFlow((24,), 2, **SMALL))


# --- exactness ---


@every_autoregressive
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)], ids=str)
def test_every_window_gives_the_same_solution(case, dtype, tolerance):
    transform = perturb(case.build()).to(dtype)
    z = case.inputs(4, dtype)
    for context in case.contexts(4, dtype):
        expected = token_by_token(transform, z, context)
        _, logabsdet = transform(expected, context)
        for decoder in (Sequential(), *exact_decoders()):
            u, log_scale = solve(decoder, transform, z, context)
            torch.testing.assert_close(u, expected, rtol=0, atol=tolerance)
            torch.testing.assert_close(log_scale, -logabsdet, rtol=0, atol=10 * tolerance)


@every_flow
def test_flows_sample_the_same_with_every_decoder(case):
    # nflows' own base densities draw in float32 only.
    dtype, tolerance = (torch.float32, 1e-5) if case.name == "nflows-base" else (torch.float64, 1e-10)
    flow = perturb(case.build()).to(dtype)
    context = case.context(2, dtype)
    expected, expected_log_prob = flow.sample_and_log_prob(3, context, seed=0, decoding=Sequential())
    for decoder in exact_decoders():
        x, log_prob = flow.sample_and_log_prob(3, context, seed=0, decoding=decoder)
        torch.testing.assert_close(x, expected, rtol=0, atol=tolerance)
        torch.testing.assert_close(log_prob, expected_log_prob, rtol=0, atol=10 * tolerance)
        torch.testing.assert_close(flow.sample(3, context, seed=0, decoding=decoder), x, rtol=0, atol=0)


@every_flow
@pytest.mark.parametrize("decoder", [Jacobi(1e-2), Jacobi(10.0), GaussSeidelJacobi(2, 0.3), Jacobi(0.0, 2)])
def test_log_density_is_that_of_the_samples_at_any_tolerance(case, decoder):
    flow = perturb(case.build())
    context = case.context(1)
    x, log_prob = flow.sample_and_log_prob(8, context, seed=0, decoding=decoder)
    x, log_prob = (x, log_prob) if context is None else (x[0], log_prob[0])
    rows = None if context is None else context.expand(8, *context.shape[1:])
    torch.testing.assert_close(flow.log_prob(x, rows), log_prob, rtol=0, atol=1e-4)


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(
    num_tokens=st.integers(1, 13),
    token_size=st.integers(1, 3),
    window=st.none() | st.integers(1, 16),
    tolerance=st.sampled_from([0.0, 1e-9, 1e-4, 1e-2, 1.0]),
    max_sweeps=st.none() | st.integers(1, 8),
    start=st.sampled_from(["latent", "zeros"]),
    batch=st.integers(1, 5),
    learned_start=st.booleans(),
    strength=st.sampled_from([0.05, 0.3]),
)
def test_solver_for_any_size_window_and_tolerance(
    num_tokens, token_size, window, tolerance, max_sweeps, start, batch, learned_start, strength
):
    torch.manual_seed(num_tokens)
    build = autoregressive(num_tokens, token_size, channels=8, head_dim=4, start_token=learned_start)
    transform = perturb(build.double(), strength)
    z = torch.randn(batch, num_tokens, token_size, dtype=torch.float64)
    with decoding.report() as report:
        u, log_scale = solve(GaussSeidelJacobi(window, tolerance, max_sweeps, start), transform, z)
    back, logabsdet = transform(u)
    # The log-determinant belongs to this u, whatever u is; and u misses the equation by what the report says.
    torch.testing.assert_close(log_scale, -logabsdet, rtol=1e-9, atol=1e-9)
    with torch.no_grad():
        shift, log_scale = transform.conditionals(u, transform.encode_context(None))
    missed = (shift + z * log_scale.exp() - u).abs().max()
    torch.testing.assert_close(report.residual, float(missed), rtol=1e-6, atol=1e-9)
    assert report.blocks[0].sweeps <= min(max_sweeps or num_tokens, num_tokens)
    if max_sweeps is None:
        assert report.residual <= tolerance
        if tolerance <= 1e-9:
            torch.testing.assert_close(u, token_by_token(transform, z), rtol=0, atol=1e-6)
            torch.testing.assert_close(back, z, rtol=0, atol=1e-6)


def test_more_sweeps_or_less_tolerance_come_closer(flow):
    exact = flow.sample(16, seed=0)
    errors = [float((flow.sample(16, seed=0, decoding=Jacobi(0.0, n)) - exact).abs().max()) for n in (2, 4, 6, 13)]
    assert errors == sorted(errors, reverse=True) and errors[0] > 1e-2 and errors[-1] < 1e-5
    errors = [float((flow.sample(16, seed=0, decoding=Jacobi(t)) - exact).abs().max()) for t in (1e-1, 1e-3, 1e-5)]
    assert errors == sorted(errors, reverse=True) and errors[0] > 1e-3 and errors[-1] < 1e-4


@pytest.mark.parametrize("window", [4, None])
def test_looking_ahead_saves_sweeps_and_stays_near_the_tolerance(window):
    torch.manual_seed(0)
    flow = perturb(TARFlow((24,), 2, **SMALL), 0.1)
    saved = 0
    exact, exact_log_prob = flow.sample_and_log_prob(64, seed=0)
    for tolerance in (1e-2, 1e-3, 1e-4, 0.0):
        with decoding.report() as strict:
            flow.sample(64, seed=0, decoding=GaussSeidelJacobi(window, tolerance))
        with decoding.report() as ahead:
            x, log_prob = flow.sample_and_log_prob(
                64, seed=0, decoding=GaussSeidelJacobi(window, tolerance, ahead=True)
            )
        assert ahead.sweeps <= strict.sweeps and ahead.residual <= tolerance
        assert float((x - exact).abs().max()) <= 10 * tolerance + 1e-5
        torch.testing.assert_close(log_prob, flow.log_prob(x).detach(), rtol=0, atol=1e-4)
        saved += strict.sweeps - ahead.sweeps
    assert saved >= 1
    torch.testing.assert_close(log_prob, exact_log_prob, rtol=0, atol=1e-4)


def test_a_given_start_at_the_solution_needs_one_sweep():
    transform = perturb(autoregressive(12, 2)).double()
    z = torch.randn(3, 12, 2, dtype=torch.float64)
    solution, _ = transform.inverse(z)
    with decoding.report() as report:
        u, _ = solve(Jacobi(1e-9, initial_guess=solution.float()), transform, z)
        solve(Jacobi(1e-9, initial_guess=solution), transform, z)
    torch.testing.assert_close(u, solution, rtol=0, atol=1e-8)
    assert report.blocks[0].sweeps > report.blocks[1].sweeps == 1


# --- overflow ---


@pytest.mark.parametrize("window", [2, 4, None])
@pytest.mark.parametrize("tolerance", [0.0, 1e-6])
def test_guesses_that_overflow_are_contained(window, tolerance):
    """From other tokens than the solution, the first sweeps overflow; the solution is found all the same."""
    torch.manual_seed(2)
    transform = perturb(autoregressive(12, 2, positions="rotary", start_token=True), seed=3)  # which does overflow
    solution = 0.05 * torch.randn(3, 12, 2)  # much the same at all positions, and so are its raw scales
    start = 3 * torch.randn(1, 12, 2)
    with torch.no_grad():
        transform.scale = Cliff(float(transform.network(solution)[..., :2].max()) + 1e-3)
        z, _ = transform(solution)
        for guess in (z, start.expand_as(z)):
            shift, log_scale = transform.conditionals(guess, transform.encode_context(None))
            overflows = ~(shift + z * log_scale.exp()).isfinite()
            assert overflows.any() and not overflows.all()
    for first, ahead in itertools.product(("latent", start), (False, True)):
        solved, log_scale = solve(GaussSeidelJacobi(window, tolerance, initial_guess=first, ahead=ahead), transform, z)
        torch.testing.assert_close(solved, solution, rtol=0, atol=1e-5)
        assert not log_scale.any()


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e38])
def test_a_start_that_is_not_finite_or_huge_is_replaced_or_outlived(value):
    transform = perturb(autoregressive(8, 2))
    z = torch.randn(3, 8, 2)
    start = torch.full((8, 2), value)
    for window in (2, 3, None):
        u, _ = solve(GaussSeidelJacobi(window, 0.0, initial_guess=start), transform, z)
        torch.testing.assert_close(u, transform.inverse(z)[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("decoder", [Jacobi(0.0), Jacobi(1e-3), GaussSeidelJacobi(3, 0.0)])
def test_a_sample_that_overflows_is_alone_and_not_a_number(decoder):
    transform = perturb(autoregressive(10, 2), 0.3)
    z = torch.randn(4, 10, 2)
    bad = z.clone()
    bad[1, 4] = math.inf
    bad[3, 0] = 3e38
    bad[3, 1] = 3e38
    transform.network.proj_out.bias.data[:2] += 1.0  # scales above one: 3e38 overflows in itself
    u, log_scale = solve(decoder, transform, bad)
    with decoding.report() as report:
        expected, expected_log_scale = solve(decoder, transform, z[[0, 2]])
        solve(decoder, transform, bad)
    torch.testing.assert_close(u[[0, 2]], expected, rtol=0, atol=1e-2 if decoder.tolerance else 1e-5)
    torch.testing.assert_close(log_scale[[0, 2]], expected_log_scale, rtol=0, atol=1e-2 if decoder.tolerance else 1e-4)
    assert u[[1, 3]].isnan().all() and log_scale[[1, 3]].isnan().all()
    assert report.blocks[1].sweeps <= report.blocks[0].sweeps + 4


# --- the cache ---


def test_committed_keys_and_values_are_those_of_the_solution_and_the_cache_does_not_grow(monkeypatch):
    transform = perturb(autoregressive(12, 2))
    caches = []
    new_cache = transform.network.new_cache

    def spy(*args, **kwargs) -> KeyValueCache:
        caches.append(new_cache(*args, **kwargs))
        return caches[-1]

    monkeypatch.setattr(transform.network, "new_cache", spy)
    z = torch.randn(3, 12, 2)
    for decoder in (Sequential(), Jacobi(0.0), GaussSeidelJacobi(4, 0.0)):
        solve(decoder, transform, z)
    assert len(caches) == 3 and all(cache.length == 11 for cache in caches)
    for cache in caches[1:]:
        torch.testing.assert_close(cache.storage, caches[0].storage, rtol=0, atol=1e-5)


def test_caches_do_not_survive_a_call(flow):
    before = {name: set(vars(module)) for name, module in flow.named_modules()}
    flow.sample(2, seed=0, decoding=Jacobi())
    assert {name: set(vars(module)) for name, module in flow.named_modules()} == before


# --- reports ---


def test_report_counts_sweeps_and_tokens(flow):
    with decoding.report() as report:
        flow.sample(4, seed=0, decoding=Sequential())
    assert [block.windows for block in report.blocks] == [(1,) * 12] * 2
    assert report.tokens_computed == report.tokens_needed == report.sweeps == 24 and report.residual == 0
    with decoding.report() as report:
        flow.sample(4, batch_size=3, seed=0, decoding=GaussSeidelJacobi(4, 0.0))
    assert [block.batch_size for block in report.blocks] == [3, 3, 1, 1]
    for block in report.blocks:
        assert block.num_tokens == 12 and block.windows[0] == 4 and 3 <= block.sweeps <= 12
        assert block.tokens_computed == sum(block.windows) <= 4 * block.sweeps
    assert report.tokens_needed == 48 and report.residual == 0 and report.round_trip_error < 1e-4
    with decoding.report() as report:
        flow.sample(4, seed=0, decoding=Jacobi(0.0, max_sweeps=1))
    assert [block.windows for block in report.blocks] == [(12,)] * 2
    assert report.residual > 1e-2 and report.round_trip_error > 1e-2
    assert len(str(report).splitlines()) == 4 and "24 tokens computed, 24 needed" in str(report)


def test_an_identity_takes_one_sweep():
    flow = TARFlow((24,), 2, **SMALL)
    with decoding.report() as report:
        x = flow.sample(4, seed=0, decoding=Jacobi(0.0))
    assert report.sweeps == 2 and report.round_trip_error == 0
    assert torch.equal(x, flow.sample(4, seed=0))


def test_report_gives_the_round_trip_error_and_does_not_change_the_result(flow):
    for decoder in (Sequential(), Jacobi(1e-2)):
        x, log_prob = flow.sample_and_log_prob(4, seed=0, decoding=decoder)
        with decoding.report() as outer, decoding.report() as inner:
            reported = flow.sample_and_log_prob(4, seed=0, decoding=decoder)
        assert torch.equal(reported[0], x) and torch.equal(reported[1], log_prob)
        noise = torch.randn(4, 12, 2, generator=torch.Generator().manual_seed(0))
        error = float((flow.transform_to_noise(x).detach() - noise).abs().max())
        assert outer.round_trip_error == inner.round_trip_error == pytest.approx(error, rel=1e-3, abs=1e-7)
        assert len(outer.blocks) == len(inner.blocks) == 2
    flow.sample(4, seed=0)
    assert len(outer.blocks) == 2  # closed


# --- who decides ---


def test_the_callers_decoder_goes_before_the_maps_own_and_does_not_stay(flow):
    maps = [module for module in flow.modules() if isinstance(module, TransformerAffineAutoregressive)]
    maps[0].decoding = GaussSeidelJacobi(3, 0.0)

    def windows(**arguments) -> list[int]:
        with decoding.report() as report:
            flow.sample(1, seed=0, **arguments)
        return [block.windows[0] for block in report.blocks]

    assert windows() == [1, 3]
    assert windows(decoding=Jacobi()) == [12, 12]
    assert windows() == [1, 3]
    with decoding.report() as report:
        flow.decode(torch.randn(1, 12, 2), decoding=GaussSeidelJacobi(7))
    assert [block.windows[0] for block in report.blocks] == [7, 7]
    assert windows() == [1, 3]

    def fail(*_: object) -> tuple[Tensor, Tensor]:
        raise RuntimeError("decoder")

    with pytest.raises(RuntimeError, match="decoder"):
        flow.sample(1, decoding=fail)
    assert windows() == [1, 3]


def test_threads_have_their_own_decoders_and_reports(flow):
    decoders = [Sequential(), Jacobi(0.0), GaussSeidelJacobi(5, 0.0), GaussSeidelJacobi(2, 1e-6)]
    expected = flow.sample(3, seed=0)
    barrier = threading.Barrier(len(decoders))

    def work(decoder: GaussSeidelJacobi) -> None:
        barrier.wait(timeout=60)
        for _ in range(5):
            with decoding.report() as report:
                x = flow.sample(3, seed=0, decoding=decoder)
            torch.testing.assert_close(x, expected, rtol=0, atol=1e-4)
            assert [block.windows[0] for block in report.blocks] == [decoder.block_size or 12] * 2

    with ThreadPoolExecutor(len(decoders)) as pool, decoding.report() as report:
        list(pool.map(work, decoders))
    assert not report.blocks


def test_decoding_carries_no_gradient_and_score_works_beside_it(flow):
    x, log_prob = flow.sample_and_log_prob(2, seed=0, decoding=Jacobi(1e-2))
    assert not x.requires_grad and not log_prob.requires_grad
    with torch.no_grad():
        assert flow.score(x).shape == x.shape


@pytest.mark.parametrize("decoder", [Jacobi(1e-3), GaussSeidelJacobi(4, 1e-3)])
def test_decodes_under_autocast(decoder, flow):
    with torch.autocast("cpu", torch.bfloat16):
        x, log_prob = flow.sample_and_log_prob(4, seed=0, decoding=decoder)
        torch.testing.assert_close(flow.log_prob(x), log_prob, rtol=0, atol=1e-4)
    assert x.dtype == log_prob.dtype == torch.float32
    assert (x - flow.sample(4, seed=0)).abs().max() < 0.2


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: GaussSeidelJacobi(0), "block_size"),
        (lambda: GaussSeidelJacobi(-3), "block_size"),
        (lambda: Jacobi(-1e-3), "tolerance"),
        (lambda: Jacobi(math.nan), "tolerance"),
        (lambda: Jacobi(math.inf), "tolerance"),
        (lambda: Jacobi(max_sweeps=0), "max_sweeps"),
        (lambda: Jacobi(initial_guess="ones"), "initial_guess"),
        (
            lambda: solve(Jacobi(initial_guess=torch.zeros(5, 2)), autoregressive(6, 2), torch.zeros(1, 6, 2)),
            "broadcast",
        ),
        (
            lambda: Flow(autoregressive(), StandardNormal((6, 2))).sample(1, decoding="jacobi"),
            "decoding must be an object",
        ),
        (
            lambda: Flow(autoregressive(), StandardNormal((6, 2))).sample(1, decoding=Jacobi),
            "decoding must be an object",
        ),
    ],
)
def test_bad_settings_are_errors(build, message):
    with pytest.raises(ValueError, match=message):
        build()
