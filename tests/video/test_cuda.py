"""STARFlows on a GPU: the reference's golden numbers, every decoder, windows of clips, and weights in bfloat16."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from nflib import Flow
from nflib.transforms import ProductGuidance
from tests.nflib.cases import relative_error
from tests.perturb import perturb
from tests.recorded import recorded
from tests.video.released_flows import DECODERS, released, tokens
from video import STARFlowV, rollout

DEVICE = "cuda"
pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")]


def close(on_device: Tensor, expected: Tensor) -> None:
    assert on_device.device.type == DEVICE
    torch.testing.assert_close(on_device.cpu(), expected, rtol=1e-3, atol=1e-3)


def small_clips() -> tuple[Flow, Flow, Tensor]:
    """A flow of clips on the CPU and on the device, and texts."""
    flow = perturb(STARFlowV((3, 2, 4, 4), 1, 40, [1, 2], text_length=5, text_channels=6, layer={"head_dim": 20}))
    return flow, copy.deepcopy(flow).to(DEVICE), torch.randn(2, 5, 6)


@pytest.mark.parametrize("name", ["starflow_t2i", "starflow_v"])
@torch.no_grad()
def test_golden_numbers(name):
    golden = recorded(name)
    flow = copy.deepcopy(released(name)).to(DEVICE)
    x, y = golden.inputs["x"], golden.inputs["y"].to(DEVICE)
    z, logabsdet = flow._transform(x.to(DEVICE), y)
    close(z, tokens(released(name), golden.outputs["forward.z"]))
    close(logabsdet, golden.outputs["forward.logdet_sum"])
    close(flow.decode(z, y), x)


@pytest.mark.parametrize("name", DECODERS)
@torch.no_grad()
def test_samples_of_one_seed(name):
    flow, other, text = small_clips()
    expected, log_prob = flow.sample_and_log_prob(1, text, seed=0)
    found, its_log_prob = other.sample_and_log_prob(1, text.to(DEVICE), seed=0, decoding=DECODERS[name])
    close(found, expected)
    close(its_log_prob, log_prob)


@torch.no_grad()
def test_guided_clips_beyond_the_window():
    flow, other, text = small_clips()
    given = torch.randn(1, 1, 2, 4, 4)
    clips = []
    for own, device in ((flow, "cpu"), (other, DEVICE)):
        guided = own.guided(ProductGuidance(0.5), torch.zeros(5, 6, device=device))
        clips.append(rollout.generate(guided, 5, text.to(device), given.to(device), seed=0))
    close(clips[1], clips[0])


@torch.no_grad()
def test_weights_in_bfloat16():
    flow, other, text = small_clips()
    x, exact = flow.sample_and_log_prob(4, text, seed=0)
    other.bfloat16()
    rounded = other.log_prob(x.flatten(0, 1).to(DEVICE), text.repeat_interleave(4, 0).to(DEVICE, torch.bfloat16))
    assert rounded.dtype == torch.float32
    assert relative_error(rounded.cpu(), exact.flatten()) < 0.05
    assert other.sample(2, text.to(DEVICE, torch.bfloat16), seed=0).isfinite().all()
