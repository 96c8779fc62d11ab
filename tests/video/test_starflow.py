"""Our own STARFlows: exact inverses and densities, causality over frames, other sizes, saving, and mistakes."""

import math

import pytest
import torch
from torch.func import jacrev

from nflib.decoding import Jacobi
from nflib.transforms import ProductGuidance
from tests.perturb import perturb
from tests.video.tiny import small_image_flow, small_video_flow
from video import STARFlow, STARFlowV

VARIANTS = {
    "plain": {},
    "gated": {
        "layer": {
            "head_dim": 20,
            "norm": "rms_norm",
            "mlp": "gated",
            "query_key_norm": True,
            "post_norm": True,
            "bias": False,
            "num_key_value_heads": 1,
            "final_norm": False,
        },
        "top": {"channels": 60, "num_key_value_heads": 3},
        "patch_size": 2,
        "reverse_first": False,
        "soft_clip": 0.0,
        "scale": "exponential",
    },
    "line": {"top": {"positions": "line", "head_dim": 10}, "span": 2.5},
    "no text": {"text_length": 0, "text_channels": 0},
}
every_variant = pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS)
every_family = pytest.mark.parametrize("make", [small_image_flow, small_video_flow], ids=["image", "video"])


def draw(flow, batch=3):
    shape, words = flow.config["event_shape"], flow.config["text_length"]
    dtype = next(flow.parameters()).dtype
    context = torch.randn(batch, words, flow.config["text_channels"], dtype=dtype) if words else None
    return torch.randn(batch, *shape, dtype=dtype), context


@every_family
@every_variant
def test_round_trip_and_density(make, settings):
    flow = make(**settings).double()
    x, context = draw(flow)
    with torch.no_grad():
        z, logabsdet = flow._transform(x, context)
        again, inverse_logabsdet = flow._transform.inverse(z, context)
        torch.testing.assert_close(again, x, atol=1e-9, rtol=0)
        torch.testing.assert_close(inverse_logabsdet, -logabsdet, atol=1e-9, rtol=0)
        base = -0.5 * (z.square().flatten(1).sum(-1) + z[0].numel() * math.log(2 * math.pi))
        torch.testing.assert_close(flow.log_prob(x, context), base + logabsdet)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@every_family
@every_variant
def test_log_determinant_is_that_of_the_jacobian(make, settings):
    flow = make(**settings).double()
    x, context = draw(flow, 1)
    jacobian = jacrev(lambda x: flow._transform(x, context)[0].flatten())(x).reshape(x.numel(), -1)
    with torch.no_grad():
        _, logabsdet = flow._transform(x, context)
    torch.testing.assert_close(logabsdet[0], jacobian.slogdet().logabsdet, atol=1e-8, rtol=0)


@every_family
@every_variant
def test_saving(make, settings, tmp_path):
    flow = make(**settings)
    again = type(flow).from_pretrained(flow.save_pretrained(tmp_path))
    x, context = draw(flow)
    with torch.no_grad():
        assert torch.equal(again.log_prob(x, context), flow.log_prob(x, context))


@every_family
def test_samples(make):
    flow = make()
    _, context = draw(flow, 2)
    x, log_prob = flow.sample_and_log_prob(3, context, seed=0)
    assert x.shape == (2, 3, *flow.config["event_shape"])
    with torch.no_grad():
        expected = flow.log_prob(x.flatten(0, 1), context.repeat_interleave(3, 0)).reshape(2, 3)
    torch.testing.assert_close(log_prob, expected, atol=1e-4, rtol=0)
    x, log_prob = flow.sample_and_log_prob(3, context, seed=0, decoding=Jacobi(0.1))
    with torch.no_grad():
        expected = flow.log_prob(x.flatten(0, 1), context.repeat_interleave(3, 0)).reshape(2, 3)
    torch.testing.assert_close(log_prob, expected, atol=1e-4, rtol=0)


@every_family
def test_guidance_is_a_flow_with_its_own_density(make):
    flow = make().guided(ProductGuidance(1.5), torch.zeros(3, 10))
    context = torch.randn(2, 3, 10)
    x, log_prob = flow.sample_and_log_prob(2, context, seed=0)
    with torch.no_grad():
        expected = flow.log_prob(x.flatten(0, 1), context.repeat_interleave(2, 0)).reshape(2, 2)
    torch.testing.assert_close(log_prob, expected, atol=1e-4, rtol=0)


@torch.no_grad()
def test_the_text_reaches_the_deep_map_alone():
    flow = small_image_flow()
    x, context = draw(flow)
    (u, _), deep = flow._transform.encode(x), flow._transform.deep
    assert not torch.equal(deep(u, context)[0], deep(u, context + 1)[0])
    assert not any(block.network.uses_context for block in _blocks(flow._transform.shallow))


def _blocks(transform):
    return [module for module in transform.modules() if hasattr(module, "network")]


@every_variant
@torch.no_grad()
def test_clips_are_causal_over_frames(settings):
    """A clip's first frames have the noise, and so the density, that they have by themselves."""
    flow = small_video_flow(**settings).double()
    x, context = draw(flow)
    length = flow._transform.frame_length
    whole, _ = flow._transform(x, context)
    for frames in (1, 2):
        part, _ = flow._transform(x[:, :frames], context)
        torch.testing.assert_close(part, whole[:, : frames * length], atol=1e-9, rtol=0)
    assert flow.log_prob(x[:, :1], context).shape == (3,)
    by_frames = flow.log_prob_of_frames(x, context)
    for frames in range(1, x.shape[1] + 1):
        torch.testing.assert_close(by_frames[:, :frames].sum(1), flow.log_prob(x[:, :frames], context))


@every_family
@torch.no_grad()
def test_other_sizes_on_the_same_weights(make):
    flow = make()
    *leading, height, width = flow.config["event_shape"]
    if len(leading) == 2:
        leading[0] += 2
    shape = [*leading, height * 2, width]
    other = flow.resized(shape)
    assert all(a is b for a, b in zip(flow.parameters(), other.parameters(), strict=True))
    assert all(not tensor.is_meta for tensor in other.buffers())
    assert not other.training
    x, context = torch.randn(2, *shape), torch.randn(2, 3, 10)
    z, _ = other._transform(x, context)
    torch.testing.assert_close(other.decode(z, context), x, atol=1e-4, rtol=0)
    back = other.resized(flow.config["event_shape"])
    x = torch.randn(2, *flow.config["event_shape"])
    assert torch.equal(back.log_prob(x, context), flow.log_prob(x, context))
    assert (
        other.double().resized(shape).log_prob(torch.randn(2, *shape).double(), context.double()).dtype == torch.double
    )


def test_a_new_flow_is_the_identity():
    flow = STARFlow((2, 4, 4), channels=40, layers_per_block=[1, 1], layer={"head_dim": 20})
    x = torch.randn(2, 2, 4, 4)
    expected = -0.5 * (x.square().flatten(1).sum(-1) + 32 * math.log(2 * math.pi))
    with torch.no_grad():
        torch.testing.assert_close(flow.log_prob(x), expected)


def test_training_reaches_every_parameter():
    flow = perturb(STARFlowV((2, 2, 2, 2), channels=40, layers_per_block=[1, 1], layer={"head_dim": 20}))
    flow.log_prob(torch.randn(2, 2, 2, 2, 2)).sum().backward()
    assert all(parameter.grad is not None for parameter in flow.parameters())


def test_densities_of_frames_take_what_densities_take():
    flow = STARFlowV((2, 1, 2, 2), channels=32, layers_per_block=[1, 1], layer={"head_dim": 32}).eval()
    levels = torch.arange(8).reshape(1, 2, 1, 2, 2)
    torch.testing.assert_close(flow.log_prob_of_frames(levels).sum(1), flow.log_prob(levels))
    with pytest.raises(ValueError, match="takes no context"):
        flow.log_prob_of_frames(levels, torch.zeros(1, 3, 10))
    with pytest.raises(ValueError, match="float64 and the flow is float32"):
        flow.log_prob_of_frames(levels.double())
    assert flow.log_prob(levels[:0]).shape == (0,) and flow.sample(0).shape == (0, 2, 1, 2, 2)


def test_wrong_inputs():
    image, video = small_image_flow(), small_video_flow()
    text = torch.zeros(1, 3, 10)
    with pytest.raises(ValueError, match=r"text of shape \(batch, 3, 10\), got \(1, 3, 11\)"):
        image.log_prob(torch.zeros(1, 2, 4, 4), torch.zeros(1, 3, 11))
    with pytest.raises(ValueError, match=r"text of shape \(batch, 3, 10\), got \(1, 2, 10\)"):
        video.log_prob(torch.zeros(1, 3, 2, 2, 4), torch.zeros(1, 2, 10))
    with pytest.raises(ValueError, match="1 inputs need a context of as many rows, got 2"):
        video.log_prob_of_frames(torch.zeros(1, 3, 2, 2, 4), text.expand(2, -1, -1))
    with pytest.raises(ValueError, match="context"):
        image.log_prob(torch.zeros(1, 2, 4, 4))
    with pytest.raises(ValueError, match="expected inputs of shape"):
        image.log_prob(torch.zeros(1, 2, 4, 5), text)
    with pytest.raises(ValueError, match="expected clips of shape"):
        video.log_prob(torch.zeros(1, 3, 2, 2, 5), text)
    with pytest.raises(ValueError, match="4 frames are more than the 3"):
        video.log_prob(torch.zeros(1, 4, 2, 2, 4), text)
    with pytest.raises(ValueError, match="4 frames are more than the 3"):
        video.decode(torch.zeros(1, 32, 2), text)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layer": {"heads": 3}}, "no setting 'heads'"),
        ({"layer": {"norm": "batch"}}, "norm must be one of"),
        ({"layer": {"head_dim": 16}}, "head_dim must be a multiple of 4, and at least 20"),
        ({"layer": {"head_dim": 20, "num_key_value_heads": 3}}, "cannot share"),
        ({"channels": 30}, "multiple of head_dim"),
        ({"top": {"width": 3}}, "no setting 'width'"),
        ({"layers_per_block": []}, "at least 1 layer"),
        ({"layers_per_block": [1, 0]}, "at least 1 layer"),
        ({"scale": "sigmoid"}, "scale must be one of"),
        ({"text_channels": 0}, "text of 3 tokens of 0 channels"),
        ({"project_text": False}, "without a projection"),
        ({"patch_size": 3}, "patch_size 3 must divide"),
        ({"event_shape": (4, 4)}, "event_shape"),
    ],
    ids=str,
)
def test_wrong_settings(settings, message):
    for make in (small_image_flow, small_video_flow):
        with pytest.raises(ValueError, match=message):
            make(**settings)


@every_variant
@torch.no_grad()
def test_an_image_flow_is_a_clip_flow_of_one_frame(settings):
    flow = small_image_flow(**settings).double()
    clips = flow.as_clips()
    assert type(clips) is STARFlowV and clips.event_shape == (1, 2, 4, 4)
    assert [id(part) for part in clips.parameters()] == [id(part) for part in flow.parameters()]
    x, context = draw(flow)
    torch.testing.assert_close(clips.log_prob(x.unsqueeze(1), context), flow.log_prob(x, context))
    torch.testing.assert_close(flow.log_prob_of_frames(x, context).squeeze(1), flow.log_prob(x, context))
    again = clips.decode(flow.transform_to_noise(x, context), context)
    torch.testing.assert_close(again.squeeze(1), x, atol=1e-4, rtol=0)
