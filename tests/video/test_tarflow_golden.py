"""The released TARFlow layout, against numbers recorded from the reference implementation."""

import json

import pytest
import torch
from safetensors.torch import save_file

from nflib.decoding import Jacobi, Sequential
from nflib.transforms import LinearGuidance
from tests.recorded import recorded
from video.conversion.released import load_tarflow, tarflow_from_state_dict

GOLDEN = recorded("tarflow_cond")
PATCH = GOLDEN.document["config"]["patch_size"]


@pytest.fixture(scope="module")
def flow():
    return tarflow_from_state_dict(GOLDEN.weights, PATCH)


@torch.no_grad()
def test_forward(flow):
    inputs, outputs = GOLDEN.inputs, GOLDEN.outputs
    z, logabsdet = flow._transform(inputs["x"], inputs["y"])
    torch.testing.assert_close(z, outputs["forward.z"], atol=1e-4, rtol=0)
    # The reference averages over the dimensions of a token and over tokens; we sum.
    expected = outputs["forward.logdet_mean_per_dim"] * z[0].numel()
    torch.testing.assert_close(logabsdet, expected, atol=1e-3, rtol=0)


@torch.no_grad()
def test_dropped_labels(flow):
    z, _ = flow._transform(GOLDEN.inputs["x"], GOLDEN.inputs["y_dropped"])
    torch.testing.assert_close(z, GOLDEN.outputs["forward_dropped.z"], atol=1e-4, rtol=0)


@torch.no_grad()
def test_sequential_inverse(flow):
    inputs, outputs, weights = GOLDEN.inputs, GOLDEN.outputs, GOLDEN.weights
    # The reference multiplies its noise by the square root of a recorded variance before it decodes.
    x = flow.decode(inputs["noise"] * weights["var"].sqrt(), inputs["y"])
    torch.testing.assert_close(x, outputs["reverse"], atol=1e-4, rtol=0)


def test_files(tmp_path):
    torch.save(GOLDEN.weights, tmp_path / "released.pth")
    save_file(GOLDEN.weights, tmp_path / "released.safetensors")
    with torch.no_grad():
        x, y = GOLDEN.inputs["x"], GOLDEN.inputs["y"]
        densities = [
            load_tarflow(tmp_path / f"released.{kind}", PATCH).log_prob(x, y) for kind in ("pth", "safetensors")
        ]
    assert torch.equal(*densities)


def test_mistakes(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        load_tarflow(tmp_path / "nowhere.pth", PATCH)
    (tmp_path / "damaged.pth").write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match="damaged"):
        load_tarflow(tmp_path / "damaged.pth", PATCH)
    with pytest.raises(ValueError, match="no TARFlow"):
        tarflow_from_state_dict({}, PATCH)
    with pytest.raises(ValueError, match="patch size"):
        tarflow_from_state_dict(GOLDEN.weights, 5)
    missing = dict(GOLDEN.weights)
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
def test_guided_inverse(flow, recorded_as, guidance, decoder):
    noise = GOLDEN.inputs["noise"] * GOLDEN.weights["var"].sqrt()
    guided = flow.guided(guidance, torch.tensor(-1))
    x = guided.decode(noise, GOLDEN.inputs["y"], decoding=decoder)
    torch.testing.assert_close(x, GOLDEN.outputs[recorded_as], atol=1e-4, rtol=0)


@torch.no_grad()
def test_variances_of_the_prior_count(flow):
    """Samples and densities are those of the prior in the file."""
    inputs, variance = GOLDEN.inputs, GOLDEN.weights["var"]
    z, logabsdet = flow._transform(inputs["x"], inputs["y"])
    prior = torch.distributions.Normal(0.0, variance.sqrt())
    expected = prior.log_prob(z).sum((1, 2)) + logabsdet
    torch.testing.assert_close(flow.log_prob(inputs["x"], inputs["y"]), expected)
    x, log_prob = flow.sample_and_log_prob(2000, inputs["y"][:1], seed=0)
    z, _ = flow._transform(x[0, :500], inputs["y"][:1].expand(500, *inputs["y"].shape[1:]))
    torch.testing.assert_close((z.square() / variance).mean(), torch.tensor(1.0), atol=0.02, rtol=0)
    torch.testing.assert_close(flow.log_prob(x[0, :3], inputs["y"][:1].expand(3)), log_prob[0, :3], atol=1e-2, rtol=0)
    with pytest.raises(ValueError, match="this base is a ScaledNormal"):  # whose variances a scale would leave out
        flow.with_scaled_noise(1.1)
    ones = tarflow_from_state_dict({**GOLDEN.weights, "var": torch.ones_like(variance)}, PATCH)
    assert "_distribution.deviation" not in ones.state_dict()
    for bad in (variance[:2], -variance, variance * float("nan")):
        with pytest.raises(ValueError, match="its 'var' .* holds no variances"):
            tarflow_from_state_dict({**GOLDEN.weights, "var": bad}, PATCH)


def test_volume_preserving():
    weights = dict(GOLDEN.weights)
    for key in weights:
        if ".proj_out." in key:
            weights[key] = weights[key][: len(weights[key]) // 2]
    with pytest.raises(ValueError, match=r"is volume-preserving \(nvp off\)"):
        tarflow_from_state_dict(weights, PATCH)


@pytest.mark.parametrize("name", ["wrapped.pth", "nested.pth", "prefixed.pth", "shards.safetensors.index.json"])
@torch.no_grad()
def test_files_as_people_keep_them(flow, tmp_path, name):
    weights = GOLDEN.weights
    prefixed = {f"module.{key}": value for key, value in weights.items()}
    torch.save({"model": weights, "epoch": 3}, tmp_path / "wrapped.pth")
    torch.save({"state_dict": {"model": prefixed}, "lr": 0.1}, tmp_path / "nested.pth")
    torch.save(prefixed, tmp_path / "prefixed.pth")
    places = {key: f"part-{index % 2}.safetensors" for index, key in enumerate(weights)}
    for part in sorted({*places.values()}):
        save_file({key: weights[key] for key in weights if places[key] == part}, tmp_path / part)
    (tmp_path / "shards.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    x, y = GOLDEN.inputs["x"], GOLDEN.inputs["y"]
    assert torch.equal(load_tarflow(tmp_path / name, PATCH).log_prob(x, y), flow.log_prob(x, y))


def test_damaged_indices(tmp_path):
    path = tmp_path / "model.safetensors.index.json"
    for text in ("{", "[]", "{}", '{"weight_map": 3}'):
        path.write_text(text)
        with pytest.raises(ValueError, match="is no index of shards"):
            load_tarflow(path, PATCH)
    path.write_text(json.dumps({"weight_map": {"a": "part.safetensors"}}))
    with pytest.raises(FileNotFoundError, match=r"part\.safetensors"):
        load_tarflow(path, PATCH)
    save_file({"b": torch.zeros(1)}, tmp_path / "part.safetensors")
    with pytest.raises(ValueError, match="lack 1 tensors, such as 'a'"):
        load_tarflow(path, PATCH)
    path.write_text(json.dumps({"weight_map": {"a": "../part.safetensors"}}))
    with pytest.raises(ValueError, match="not beside it"):
        load_tarflow(path, PATCH)
    torch.save({"model": 3}, tmp_path / "none.pth")
    with pytest.raises(ValueError, match="holds no state dict"):
        load_tarflow(tmp_path / "none.pth", PATCH)
