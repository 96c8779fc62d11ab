"""The released TARFlow layout, against numbers recorded from the reference implementation."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from nflib.decoding import Jacobi, Sequential
from nflib.transforms import LinearGuidance
from video.conversion.released import load_tarflow, tarflow_from_state_dict

GOLDEN = Path(__file__).parents[1] / "golden"
PATCH = json.loads((GOLDEN / "tarflow_cond.json").read_text())["config"]["patch_size"]


@pytest.fixture(scope="module")
def recorded():
    tensors = load_file(GOLDEN / "tarflow_cond.safetensors")
    groups = {"weights": {}, "inputs": {}, "outputs": {}}
    for key, value in tensors.items():
        group, name = key.split("/", 1)
        groups[group][name] = value
    return groups


@pytest.fixture(scope="module")
def flow(recorded):
    return tarflow_from_state_dict(recorded["weights"], PATCH)


@torch.no_grad()
def test_forward(flow, recorded):
    inputs, outputs = recorded["inputs"], recorded["outputs"]
    z, logabsdet = flow._transform(inputs["x"], inputs["y"])
    torch.testing.assert_close(z, outputs["forward.z"], atol=1e-4, rtol=0)
    # The reference averages over the dimensions of a token and over tokens; we sum.
    expected = outputs["forward.logdet_mean_per_dim"] * z[0].numel()
    torch.testing.assert_close(logabsdet, expected, atol=1e-3, rtol=0)


@torch.no_grad()
def test_dropped_labels(flow, recorded):
    z, _ = flow._transform(recorded["inputs"]["x"], recorded["inputs"]["y_dropped"])
    torch.testing.assert_close(z, recorded["outputs"]["forward_dropped.z"], atol=1e-4, rtol=0)


@torch.no_grad()
def test_sequential_inverse(flow, recorded):
    inputs, outputs, weights = recorded["inputs"], recorded["outputs"], recorded["weights"]
    # The reference multiplies its noise by the square root of a recorded variance before it decodes.
    x = flow.decode(inputs["noise"] * weights["var"].sqrt(), inputs["y"])
    torch.testing.assert_close(x, outputs["reverse"], atol=1e-4, rtol=0)


def test_files(recorded, tmp_path):
    torch.save(recorded["weights"], tmp_path / "released.pth")
    save_file(recorded["weights"], tmp_path / "released.safetensors")
    with torch.no_grad():
        x, y = recorded["inputs"]["x"], recorded["inputs"]["y"]
        densities = [
            load_tarflow(tmp_path / f"released.{kind}", PATCH).log_prob(x, y) for kind in ("pth", "safetensors")
        ]
    assert torch.equal(*densities)


def test_mistakes(recorded, tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        load_tarflow(tmp_path / "nowhere.pth", PATCH)
    (tmp_path / "damaged.pth").write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match="damaged"):
        load_tarflow(tmp_path / "damaged.pth", PATCH)
    with pytest.raises(ValueError, match="no TARFlow"):
        tarflow_from_state_dict({}, PATCH)
    with pytest.raises(ValueError, match="patch size"):
        tarflow_from_state_dict(recorded["weights"], 5)
    missing = dict(recorded["weights"])
    del missing["blocks.1.attn_blocks.0.mlp.main.0.weight"]
    with pytest.raises(ValueError, match="mlp.main.0.weight"):
        tarflow_from_state_dict(missing, PATCH)


@pytest.mark.parametrize("decoder", [Sequential(), Jacobi(1e-6)], ids=["sequential", "jacobi"])
@pytest.mark.parametrize(
    ("recorded_as", "guidance"),
    [
        ("reverse.guided_a", LinearGuidance(1.0, "a", attention_temperature=1.3)),
        ("reverse.guided_ab", LinearGuidance(1.5, "ab", ramp=15, attention_temperature=0.9)),
    ],
    ids=["log-scale", "both, annealed"],
)
def test_guided_inverse(flow, recorded, recorded_as, guidance, decoder):
    noise = recorded["inputs"]["noise"] * recorded["weights"]["var"].sqrt()
    guided = flow.guided(guidance, torch.tensor(-1))
    x = guided.decode(noise, recorded["inputs"]["y"], decoding=decoder)
    torch.testing.assert_close(x, recorded["outputs"][recorded_as], atol=1e-4, rtol=0)
