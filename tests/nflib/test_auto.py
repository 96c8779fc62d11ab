"""The decoder that plans itself: what it decodes, what it measures and when, and plans as files."""

from __future__ import annotations

import copy
import json
import math
import os
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from nflows.transforms import CompositeTransform
from safetensors.torch import save_file
from torch import Tensor

from nflib import Flow, decoding
from nflib.decoding import Auto, DecodingPlan, GaussSeidelJacobi, Jacobi, Sequential
from nflib.decoding import auto as auto_module
from nflib.decoding.plans import PLAN_NAME, Measured, Setting, fingerprint
from nflib.distributions import StandardNormal
from nflib.flows import TARFlow
from nflib.transforms import Framewise, LinearGuidance, TransformerAffineAutoregressive
from tests.nflib.cases import (
    AUTOREGRESSIVE,
    FLOWS,
    NUM_CLASSES,
    SCOPED,
    SMALL,
    Case,
    autoregressive,
    labels,
    pairs_of_labels,
    solve,
)
from tests.perturb import perturb

MAPS = [
    case
    for case in AUTOREGRESSIVE + SCOPED
    if case.name
    in (
        "plain", "start-learned-one-token", "norm-adaptive", "class-embedding", "prefix-start-learned", "padding",
        "guided-linear-ramp", "guided-product-text",
    )
]  # fmt: skip


def framewise_flow() -> Flow:
    transforms = [Framewise(autoregressive(3), 3), autoregressive(6, num_classes=NUM_CLASSES)]
    return Flow(CompositeTransform(transforms), StandardNormal((6, 2)))


def guided_flow() -> Flow:
    flow = TARFlow((4, 3), 3, num_classes=NUM_CLASSES, **SMALL)
    return flow.guided(LinearGuidance(1.0, attention_temperature=1.2), torch.tensor(-1))


DECODED = [
    *(case for case in FLOWS if case.name in ("image-starflow", "tokens-classes", "embedded-context", "spline-on-top")),
    Case("framewise", framewise_flow, (6, 2), (6, 2), labels),
    Case("guided", guided_flow, (4, 3), (4, 3), labels, context_required=True),
]
every_flow = pytest.mark.parametrize("case", DECODED, ids=str)


class Measurements:
    """Stands in for the measuring: prescribes the choice, and counts what is asked for."""

    def __init__(self, window: int | None = None, draft: bool = False):
        self.choice = (window, draft)
        self.pause = 0.0
        self.asked: Counter[Setting] = Counter()

    def __call__(self, auto: Auto, setting: Setting, *call: Any) -> Measured:
        self.asked[setting] += 1
        time.sleep(self.pause)  # long enough for other threads to come and ask the same
        window, draft = self.choice
        return Measured(min(window or setting.num_tokens, setting.num_tokens), draft, 0.5, 1.0)


@pytest.fixture
def measure(monkeypatch):
    def install(*choice: Any) -> Measurements:
        measurements = Measurements(*choice)
        monkeypatch.setattr(Auto, "_measure", lambda *arguments: measurements(*arguments))
        return measurements

    return install


@pytest.fixture
def flow() -> TARFlow:
    return perturb(TARFlow((12,), 2, **SMALL))


def maps(flow: Flow) -> list[TransformerAffineAutoregressive]:
    return [module for module in flow.modules() if isinstance(module, TransformerAffineAutoregressive)]


def plans_equal(one: DecodingPlan, other: DecodingPlan) -> bool:
    return (
        one.measured == other.measured
        and one.initial_guesses.keys() == other.initial_guesses.keys()
        and all(
            torch.equal(start.matrix, other.initial_guesses[name].matrix)
            and torch.equal(start.bias, other.initial_guesses[name].bias)
            for name, start in one.initial_guesses.items()
        )
    )


# --- what it decodes ---


@pytest.mark.parametrize("case", MAPS, ids=str)
@pytest.mark.parametrize("batch", [1, 5])
def test_a_map_is_inverted_within_its_tolerance(case, batch):
    """Each equation to the tolerance; so u to the tolerance, magnified by the inverse of the equations' Jacobian."""
    transform = perturb(case.build()).double()
    z, context = case.inputs(batch, torch.float64), case.context(batch, torch.float64)
    expected, _ = solve(Sequential(), transform, z, context)
    with decoding.report() as report:
        u, log_scale = solve(Auto(tolerance=1e-6), transform, z, context)
    assert len(report.blocks) == 1 and report.residual <= 1e-6
    torch.testing.assert_close(log_scale, -transform(u, context)[1], rtol=0, atol=1e-9)
    for row in range(batch):
        row_context = None if context is None else context[row : row + 1]

        def missed(u: Tensor, row: int = row, row_context: Tensor | None = row_context) -> Tensor:
            shift, log_scale = transform.conditionals(u, transform.encode_context(row_context))
            return u - shift - z[row : row + 1] * log_scale.exp()

        jacobian = torch.autograd.functional.jacobian(missed, expected[row : row + 1]).reshape(z[0].numel(), -1)
        magnified = torch.linalg.inv(jacobian).abs().sum(-1).max()
        assert (u[row] - expected[row]).abs().max() <= 1.01e-6 * magnified + 1e-12


@every_flow
@pytest.mark.parametrize("batch", [1, 5])
def test_flows_sample_what_they_sample_token_by_token(case, batch):
    flow = perturb(case.build())
    context = case.context(batch)
    number = batch if context is None else 1
    expected = flow.sample(number, context, seed=0, decoding=Sequential())
    auto = Auto(tolerance=1e-5)
    for _ in range(2):  # measured, then known
        with decoding.report() as report:
            x, log_prob = flow.sample_and_log_prob(number, context, seed=0, decoding=auto)
        torch.testing.assert_close(x, expected, rtol=0, atol=2e-3)
        assert report.residual <= 1e-5 and len(report.blocks) == len(auto.plan.measured)
        rows = x if context is None else x[:, 0]
        torch.testing.assert_close(flow.log_prob(rows, context), log_prob.flatten(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("choice", [(1, False), (2, False), (5, False), (None, False), (None, True)], ids=str)
def test_whatever_is_chosen_finds_the_solution(choice, flow, measure):
    measurements = measure(*choice)
    plan = decoding.plan(flow, [4], num_samples=20)
    expected = flow.sample(4, seed=0, decoding=Sequential())
    for made in (None, plan):  # without first guesses, and with them
        with decoding.report() as report:
            x = flow.sample(4, seed=0, decoding=Auto(made, tolerance=1e-6))
        torch.testing.assert_close(x, expected, rtol=0, atol=1e-4)
        assert [block.windows[0] for block in report.blocks] == [choice[0] or 6] * 2
        assert all((block.warmup_sweeps > 0) == choice[1] for block in report.blocks)
    assert sum(measurements.asked.values()) == 4


def test_a_prefix_is_kept():
    transform = perturb(autoregressive(8, 2)).double()
    z = torch.randn(3, 8, 2, dtype=torch.float64)
    expected, _ = transform.inverse(z)
    auto = Auto(tolerance=1e-8)
    for length in (0, 1, 7, 8, 3):
        u, log_scale = solve(auto, transform, z, None, expected[:, :length])
        torch.testing.assert_close(u, expected, rtol=0, atol=1e-6)
        torch.testing.assert_close(log_scale, -transform(u)[1], rtol=0, atol=1e-9)
    with pytest.raises(ValueError, match="prefix of shape"):
        solve(Auto(), transform, z, None, expected[:1])
    torch.testing.assert_close(solve(auto, transform, z)[0], expected, rtol=0, atol=1e-6)  # no lock is left behind


def test_samples_that_overflow_stay_alone_even_while_measuring():
    transform = perturb(autoregressive(8, 2))
    z = torch.randn(4, 8, 2)
    z[2, 3] = math.inf
    u, log_scale = solve(Auto(), transform, z)
    torch.testing.assert_close(u[[0, 1, 3]], transform.inverse(z[[0, 1, 3]])[0], rtol=0, atol=1e-2)
    assert log_scale[2].isnan() and u[2].isnan().any()


# --- what it measures, and when ---


def test_batches_are_measured_once_up_to_the_next_power_of_two(flow, measure):
    measurements, auto = measure(), Auto()
    for number in (1, 2, 5, 8, 7, 3, 4, 1):
        flow.sample(number, decoding=auto)
    sizes = Counter(setting.batch_size for setting in measurements.asked)
    assert sizes == {1: 2, 2: 2, 8: 2, 4: 2} and set(measurements.asked.values()) == {1}
    assert {setting.num_tokens for setting in measurements.asked} == {6}
    assert measurements.asked.keys() == auto.plan.measured.keys()


def test_frames_stand_in_one_batch(measure):
    measurements = measure()
    perturb(framewise_flow()).sample(1, labels(3), decoding=Auto())
    assert {(setting.num_tokens, setting.batch_size) for setting in measurements.asked} == {(3, 8), (6, 4)}


def test_the_number_of_threads_is_part_of_the_setting(flow, measure):
    measurements, auto = measure(), Auto()
    flow.sample(1, decoding=auto)
    torch.set_num_threads(2)
    try:
        flow.sample(1, decoding=auto)
    finally:
        torch.set_num_threads(1)
    assert Counter(setting.device for setting in measurements.asked) == {"cpu, 1 threads": 2, "cpu, 2 threads": 2}


def test_one_auto_serves_flows_and_threads_at_once(flow, measure):
    measurements, auto = measure(3), Auto(tolerance=1e-7)
    measurements.pause = 0.02
    other = perturb(TARFlow((4, 3), 3, **SMALL), seed=3)
    expected = {id(one): one.sample(5, seed=0) for one in (flow, other)}
    barrier = threading.Barrier(4)

    def work(one: Flow) -> None:
        barrier.wait(timeout=60)
        for _ in range(3):
            x = one.sample(5, seed=0, decoding=auto)
            torch.testing.assert_close(x, expected[id(one)], rtol=0, atol=1e-4)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, [flow, other, flow, other]))
    assert len(measurements.asked) == len(auto.plan.measured) == 4 and set(measurements.asked.values()) == {1}


def test_measuring_in_threads_gives_the_same_samples(flow):
    auto = Auto(tolerance=1e-7)
    expected = flow.sample(2, seed=0)
    with ThreadPoolExecutor(2) as pool:
        samples = list(pool.map(lambda _: flow.sample(2, seed=0, decoding=auto), range(4)))
    for x in samples:
        torch.testing.assert_close(x, expected, rtol=0, atol=1e-4)
    assert len(auto.plan.measured) == 2


def test_the_fastest_candidate_is_chosen(monkeypatch):
    transform, z = perturb(autoregressive(12, 2)), torch.randn(2, 12, 2)
    tried: list[tuple[int | None, bool]] = []
    fastest: tuple[int, bool] = (0, False)

    def seconds(decoder: GaussSeidelJacobi, limit: float, *call: Any) -> float:
        choice = (decoder.block_size, decoder.warmup is not None)
        tried.append(choice)
        taken = 1.0 if choice == fastest else 2.5
        return taken if taken <= limit else math.inf

    monkeypatch.setattr(auto_module, "_seconds", seconds)
    for fastest in [(1, False), (12, False), (12, True), (8, False), (4, False), (2, False)]:
        auto = Auto()
        solve(auto, transform, z)
        (best,) = auto.plan.measured.values()
        assert (best.window, best.warmup) == fastest and best.seconds == 1.0
        assert best.sequential_seconds == (1.0 if fastest[0] == 1 else 2.5)
    assert set(tried) == {(1, False), (12, False), (12, True), (8, False), (4, False), (2, False)}


@pytest.mark.parametrize("num_tokens", [1, 2])
def test_short_sequences_have_few_candidates(num_tokens):
    transform = perturb(autoregressive(num_tokens, 3, start_token=True))
    z = torch.randn(2, num_tokens, 3)
    auto = Auto()
    u, _ = solve(auto, transform, z)
    torch.testing.assert_close(u, transform.inverse(z)[0], rtol=0, atol=1e-2)
    (best,) = auto.plan.measured.values()
    assert 1 <= best.window <= num_tokens and 0 < best.seconds <= best.sequential_seconds < math.inf
    assert "inf" not in str(auto.plan) and "nan" not in str(auto.plan)


def test_a_candidate_that_takes_too_long_is_given_up():
    transform, z = perturb(autoregressive(12, 2)), torch.randn(2, 12, 2)
    call = (transform, z, transform.encode_context(None), None)
    assert auto_module._seconds(Sequential(), -1.0, *call) == math.inf
    assert 0 < auto_module._seconds(Sequential(), math.inf, *call) < math.inf


def test_reports_hold_the_result_and_not_the_measuring(flow):
    with decoding.report() as report:
        flow.sample(2, decoding=Auto())
    assert len(report.blocks) == 2


def test_a_copied_map_shares_its_plan(flow):
    auto = Auto()
    for transform in maps(flow):
        transform.decoding = auto
    copied = copy.deepcopy(flow)
    flow.sample(2, seed=0)
    assert all(transform.decoding is auto for transform in maps(copied))
    settings = set(auto.plan.measured)
    copied.sample(2, seed=0)
    assert set(auto.plan.measured) == settings


# --- plans ---


def test_a_plan_has_a_start_for_each_small_map_and_every_batch_size(flow):
    plan = decoding.plan(flow, [1, 5], num_samples=40)
    names = {fingerprint(transform) for transform in maps(flow)}
    assert len(names) == 2 and plan.initial_guesses.keys() == names
    assert {(s.fingerprint, s.num_tokens, s.batch_size) for s in plan.measured} == {
        (name, 6, size) for name in names for size in (1, 8)
    }
    for start in plan.initial_guesses.values():
        assert start.matrix.shape == (12, 12) and start.bias.shape == (12,) and start.matrix.dtype == torch.float32


def test_a_plans_starts_are_those_of_the_seed(flow, measure):
    measure()
    one, again, other = (decoding.plan(flow, [2], num_samples=40, seed=seed) for seed in (3, 3, 4))
    assert plans_equal(one, again) and not plans_equal(one, other)


def test_starts_save_sweeps(measure):
    measure()
    flow = perturb(TARFlow((24,), 2, **SMALL), 0.15)
    plan = decoding.plan(flow, [8], num_samples=400)
    with decoding.report() as with_starts:
        flow.sample(8, seed=7, decoding=Auto(plan, tolerance=1e-3))
    with decoding.report() as without:
        flow.sample(8, seed=7, decoding=Jacobi(1e-3))
    assert with_starts.sweeps < without.sweeps


def test_large_maps_get_no_start(measure):
    measurements = measure()
    flow = perturb(TARFlow((1030,), 103, channels=8, head_dim=8, num_blocks=1, layers_per_block=1, expansion=1))
    plan = decoding.plan(flow, [2], num_samples=3)
    assert not plan.initial_guesses and len(plan.measured) == len(measurements.asked) == 1
    assert "latent" in str(plan) and "affine" not in str(plan)


def test_planning_uses_rows_of_the_context_in_turn(monkeypatch):
    flow = perturb(TARFlow((4, 3), 3, num_classes=NUM_CLASSES, **SMALL))
    seen = []
    embed = TransformerAffineAutoregressive.encode_context

    def spy(transform: TransformerAffineAutoregressive, context: Tensor) -> Any:
        seen.append(context.tolist())
        return embed(transform, context)

    monkeypatch.setattr(TransformerAffineAutoregressive, "encode_context", spy)
    plan = decoding.plan(flow, [3], torch.tensor([2, 0]), num_samples=5)
    assert [2, 0, 2, 0, 2] in seen and seen[-1] == [2, 0, 2] and len(plan.initial_guesses) == 2
    monkeypatch.undo()
    x = flow.sample(1, labels(3), seed=0, decoding=Auto(plan, tolerance=1e-6))
    torch.testing.assert_close(x, flow.sample(1, labels(3), seed=0), rtol=0, atol=1e-3)


def test_a_flow_that_needs_a_context_is_planned_with_one():
    flow = perturb(guided_flow())
    with pytest.raises(ValueError, match="context"):
        decoding.plan(flow, [2], num_samples=3)
    plan = decoding.plan(flow, [2], labels(4), num_samples=12)
    assert len(plan.measured) == len(plan.initial_guesses) == 2
    x = flow.sample(1, labels(2), seed=0, decoding=Auto(plan, tolerance=1e-6))
    torch.testing.assert_close(x, flow.sample(1, labels(2), seed=0), rtol=0, atol=1e-3)


def test_a_context_of_tokens_and_mask_is_taken():
    flow = perturb(TARFlow((4, 3), 3, context_shape=(None, 2), **SMALL))
    context = torch.randn(3, 5, 2), torch.arange(5) >= torch.tensor([[2], [5], [3]])
    assert len(decoding.plan(flow, [2], context, num_samples=12).initial_guesses) == 2


def test_a_flow_without_finite_samples_is_planned_all_the_same():
    flow = perturb(TARFlow((12,), 2, **SMALL))
    with torch.no_grad():
        maps(flow)[0].network.proj_out.bias.fill_(1e3)
    plan = decoding.plan(flow, [2], num_samples=4)
    assert all(start.matrix.isfinite().all() for start in plan.initial_guesses.values())


# --- plans as files ---


def test_a_plan_comes_back_from_its_folder(flow, tmp_path):
    plan = decoding.plan(flow, [1, 4], num_samples=20)
    path = plan.save(tmp_path / "deep" / "model")
    assert path == tmp_path / "deep" / "model" / PLAN_NAME and os.stat(path).st_mode & 0o777 == 0o644
    assert [entry.name for entry in path.parent.iterdir()] == [PLAN_NAME]
    loaded = DecodingPlan.load(str(path.parent))
    assert plans_equal(loaded, plan) and str(loaded) == str(plan)
    assert plans_equal(DecodingPlan.load(DecodingPlan().save(tmp_path).parent), DecodingPlan())


def test_a_plan_is_a_table(measure, flow):
    measure(2)
    plan = decoding.plan(flow, [3], num_samples=20)
    header, *rows = str(plan).splitlines()
    assert header.split()[:6] == ["map", "tokens", "batch", "window", "warm-up", "guess"] and len(rows) == 2
    for row, transform in zip(rows, reversed(maps(flow)), strict=True):
        cells = row.split()
        assert cells[:6] == [fingerprint(transform)[:8], "6", "4", "2", "–", "affine"]
        assert cells[6:9] == ["1000.0", "500.0", "2.00"]


def test_a_loaded_plan_measures_nothing_again(flow, tmp_path, monkeypatch):
    folder = flow.save_pretrained(tmp_path)
    decoding.plan(flow, [4], num_samples=20).save(folder)

    def fail(*_: object) -> Measured:
        raise AssertionError("measured again")

    monkeypatch.setattr(Auto, "_measure", fail)
    loaded = TARFlow.from_pretrained(folder)
    x = loaded.sample(4, seed=0, decoding=Auto(DecodingPlan.load(folder), tolerance=1e-6))
    torch.testing.assert_close(x, flow.sample(4, seed=0), rtol=0, atol=1e-4)
    loaded.sample(3, decoding=Auto(DecodingPlan.load(folder)))  # rounded up to the same batch
    with pytest.raises(AssertionError, match="measured again"):
        loaded.sample(5, decoding=Auto(DecodingPlan.load(folder)))


def test_a_fingerprint_names_the_weights(flow, tmp_path):
    names = [fingerprint(transform) for transform in maps(flow)]
    assert len(set(names)) == 2
    assert [fingerprint(transform) for transform in maps(copy.deepcopy(flow))] == names
    loaded = TARFlow.from_pretrained(flow.save_pretrained(tmp_path))
    assert [fingerprint(transform) for transform in maps(loaded)] == names
    assert not set(names) & {fingerprint(transform) for transform in maps(perturb(loaded, 1e-3))}
    smaller = autoregressive(5, 2, channels=8)
    assert fingerprint(smaller) != fingerprint(autoregressive(5, 2, channels=16))


def test_after_a_training_step_a_plan_is_not_used(flow, measure):
    measurements = measure()
    plan = decoding.plan(flow, [4], num_samples=20)
    assert sum(measurements.asked.values()) == 2
    flow.sample(4, decoding=Auto(plan))
    assert sum(measurements.asked.values()) == 2
    optimizer = torch.optim.SGD(flow.parameters(), lr=1e-3)
    flow.log_prob(torch.randn(8, 12)).mean().neg().backward()
    optimizer.step()
    with decoding.report() as report:
        x = flow.sample(4, seed=0, decoding=Auto(plan, tolerance=1e-6))
    assert sum(measurements.asked.values()) == 4 and len(plan.measured) == 4 and len(plan.initial_guesses) == 2
    with decoding.report() as without:
        flow.sample(4, seed=0, decoding=Jacobi(1e-6))
    assert report.blocks == without.blocks  # the starts of the old weights are not used either
    torch.testing.assert_close(x, flow.sample(4, seed=0), rtol=0, atol=1e-4)


# --- what is refused ---


def test_a_missing_plan(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(FileNotFoundError, match=PLAN_NAME) as error:
            DecodingPlan.load(folder)
        assert str(folder) in str(error.value) and str(error.value).endswith(".")


def _rows(**changes: Any) -> dict[str, str]:
    row = {"fingerprint": "a", "num_tokens": 1, "batch_size": 1, "device": "cpu"}
    row |= {"window": 1, "warmup": False, "seconds": 1.0, "sequential_seconds": 1.0}
    return {"measured": json.dumps([row | changes])}


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff" * 100, 0.5, 0.999, "none", "json", "number", "row", "bias"])
def test_a_damaged_plan(content, flow, measure, tmp_path):
    measure()
    path = decoding.plan(flow, [1], num_samples=5).save(tmp_path)
    matrix = {"a.matrix": torch.eye(2)}
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, float):
        path.write_bytes(path.read_bytes()[: int(content * path.stat().st_size)])
    else:
        metadata = {"none": None, "json": {"measured": "[{"}, "number": {"measured": "3"}, "row": {"measured": "[[]]"}}
        save_file(matrix, path, metadata=metadata.get(content, _rows()))
    with pytest.raises(ValueError, match="damaged or no plan") as error:
        DecodingPlan.load(tmp_path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "arguments", [([], 10), ([0], 10), ([4, -1], 10), ([4], 0)], ids=["none", "zero", "negative", "no-samples"]
)
def test_bad_requests_for_a_plan(arguments, flow):
    batch_sizes, num_samples = arguments
    with pytest.raises(ValueError, match="positive"):
        decoding.plan(flow, batch_sizes, num_samples=num_samples)


@pytest.mark.parametrize("tolerance", [-1.0, math.nan])
def test_a_bad_tolerance(tolerance):
    with pytest.raises(ValueError, match="tolerance"):
        solve(Auto(tolerance=tolerance), perturb(autoregressive(6, 2)), torch.randn(1, 6, 2))


def test_guided_and_unguided_maps_are_decoded_by_one_auto():
    """They have the same weights; whatever was measured for one, each gets its own solution."""
    transform = perturb(autoregressive(num_classes=NUM_CLASSES))
    flow = Flow(CompositeTransform([transform]), StandardNormal((6, 2)))
    guided = flow.guided(LinearGuidance(1.5), torch.tensor(-1))
    auto = Auto(decoding.plan(flow, [4], labels(4), num_samples=20), tolerance=1e-6)
    for one in (flow, guided, flow):
        x = one.sample(1, labels(4), seed=0, decoding=auto)
        torch.testing.assert_close(x, one.sample(1, labels(4), seed=0), rtol=0, atol=1e-4)
    z, context = torch.randn(4, 6, 2), pairs_of_labels(4)
    inner = guided._transform._transforms[0]
    torch.testing.assert_close(solve(auto, inner, z, context)[0], inner.inverse(z, context)[0], rtol=0, atol=1e-4)
