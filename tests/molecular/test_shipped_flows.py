"""Which shipped flow serves a peptide, by a tiny flow in a shipped folder of the test's own."""

import json
import math
import shutil
from types import SimpleNamespace

import pytest
import torch

from molecular import Peptide
from molecular.commands import main
from molecular.flows import InternalProse
from molecular.flows.averaged import AveragedProse
from molecular.flows.mixture import GivenMixture
from molecular.sampling import load_flow, load_proposal
from molecular.sampling.shipped import COVERAGE, shipped_flows
from nflib.montecarlo import WeightedSamples
from tests.molecular.tiny_flow import make_tiny_flow
from tests.perturb import perturb

TWENTY = "ACDEFGHIKLMNPQRSTVWY"


def named(sequence):
    """A molecule as far as `shipped_flows` looks at it."""
    is_peptide = sequence != "dipeptides"
    return SimpleNamespace(name=sequence, topology=SimpleNamespace(sequence=sequence if is_peptide else None))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A flow of dipeptides, one that is for GA alone, and a folder without a flow."""
    folder = tmp_path_factory.mktemp("shipped")
    flow = make_tiny_flow(Peptide("GG"), max_atoms=20)
    for name in ("dipeptides", "GA"):
        flow.save_pretrained(folder / name)
    (folder / "dipeptides" / COVERAGE).write_text(json.dumps({"lengths": [2], "residues": TWENTY}))
    (folder / "later").mkdir()
    return folder


@pytest.fixture
def shipped(folder, monkeypatch):
    monkeypatch.setattr("molecular.sampling.proposals.SHIPPED", folder)
    return folder


def test_a_peptide_gets_its_own_flow_or_one_that_covers_it(folder, caplog):
    caplog.set_level("INFO")
    assert shipped_flows(named("GA"), folder) == [folder / "GA"]
    assert not caplog.messages
    assert shipped_flows(named("NL"), folder) == [folder / "dipeptides"]
    assert "No flow is shipped for NL alone; taking dipeptides" in caplog.text


@pytest.mark.parametrize("sequence", ["AAA", "Ace-A-Nme", "Ace-AA-Nme", "dipeptides"])
def test_peptides_that_nothing_covers(folder, sequence):
    with pytest.raises((FileNotFoundError, ValueError)) as error:
        shipped_flows(named(sequence), folder)
    if sequence != "dipeptides":
        words = (
            f"no flow is shipped for {sequence} (shipped: GA (this peptide alone), dipeptides (uncapped peptides of 2"
        )
        assert words in str(error.value)
        assert "later" not in str(error.value)


@pytest.fixture
def two(folder, tmp_path):
    """The same with another flow of dipeptides."""
    two = shutil.copytree(folder, tmp_path / "two")
    perturb(InternalProse.from_pretrained(two / "dipeptides"), 0.05).save_pretrained(two / "dipeptides-2")
    shutil.copy(two / "dipeptides" / COVERAGE, two / "dipeptides-2")
    return two


def test_all_flows_that_cover_a_peptide_are_averaged(two, monkeypatch):
    assert shipped_flows(named("NL"), two) == [two / "dipeptides", two / "dipeptides-2"]
    assert shipped_flows(named("GA"), two) == [two / "GA"]
    peptide = Peptide("AG")
    monkeypatch.setattr("molecular.sampling.proposals.SHIPPED", two)
    average, apart = load_proposal(peptide), [load_flow(peptide, path) for path in shipped_flows(peptide, two)]
    x, log_prob = average.sample_and_log_prob(6, seed=0)
    assert (apart[0].log_prob(x) - apart[1].log_prob(x)).abs().max() > 0.1
    assert torch.equal(load_proposal(peptide, two / "dipeptides").log_prob(x), apart[0].log_prob(x))  # a folder alone
    expected = AveragedProse([given.flow for given in apart]).given(peptide).log_prob(x)
    torch.testing.assert_close(log_prob, expected, atol=1e-3, rtol=1e-5)


def test_mixture_of_flows(two):
    peptide = Peptide("AG")
    apart = [load_flow(peptide, path) for path in shipped_flows(peptide, two)]
    mixture = GivenMixture(apart)
    x, log_prob = mixture.sample_and_log_prob(6, generator=torch.Generator().manual_seed(0))
    both = torch.stack([flow.log_prob(x) for flow in apart])
    torch.testing.assert_close(log_prob, both.logsumexp(0) - math.log(2), atol=1e-4, rtol=1e-5)
    fixed, rest = mixture.split_coordinates()
    y, logabsdet = fixed(x)
    torch.testing.assert_close(rest.log_prob(y) + logabsdet, log_prob, atol=1e-2, rtol=1e-4)
    with pytest.raises(ValueError, match="another molecule"):
        mixture.check(Peptide("GG"))


def test_nothing_shipped_and_a_damaged_description(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="shipped: none"):
        shipped_flows(named("NL"), tmp_path / "nowhere")
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "dipeptides" / COVERAGE).write_text("{}")
    with pytest.raises(ValueError, match="does not say what the flow covers"):
        shipped_flows(named("NL"), copy)


def test_the_flow_is_loaded_for_the_peptide(shipped):
    flow = load_flow(Peptide("AG"))
    assert isinstance(flow.flow, InternalProse)
    assert flow.sample((2,), seed=0).shape == (2, Peptide("AG").num_atoms, 3)


def test_sample_at_another_temperature(shipped, tmp_path):
    main(
        ["sample", "--peptide", "GG", "--num_samples", "20", "--temperature", "330", "--output", str(tmp_path / "out")]
    )
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["temperature_K"] == 330.0
    assert summary["num_samples"] == 20
    assert (tmp_path / "out" / "ramachandran.png").is_file()


def test_flows_of_ones_own_are_mixed(two, tmp_path):
    model, other = two / "dipeptides", two / "dipeptides-2"
    options = ["sample", "--peptide", "GG", "--num_samples", "20", "--output", str(tmp_path / "out")]
    main([*options, "--model", str(model), "--mixed_with", str(other)])
    drawn = WeightedSamples.load(tmp_path / "out" / "weights.npz")
    with torch.no_grad():
        expected = load_proposal(Peptide("GG"), [model, other]).log_prob(drawn.x)
        alone = load_flow(Peptide("GG"), model).log_prob(drawn.x)
    torch.testing.assert_close(drawn.log_prob, expected, atol=1e-3, rtol=1e-4)
    assert (drawn.log_prob - alone).abs().max() > 0.1
    with pytest.raises(SystemExit, match="^error: --mixed_with goes with --model; leave it out.$"):
        main([*options, "--mixed_with", str(other)])


MISTAKES = {
    "D-residue": ("nL", "lowercase; write 'N', or 'dAsn'"),
    "unsupported residue": ("NX", "'X', unknown"),
    "too long for what is shipped": ("AAA", "no flow is shipped for AAA"),
    "too many atoms for the model": ("WW", "too long for this flow, which takes 20"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_end_in_one_sentence(name, shipped, tmp_path):
    sequence, words = MISTAKES[name]
    with pytest.raises(SystemExit, match="error: ") as stop:
        main(["sample", "--peptide", sequence, "--num_samples", "2", "--output", str(tmp_path / "output")])
    assert words in str(stop.value)


def test_capped_peptides_are_refused_by_a_transferable_flow(folder):
    with pytest.raises(ValueError, match="ACE|Ace|cap"):
        load_flow(Peptide("Ace-G-Nme"), folder / "dipeptides")
    with torch.no_grad(), pytest.raises(ValueError, match="expected values"):
        load_flow(Peptide("GG"), folder / "dipeptides").log_prob(torch.zeros(1, 5, 3))
