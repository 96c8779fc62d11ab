"""STARFlow and STARFlow-V on released layouts, against numbers recorded from the reference implementation."""

import pytest
import torch

from nflib.transforms import ProductGuidance
from tests.recorded import recorded
from tests.video.released_flows import DECODERS, released, tokens
from video import rollout
from video.conversion import layouts
from video.conversion.released import starflow_from_state_dict

every_file = pytest.mark.parametrize("name", ["starflow_t2i", "starflow_v"])
every_decoder = pytest.mark.parametrize("decoder", DECODERS.values(), ids=DECODERS)


def close(actual, expected):
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=0)


def guided(name):
    golden = recorded(name)
    return released(name).guided(ProductGuidance(golden.document["guidance"]), golden.inputs["y_uncond"])


@every_file
@torch.no_grad()
def test_forward(name):
    flow, golden = released(name), recorded(name)
    z, logabsdet = flow._transform(golden.inputs["x"], golden.inputs["y"])
    close(z, tokens(flow, golden.outputs["forward.z"]))
    torch.testing.assert_close(logabsdet, golden.outputs["forward.logdet_sum"], atol=1e-3, rtol=0)


@every_file
@torch.no_grad()
def test_log_determinant_of_each_block(name):
    flow, golden = released(name), recorded(name)
    transform, u = flow._transform, tokens(flow, golden.inputs["x"])
    for index, block in enumerate(transform.shallow.transform._transforms):
        u, logabsdet = type(transform.shallow)(block, transform.frame_length)(u)
        expected = golden.outputs[f"forward.logdet_block{index}"]
        torch.testing.assert_close(logabsdet, expected, atol=1e-3, rtol=0)
    _, logabsdet = transform.deep(transform.order(u)[0], golden.inputs["y"])
    torch.testing.assert_close(logabsdet, golden.outputs["forward.logdet_block2"], atol=1e-3, rtol=0)


@every_file
@every_decoder
def test_inverse(name, decoder):
    flow, golden = released(name), recorded(name)
    x = flow.decode(tokens(flow, golden.inputs["noise"]), golden.inputs["y"], decoding=decoder)
    close(x, golden.outputs["reverse.sequential"])
    close(x, golden.outputs["reverse.jacobi"])
    x = flow.decode(tokens(flow, golden.outputs["forward.z"]), golden.inputs["y"], decoding=decoder)
    close(x, golden.outputs["reverse.sequential_of_z"])


@every_file
@every_decoder
def test_guided_inverse(name, decoder):
    golden = recorded(name)
    noise = tokens(released(name), golden.inputs["noise"])
    x = guided(name).decode(noise, golden.inputs["y"], decoding=decoder)
    close(x, golden.outputs["reverse.guided"])
    close(x, golden.outputs["reverse.jacobi_guided"])


@every_decoder
def test_image_to_video(decoder):
    golden = recorded("starflow_v")
    noise = tokens(released("starflow_v"), golden.inputs["noise"])
    given = golden.inputs["first_frame"]
    clips = rollout.decode(guided("starflow_v"), noise, golden.inputs["y"], given, decoding=decoder)
    close(clips, golden.outputs["reverse.i2v_guided"])
    assert torch.equal(clips[:, :1], given)


@every_decoder
def test_rolling_window(decoder):
    name = "starflow_v_long"
    golden = recorded(name)
    noise = tokens(released(name), golden.inputs["noise"])
    settings = {
        "window": golden.document["config"]["local_attn_window"],
        "overlap": golden.document["context_length"],
        "decoding": decoder,
    }
    close(rollout.decode(released(name), noise, golden.inputs["y"], **settings), golden.outputs["reverse.long"])
    close(rollout.decode(guided(name), noise, golden.inputs["y"], **settings), golden.outputs["reverse.long_guided"])


@torch.no_grad()
def test_denoiser():
    golden = recorded("starflow_v")
    predicted = released("starflow_v").denoiser(golden.inputs["x"], golden.inputs["y"])
    close(predicted, golden.outputs["denoiser"])


def test_a_checkpoint_survives_our_own_format(tmp_path):
    flow, golden = released("starflow_v"), recorded("starflow_v")
    again = type(flow).from_pretrained(flow.save_pretrained(tmp_path))
    x, y = golden.inputs["x"], golden.inputs["y"]
    with torch.no_grad():
        assert torch.equal(again.log_prob(x, y), flow.log_prob(x, y))
        assert torch.equal(again.denoiser(x, y), flow.denoiser(x, y))


# Variants that no released configuration uses, recorded from the reference with small random models: gated MLPs,
# RMS norms, grouped heads, norms of queries and keys, rotary halves, patches and other sizes; no text; a top block in
# the shape of a language model; clips in patches.
@pytest.mark.parametrize("name", ["gated", "text_free", "language_model", "video_patches"])
@torch.no_grad()
def test_variants(name, monkeypatch):
    sizes = {"head_dim": 16, "channels": 40, "num_heads": 2, "num_key_value_heads": 1, "expansion": 6}
    gemma = layouts.LANGUAGE_MODELS["gemma3_1b"][2]
    monkeypatch.setitem(layouts.LANGUAGE_MODELS, "tiny", (2, False, {**gemma, **sizes}))
    golden = recorded("starflow_variants", name)
    x, y = golden.inputs["x"], golden.inputs.get("y")
    flow = starflow_from_state_dict(golden.document[name], golden.weights, num_frames=3).resized(x.shape[1:])
    z, logabsdet = flow._transform(x, y)
    close(z, tokens(flow, golden.outputs["forward.z"]))
    torch.testing.assert_close(logabsdet, golden.outputs["forward.logdet_sum"], atol=1e-3, rtol=0)
    close(flow.decode(z, y), x)
