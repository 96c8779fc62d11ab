"""The released Prose layout, against numbers recorded from the reference implementation."""

import pytest
import torch
from safetensors.torch import save_file

from molecular import load_prose
from molecular.flows.convert_prose import prose_from_state_dict
from molecular.molecule.features import pad
from nflib import decoding
from tests.recorded import document, recorded

GOLDEN = recorded("prose")
SETTINGS = {"head_dim": GOLDEN.document["config"]["hd"], "orderings": GOLDEN.document["config"]["permutation_keys"]}
LAYOUT = document("released_checkpoint_layouts")["prose_up_to_8aa"]
SEQUENCES = GOLDEN.document["sequences"]


@pytest.fixture(scope="module")
def flow():
    return prose_from_state_dict(GOLDEN.weights, **SETTINGS)


@pytest.fixture(scope="module")
def contexts():
    """Of each sequence, from its recorded encodings and orderings."""

    def context(sequence):
        codes = [GOLDEN.inputs[f"{sequence}/encoding/{k}"] for k in ("atom_type", "aa_type", "aa_pos", "seq_len")]
        codes[3] = codes[3].expand(len(codes[0]))
        orderings = [GOLDEN.inputs[f"{sequence}/ordering/{name}"] for name in SETTINGS["orderings"]]
        return torch.stack([*codes, *orderings], dim=-1)

    return {sequence: context(sequence) for sequence in SEQUENCES}


@pytest.mark.parametrize("sequence", SEQUENCES)
@torch.no_grad()
def test_forward(flow, contexts, sequence):
    x, outputs = GOLDEN.inputs[f"{sequence}/x"], GOLDEN.outputs
    z, logabsdet = flow._transform(x, contexts[sequence].repeat(len(x), 1, 1))
    assert (z - x).abs().max() > 0.1
    torch.testing.assert_close(z, outputs[f"{sequence}/forward.z"], atol=1e-4, rtol=0)
    torch.testing.assert_close(logabsdet, outputs[f"{sequence}/forward.logdet"], atol=1e-3, rtol=0)


@pytest.mark.parametrize("sequence", SEQUENCES)
@torch.no_grad()
def test_inverse(flow, contexts, sequence):
    noise, outputs = GOLDEN.inputs[f"{sequence}/noise"], GOLDEN.outputs
    x, logabsdet = flow._transform.inverse(noise, contexts[sequence].expand(len(noise), -1, -1))
    torch.testing.assert_close(x, outputs[f"{sequence}/reverse.x"], atol=1e-4, rtol=0)
    torch.testing.assert_close(logabsdet, outputs[f"{sequence}/reverse.logdet"], atol=1e-3, rtol=0)


@torch.no_grad()
def test_padded_batch(flow, contexts):
    context = pad([contexts[sequence] for sequence in GOLDEN.document["padded_order"]])
    z, logabsdet = flow._transform(GOLDEN.inputs["padded/x"], context)
    torch.testing.assert_close(z, GOLDEN.outputs["padded/forward.z"], atol=1e-4, rtol=0)
    torch.testing.assert_close(logabsdet, GOLDEN.outputs["padded/forward.logdet"], atol=1e-3, rtol=0)


@torch.no_grad()
def test_a_padded_batch_has_the_densities_of_its_molecules(flow, contexts):
    x = [GOLDEN.inputs[f"{sequence}/x"][:1] for sequence in SEQUENCES]
    alone = [flow.log_prob(one, contexts[s][None]) for one, s in zip(x, SEQUENCES, strict=True)]
    batch = torch.nn.utils.rnn.pad_sequence([one[0] for one in x], batch_first=True)
    context = pad([contexts[sequence] for sequence in SEQUENCES])
    torch.testing.assert_close(flow.log_prob(batch, context), torch.cat(alone), atol=1e-4, rtol=1e-6)
    torch.testing.assert_close(flow.log_prob(batch.flip(0), context.flip(0)), torch.cat(alone[::-1]), atol=1e-4, rtol=0)
    double = flow.to(torch.float64)
    try:
        alone = [double.log_prob(one.double(), contexts[s][None]) for one, s in zip(x, SEQUENCES, strict=True)]
        torch.testing.assert_close(double.log_prob(batch.double(), context), torch.cat(alone), atol=1e-9, rtol=0)
    finally:
        flow.to(torch.float32)


@torch.no_grad()
def test_jacobi_equals_sequential(flow, contexts):
    context = pad([contexts[sequence] for sequence in SEQUENCES])
    x, log_prob = flow.sample_and_log_prob(1, context, seed=0)
    for decoder in (decoding.Jacobi(), decoding.GaussSeidelJacobi(16)):
        other, other_log_prob = flow.sample_and_log_prob(1, context, seed=0, decoding=decoder)
        torch.testing.assert_close(other, x, atol=1e-4, rtol=0)
        torch.testing.assert_close(other_log_prob, log_prob, atol=1e-3, rtol=0)
        torch.testing.assert_close(flow.log_prob(other[:, 0], context), other_log_prob[:, 0], atol=1e-3, rtol=0)


def test_files(contexts, tmp_path):
    # As part of a training module, the weights are its net's.
    torch.save({f"net.{key}": value for key, value in GOLDEN.weights.items()}, tmp_path / "released.pth")
    save_file(GOLDEN.weights, tmp_path / "released.safetensors")
    x, context = GOLDEN.inputs["AA/x"], contexts["AA"].expand(2, -1, -1)
    with torch.no_grad():
        flows = [load_prose(tmp_path / f"released.{kind}", **SETTINGS) for kind in ("pth", "safetensors")]
        assert torch.equal(*(flow.log_prob(x, context) for flow in flows))
        nanometres = load_prose(tmp_path / "released.pth", scale=0.35, **SETTINGS)
        expected = flows[0].log_prob(x, context) - x[0].numel() * torch.tensor(0.35).log()
        torch.testing.assert_close(nanometres.log_prob(0.35 * x, context), expected, atol=1e-3, rtol=1e-5)
    assert not flows[0].training


def test_the_released_layout_maps_key_for_key():
    layout = {name: torch.empty(shape, device="meta") for name, shape in LAYOUT["state_dict"].items()}
    flow = prose_from_state_dict(layout, head_dim=LAYOUT["config"]["head_dim"])
    assert sum(parameter.numel() for parameter in flow.parameters()) == LAYOUT["num_parameters"]
    assert flow.config["max_atoms"] == LAYOUT["config"]["max_num_tokens"]
    for name in ("channels", "num_blocks", "layers_per_block"):
        assert flow.config[name] == LAYOUT["config"][name]
    # A key without a place would have been refused: only the recorded buffers have no parameter of ours.
    assert len(list(flow.parameters())) == len(layout.keys() - set(LAYOUT["buffers"]))


def test_mistakes(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        load_prose(tmp_path / "nowhere.pth")
    with pytest.raises(ValueError, match="no Prose's"):
        prose_from_state_dict({})
    weights = GOLDEN.weights
    key = "blocks.1.attn_blocks.0.transition.transition.linear_out.weight"
    with pytest.raises(ValueError, match=f"lacks '{key}'"):
        prose_from_state_dict({name: value for name, value in weights.items() if name != key}, **SETTINGS)
    with pytest.raises(ValueError, match="should not have 'blocks.0.pair_proj.weight'"):
        prose_from_state_dict(weights | {"blocks.0.pair_proj.weight": torch.zeros(1)}, **SETTINGS)
    with pytest.raises(ValueError, match="shape"):
        prose_from_state_dict(weights | {key: torch.zeros(64, 8)}, **SETTINGS)
    with pytest.raises(ValueError, match="multiple of head_dim"):
        prose_from_state_dict(weights, head_dim=48)
