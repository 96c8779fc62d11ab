"""Every public layout, key for key, without memory for it; configurations in files; and what fits no layout."""

import json

import pytest
import torch

from tests.recorded import document, recorded
from video import STARFlow, load_starflow
from video.conversion.layouts import BUFFERS
from video.conversion.released import starflow_from_state_dict, tarflow_from_state_dict
from video.conversion.released_config import read_released_config, released_autoencoder, starflow_settings

LAYOUTS = {
    name: layout for name, layout in document("released_checkpoint_layouts").items() if "star" in name or "tar" in name
}
YAML = """
arguments:
- img_size: 640
- txt_size: 256
- vid_size: '81:16'
- channel_size: 48
- patch_size: 1
- channels: 3072
- top_block_channels: 4096
- blocks: 6
- layers_per_block: 2 2 2 2 2 24
- rope: 1
- sos: 1
- seq_order: L2R
- pt_seq_len: 32
- use_softplus: 1
- cond_top_only: 1
- use_final_norm: 1
- learnable_self_denoiser: 1
- conditional_denoiser: 1
- denoiser_window: 10
- temporal_causal: 2
- shallow_block_local: 1
- vae: Wan-AI/Wan2.2-TI2V-5B-Diffusers:0.6
- soft_clip: 4
"""


@pytest.mark.parametrize("name", LAYOUTS)
def test_public_layouts(name):
    layout = LAYOUTS[name]
    config = layout["config"]
    state = {key: torch.empty(shape, device="meta") for key, shape in layout["state_dict"].items()}
    if name.startswith("tarflow"):
        flow = tarflow_from_state_dict(state, config["patch_size"])
        unread = config["num_blocks"] * config["channels"]  # positions of the token that each block visits last
    else:
        flow = starflow_from_state_dict(config, state, num_frames=21)
        unread = 0
    assert sum(parameter.numel() for parameter in flow.parameters()) + unread == layout["num_parameters"]
    assert {parameter.device.type for parameter in flow.parameters()} == {"meta"}
    assert {buffer.device.type for buffer in flow.buffers()} == {"cpu"}
    assert sorted(key for key in state if key.endswith(BUFFERS)) == sorted(layout["buffers"])


def test_released_yaml(tmp_path):
    pytest.importorskip("yaml")
    path = tmp_path / "starflow-v.yaml"
    path.write_text(YAML)
    settings, *_ = starflow_settings(read_released_config(path), 2048)
    config = {**LAYOUTS["starflow-v_7B_t2v_caus_480p"]["config"], "head_dim": None}
    assert settings == starflow_settings(config, 2048, 21)[0]
    assert settings["event_shape"] == [21, 48, 40, 40]
    assert settings["denoiser"] == {"past": 9, "future": 1, "use_text": True}


def test_files(tmp_path):
    golden = recorded("starflow_t2i")
    (tmp_path / "config.json").write_text(json.dumps(golden.document["config"]))
    torch.save(golden.weights, tmp_path / "released.pth")
    flow = load_starflow(tmp_path / "config.json", tmp_path / "released.pth")
    assert isinstance(flow, STARFlow) and not flow.training
    # Half-precision weights are computed with in single precision.
    halves = {key: value.half() for key, value in golden.weights.items()}
    flow = starflow_from_state_dict(golden.document["config"], halves)
    assert {parameter.dtype for parameter in flow.parameters()} == {torch.float32}
    with torch.no_grad():
        assert flow.log_prob(golden.inputs["x"], golden.inputs["y"]).isfinite().all()


def test_wrong_state_dicts():
    golden = recorded("starflow_v")
    config, key = golden.document["config"], "blocks.2.attn_blocks.1.mlp.main.0.weight"
    missing = {name: value for name, value in golden.weights.items() if name != key}
    with pytest.raises(ValueError, match=f"lacks '{key}'; 1 keys are missing and 0 unknown"):
        starflow_from_state_dict(config, missing, num_frames=3)
    with pytest.raises(ValueError, match=r"should not have 'blocks\.9\.weight'; 0 keys are missing and 1 unknown"):
        starflow_from_state_dict(config, {**golden.weights, "blocks.9.weight": torch.zeros(3)}, num_frames=3)
    with pytest.raises(ValueError, match=rf"'{key}' has shape \(5, 7\), which does not fit \(384, 96\)"):
        starflow_from_state_dict(config, {**golden.weights, key: torch.zeros(5, 7)}, num_frames=3)
    with pytest.raises(ValueError, match=r"'blocks\.0\.sos_embed' has shape \(1, 1, 5\)"):
        starflow_from_state_dict(config, {**golden.weights, "blocks.0.sos_embed": torch.zeros(1, 1, 5)}, num_frames=3)
    with pytest.raises(ValueError, match=r"'blocks\.2\.proj_txt\.weight' has shape \(96, 24\), .* fit \(96, 25\)"):
        starflow_from_state_dict({**config, "txt_dim": 25}, golden.weights, num_frames=3)
    with pytest.raises(ValueError, match="unknown"):  # the weights of another kind
        starflow_from_state_dict(recorded("starflow_t2i").document["config"], golden.weights)
    with pytest.raises(ValueError, match="number of frames"):
        starflow_from_state_dict(config, golden.weights)


@pytest.mark.parametrize(
    "part", ["attn_blocks.0.attention.qkv.weight", "proj_in.weight", "proj_out.weight", "sos_embed"]
)
def test_tensors_that_cannot_be_rearranged(part):
    golden = recorded("starflow_variants", "gated")  # in patches, and with rotary pairs that are halves
    weights = {**golden.weights, f"blocks.1.{part}": torch.zeros(3, 3)}
    with pytest.raises(ValueError, match=rf"'blocks\.1\.{part}' has shape \(3, 3\)"):
        starflow_from_state_dict(golden.document["gated"], weights)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patch_size": None}, "lacks 'patch_size'"),
        ({"sos": 0}, "a learned start token"),
        ({"rope": 0}, "rotary positions"),
        ({"cond_top_only": 0}, "text to all blocks"),
        ({"shallow_block_local": 0}, "belong together"),
        ({"vae": "somebody/autoencoder"}, "'somebody/autoencoder' is unknown"),
        ({"use_pretrained_lm": "gpt"}, "gemma3_4b"),
        ({"norm_type": "batch_norm"}, "norm must be one of"),
    ],
    ids=str,
)
def test_wrong_configurations(change, message):
    golden = recorded("starflow_v")
    with pytest.raises(ValueError, match=message):
        starflow_from_state_dict({**golden.document["config"], **change}, golden.weights, num_frames=3)


def test_wrong_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="no configuration"):
        read_released_config(tmp_path / "nowhere.yaml")
    (tmp_path / "damaged.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        read_released_config(tmp_path / "damaged.json")
    (tmp_path / "list.json").write_text("[1, 2]")
    with pytest.raises(ValueError, match="holds no configuration"):
        read_released_config(tmp_path / "list.json")
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        load_starflow(recorded("starflow_v").document["config"], tmp_path / "nowhere.pth")


def test_swapped_arguments(tmp_path):
    golden = recorded("starflow_t2i")
    config, weights = tmp_path / "config.yaml", tmp_path / "released.pth"
    config.write_text(json.dumps(golden.document["config"]))
    torch.save(golden.weights, weights)
    with pytest.raises(ValueError, match="is a file of weights: pass the configuration"):
        load_starflow(weights, config)
    with pytest.raises(ValueError, match="is a configuration, not weights"):
        load_starflow(config, config)
    binary = tmp_path / "config.txt"
    binary.write_bytes(weights.read_bytes())
    with pytest.raises(ValueError, match="is no text"):
        load_starflow(binary, weights)


@pytest.mark.parametrize("name", ["starflow_t2i", "starflow_v"])
def test_half_precision(name):
    """Positions are not rounded; contexts and clips are cast as tokens are; densities stay near those in float32."""
    golden = recorded(name)
    flow = starflow_from_state_dict(golden.document["config"], golden.weights, num_frames=3)
    tables = [buffer.clone() for key, buffer in flow.named_buffers() if key.endswith("phase")]
    x, y = golden.inputs["x"], golden.inputs["y"]
    with torch.no_grad():
        exact = flow.log_prob(x, y)
        denoised = None if flow.denoiser is None else flow.denoiser(x, y)
        flow.bfloat16()
        assert tables and all(
            torch.equal(buffer, table)
            for buffer, table in zip((b for k, b in flow.named_buffers() if k.endswith("phase")), tables, strict=True)
        )
        near = flow.log_prob(x, y)
        assert near.dtype == torch.float32
        torch.testing.assert_close(near, exact, atol=0.02 * x[0].numel(), rtol=0)
        torch.testing.assert_close(flow.log_prob(x, y.bfloat16()), near)
        if denoised is not None:
            for clips, text in ((x, y), (x.bfloat16(), y), (x, y.bfloat16())):
                predicted = flow.denoiser(clips, text)
                assert predicted.dtype == clips.dtype
                torch.testing.assert_close(predicted.float(), denoised, atol=0.05, rtol=0.05)


@pytest.mark.parametrize(
    ("vae", "expected"),
    [
        ("Wan-AI/Wan2.2-TI2V-5B-Diffusers:0.6", ("Wan-AI/Wan2.2-TI2V-5B-Diffusers", 0.6)),
        ("stabilityai/sd-vae-ft-mse", ("stabilityai/sd-vae-ft-mse", 1.0)),
        ("none", (None, 1.0)),
        (None, (None, 1.0)),
    ],
)
def test_released_autoencoders(vae, expected):
    assert released_autoencoder({"vae": vae}) == expected


def test_scales_that_are_none():
    for scale in ("x", "0", "-1", "nan", "inf"):
        with pytest.raises(ValueError, match="is no positive number"):
            released_autoencoder({"vae": f"Wan2.2:{scale}"})
