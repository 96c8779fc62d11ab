"""The engine on a GPU: densities, gradients, decoders, half precision and training give what the CPU gives."""

from __future__ import annotations

import copy
from collections import Counter
from pathlib import Path

import pytest
import torch
from nflows.transforms import LULinear
from torch import Tensor, nn

from nflib.decoding import Auto, DecodingPlan, GaussSeidelJacobi, Jacobi, Sequential
from nflib.decoding import plan as make_plan
from nflib.decoding.plans import device_name
from nflib.flows import Flow, TARFlow
from nflib.montecarlo import BoltzmannDensity, WeightedSamples, importance_sample, smc
from nflib.networks import use_attention_backend
from nflib.networks.backends import causal_attention
from nflib.networks.cache import causal_mask
from tests.nflib.cases import FLOWS, TRANSFORMS, Case, relative_error
from tests.nflib.training_cases import Record, configuration, normal
from tests.perturb import perturb

DEVICE = "cuda"
pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")]

DECODERS = {
    "sequential": Sequential(),
    "windows": GaussSeidelJacobi(3, 0.0),
    "jacobi": Jacobi(0.0),
    "jacobi-warmed-up": Jacobi(0.0, warmup=torch.bfloat16),
    "auto": Auto(tolerance=1e-6),
}


def close(on_device: Tensor, expected: Tensor, tolerance: float = 1e-4) -> None:
    """Equal but for the order of float32 sums, and on the device."""
    assert on_device.device.type == DEVICE
    torch.testing.assert_close(on_device.cpu(), expected, rtol=tolerance, atol=tolerance)


def pair(case: Case) -> tuple[nn.Module, nn.Module, Tensor | None, Tensor | None]:
    """The module of a case on the CPU and on the device, and a context for each."""
    module = perturb(case.build())
    context = case.context(4)
    return module, copy.deepcopy(module).to(DEVICE), context, None if context is None else context.to(DEVICE)


def gradients(flow: nn.Module, loss: Tensor) -> list[Tensor | None]:
    return list(torch.autograd.grad(loss, list(flow.parameters()), allow_unused=True))


def assert_same_gradients(ours: list[Tensor | None], expected: list[Tensor | None]) -> None:
    assert [part is None for part in ours] == [part is None for part in expected]
    for own, other in zip(ours, expected, strict=True):
        if own is not None and other is not None:
            close(own, other, 1e-3 * float(other.abs().max().clamp_min(1.0)))


# --- what a flow computes ---


@pytest.mark.parametrize("case", FLOWS, ids=str)
def test_densities_scores_and_their_gradients(case):
    flow, other, context, its_context = pair(case)
    x = case.inputs(4)
    expected, found = flow.log_prob(x, context), other.log_prob(x.to(DEVICE), its_context)
    close(found, expected)
    assert_same_gradients(gradients(other, found.sum()), gradients(flow, expected.sum()))
    close(other.score(x.to(DEVICE), its_context), flow.score(x, context), 1e-3)


@pytest.mark.parametrize("case", [case for case in FLOWS if "nflows" not in case.name], ids=str)
def test_samples_of_one_seed_and_their_gradients(case):
    flow, other, context, its_context = pair(case)
    expected = flow.rsample(2, context, generator=torch.Generator().manual_seed(3))
    found = other.rsample(2, its_context, generator=torch.Generator().manual_seed(3))
    close(found, expected, 1e-3)
    assert_same_gradients(gradients(other, found.sin().sum()), gradients(flow, expected.sin().sum()))


@pytest.mark.parametrize("case", [case for case in TRANSFORMS if hasattr(case.build(), "invert")], ids=str)
@pytest.mark.parametrize("name", DECODERS)
@torch.no_grad()
def test_every_decoder_inverts_every_map(case, name):
    transform, other, context, its_context = pair(case)
    noise = transform(case.inputs(4), context)[0]
    expected = transform.invert(noise, context, Sequential())
    found = other.invert(noise.to(DEVICE), its_context, DECODERS[name])
    close(found.tokens, expected.tokens, 1e-3)
    close(found.logabsdet, expected.logabsdet, 1e-3)


@pytest.mark.parametrize("name", DECODERS)
def test_samples_of_a_flow_and_their_densities(name):
    flow = perturb(TARFlow((3, 8, 8), 2, channels=32, num_blocks=3, head_dim=16))
    expected, its_density = flow.sample_and_log_prob(5, seed=0)
    flow.to(DEVICE)
    found, density = flow.sample_and_log_prob(5, seed=0, decoding=DECODERS[name])
    close(found, expected, 1e-3)
    close(density, its_density, 1e-3)


def test_a_seed_on_the_device_itself():
    flow = TARFlow((6,), 2, channels=16, head_dim=8).to(DEVICE).eval()
    first, again = (flow.sample(5, generator=torch.Generator(DEVICE).manual_seed(1)) for _ in range(2))
    assert first.device.type == DEVICE and torch.equal(first, again)


@pytest.mark.parametrize("conditional", ["affine", "spline"])
def test_in_float64_to_nine_digits(conditional):
    flow = TARFlow((3, 4, 4), 2, channels=32, num_blocks=3, head_dim=16, conditional=conditional)
    flow = perturb(flow.double())
    other = copy.deepcopy(flow).to(DEVICE)
    x = torch.randn(4, 3, 4, 4, dtype=torch.float64)
    close(other.log_prob(x.to(DEVICE)), flow.log_prob(x), 1e-9)
    close(other.score(x.to(DEVICE)), flow.score(x), 1e-9)
    expected = flow.rsample(4, seed=0)
    slopes = gradients(flow, expected.sin().sum())
    for decoder in (Sequential(), GaussSeidelJacobi(3, 0.0), Jacobi(0.0), Auto(tolerance=0.0)):
        found = other.rsample(4, seed=0, decoding=decoder)
        close(found, expected, 1e-9)
        for own, slope in zip(gradients(other, found.sin().sum()), slopes, strict=True):
            if slope is not None:
                close(own, slope, 1e-9 * float(slope.abs().max().clamp_min(1.0)))


def test_a_plan_holds_for_the_device_that_it_was_measured_on(tmp_path, monkeypatch):
    flow = perturb(TARFlow((12,), 2, channels=16, num_blocks=2, layers_per_block=1, head_dim=8))
    expected = flow.sample(4, seed=0)
    plan = DecodingPlan.load(make_plan(flow, [4], num_samples=20).save(tmp_path).parent)
    names = [device_name(torch.device(kind)) for kind in ("cpu", DEVICE)]
    assert Counter(setting.device for setting in plan.measured) == {names[0]: 2}
    flow.to(DEVICE)
    # The initial guesses are those of the weights, wherever they are.
    close(flow.sample(4, seed=0, decoding=Auto(plan, tolerance=1e-6)), expected, 1e-3)
    assert Counter(setting.device for setting in plan.measured) == {names[0]: 2, names[1]: 2}
    both = DecodingPlan.load(plan.save(tmp_path).parent)
    monkeypatch.setattr(Auto, "_measure", None)  # nothing is measured again
    close(flow.sample(4, seed=0, decoding=Auto(both, tolerance=1e-6)), expected, 1e-3)


# --- half precision ---


@torch.no_grad()
def test_autocast_to_bfloat16():
    flow = perturb(TARFlow((3, 8, 8), 2, channels=64, num_blocks=3)).to(DEVICE)
    x, exact = flow.sample_and_log_prob(16, seed=0)
    with torch.autocast(DEVICE, torch.bfloat16):
        rounded = flow.log_prob(x)
        again = flow.sample(16, seed=0)
    assert rounded.dtype == again.dtype == torch.float32
    assert 0 < relative_error(rounded, exact) < 0.02
    assert 0 < relative_error(again, x) < 0.1


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("new", [1, 3, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_attention_is_that_of_the_cpu_in_float64(groups, new, dtype):
    query, key, value = (
        torch.randn(2, heads, length, 16, dtype=torch.float64)
        for heads, length in ((4, new), (groups, 64), (groups, 64))
    )
    expected = causal_attention(query, key, value)
    own = [part.to(DEVICE, dtype) for part in (query, key, value)]
    for mask in (None, causal_mask(new, 64, own[0])):
        error = relative_error(causal_attention(*own, mask).cpu().double(), expected)
        assert error < (1e-4 if dtype == torch.float32 else 0.02)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("new", [1, 3, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_xformers_computes_the_same_attention(groups, new, dtype):
    pytest.importorskip("xformers")
    query, key, value = (
        torch.randn(2, heads, length, 32, device=DEVICE, dtype=dtype, requires_grad=True)
        for heads, length in ((4, new), (groups, 64), (groups, 64))
    )
    outputs = [causal_attention(query, key, value, backend=backend) for backend in ("torch", "xformers")]
    slack = 1e-3 if dtype == torch.float32 else 0.02
    assert relative_error(outputs[1].float(), outputs[0].float()) < slack
    if groups == 4:  # they have no gradient of shared keys
        ours, theirs = (torch.autograd.grad(out.float().sin().sum(), (query, key, value)) for out in outputs)
        for own, other in zip(ours, theirs, strict=True):
            assert relative_error(other.float(), own.float()) < 2 * slack


@torch.no_grad()
def test_a_flow_by_xformers():
    pytest.importorskip("xformers")
    flow = perturb(TARFlow((3, 8, 8), 2, channels=64, num_blocks=2, head_dim=32)).to(DEVICE)
    x, log_prob = flow.sample_and_log_prob(4, seed=0)
    use_attention_backend(flow, "xformers")
    torch.testing.assert_close(flow.log_prob(x), log_prob, rtol=1e-3, atol=1e-3)
    for decoder in (Sequential(), GaussSeidelJacobi(5, 0.0), Jacobi(0.0)):
        torch.testing.assert_close(flow.sample(4, seed=0, decoding=decoder), x, rtol=1e-3, atol=1e-3)


# --- training ---


def small_flow() -> TARFlow:
    torch.manual_seed(0)
    return TARFlow((6,), 2, channels=16, num_blocks=2, layers_per_block=1, head_dim=8, dropout=0.1)


@pytest.mark.parametrize(("precision", "tolerance"), [("32-true", 1e-3), ("bf16-mixed", 2e-2)])
def test_training_and_its_continuation(precision: str, tolerance: float, tmp_path: Path) -> None:
    pytest.importorskip("lightning_fabric")
    from nflib.training import fit

    data, validation = normal(64, 6) * 2 + 1, normal(16, 6, seed=1) * 2 + 1
    config = configuration(max_steps=20, accelerator=DEVICE, precision=precision)
    whole, broken = Record(), Record(fail_at=13)
    flow = small_flow()
    result = fit(flow, data, validation, config=config, output=tmp_path / "whole", callbacks=[whole])
    assert result.steps == 20 and whole.losses[-1] < whole.losses[0]
    assert {parameter.device.type for parameter in flow.parameters()} == {DEVICE}
    with pytest.raises(InterruptedError):
        fit(small_flow(), data, validation, config=config, output=tmp_path / "parts", callbacks=[broken])
    rest = Record()
    again = small_flow()
    fit(again, data, validation, config=config, output=tmp_path / "parts", callbacks=[rest])
    assert rest.steps[-1] == 20 and rest.steps[0] < 13
    torch.testing.assert_close(rest.losses, whole.losses[rest.steps[0] - 1 :], rtol=tolerance, atol=tolerance)
    assert again.training is flow.training is False
    close(again.log_prob(data.to(DEVICE)), flow.log_prob(data.to(DEVICE)).cpu(), 5 * tolerance)


def test_the_first_losses_are_those_of_the_cpu(tmp_path: Path) -> None:
    pytest.importorskip("lightning_fabric")
    from nflib.training import fit

    losses = {}
    for device in ("cpu", DEVICE):
        torch.manual_seed(0)
        record, flow = Record(), TARFlow((6,), 2, channels=16, num_blocks=2, layers_per_block=1, head_dim=8)
        config = configuration(max_steps=3, accelerator=device)
        fit(flow, normal(64, 6), config=config, output=tmp_path / f"on {device}", callbacks=[record])
        losses[device] = record.losses
    torch.testing.assert_close(losses[DEVICE], losses["cpu"], rtol=1e-3, atol=1e-3)


# --- what is given on the CPU ---


def test_contexts_go_where_the_flow_is() -> None:
    torch.manual_seed(0)
    flow = TARFlow((6,), 2, channels=16, num_blocks=1, layers_per_block=1, head_dim=8, num_classes=4)
    expected = flow.given(3).sample((5,), seed=0)
    given = flow.given(3)  # before the flow moves, too
    flow.to(DEVICE)
    for distribution in (given, flow.given(3)):
        close(distribution.sample((5,), seed=0), expected)
    close(flow.log_prob(expected.to(DEVICE), torch.full((5,), 3)), given.log_prob(expected.to(DEVICE)).cpu())


def test_draws_that_came_back_are_moved_on_the_device() -> None:
    torch.manual_seed(0)
    flow = TARFlow((6,), 2, channels=16, num_blocks=1, layers_per_block=1, head_dim=8).to(DEVICE)
    target = BoltzmannDensity(lambda x: 0.5 * x.square().sum(-1))
    draws = importance_sample(flow, target, 100, seed=0)
    moved = smc(flow, target, 100, draws=WeightedSamples.from_log_densities(*cpu(draws)), seed=1)
    assert len(moved) == 100 and moved.effective_sample_size > 10


def cpu(draws: WeightedSamples) -> list[Tensor]:
    return [part.cpu() for part in (draws.x, draws.log_prob, draws.log_target) if part is not None]


def test_a_torch_distribution_is_a_base_on_a_device():
    """It stays where it is: draws and densities come from there."""
    base = torch.distributions.Independent(torch.distributions.Normal(torch.zeros(6), torch.ones(6)), 1)
    flow = Flow(LULinear(6), base).eval().to(DEVICE)
    x, log_prob = flow.sample_and_log_prob(5, seed=0)
    assert x.device.type == log_prob.device.type == torch.device(DEVICE).type
    torch.testing.assert_close(flow.log_prob(x), log_prob)
