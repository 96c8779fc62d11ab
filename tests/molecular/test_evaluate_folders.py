"""What `molecular evaluate` reads: names, temperatures, and mistakes, each answered in one sentence."""

import json

import numpy as np
import pytest
import torch

from molecular import Peptide
from molecular.analysis.sources import (
    check_same_system,
    name_ensembles,
    read_ensemble,
    read_reference,
    read_samples,
)
from molecular.commands import main
from molecular.dynamics.frames import Frames, shard_path, write_shard
from molecular.energy.reduced import ReducedEnergy
from molecular.sampling.shipped import reference_positions
from nflib.montecarlo import WeightedSamples


@pytest.fixture(scope="module")
def positions():
    return reference_positions(Peptide("Ace-A-Nme"))[::40]  # (100, 22, 3)


def write_samples(folder, sequence, x, **more):
    folder.mkdir(parents=True)
    WeightedSamples(x, torch.zeros(len(x))).save(folder / "weights.npz")
    summary = {"peptide": sequence, "temperature_K": 300.0} | more
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def write_simulation(folder, sequence, x, energies, temperatures):
    """Frames in equal parts at each of the temperatures."""
    folder.mkdir()
    index = np.arange(len(x)) * len(temperatures) // len(x)
    times = np.arange(len(x), dtype=np.float64)
    frames = Frames(x.numpy(), energies.numpy(), index.astype(np.int16), np.zeros(len(x), dtype=np.int32), times)
    write_shard(shard_path(folder, 0), frames)
    settings = {"sequence": sequence, "temperatures": temperatures, "cutoff": None}
    (folder / "settings.json").write_text(json.dumps(settings))
    return folder


# --- names


def test_a_folder_whose_name_holds_the_sign(positions, tmp_path):
    folder = write_samples(tmp_path / "T=300", "Ace-A-Nme", positions)
    assert read_samples(str(folder)).name == "" and read_samples(f"mine={folder}").name == "mine"
    assert len(read_ensemble(folder)[0]) == 100


def test_names(positions, tmp_path):
    for name in ("a", "b", "c"):
        write_samples(tmp_path / name, "Ace-A-Nme", positions, **({"sampler": "smc"} if name == "c" else {}))
    a, b, c = (str(tmp_path / name) for name in "abc")
    assert list(names([a])) == ["proposal", "reweighted"]
    assert list(names([a, c])) == ["proposal", "reweighted", "SMC"]
    assert list(names([c, f"hot={c}"])) == ["c SMC", "hot SMC"]
    assert list(names([a, f"other={b}"])) == ["a proposal", "a reweighted", "other proposal", "other reweighted"]
    with pytest.raises(ValueError, match="two ensembles are called 'a proposal'"):
        names([a, a])


def names(entries):
    return name_ensembles([read_samples(entry) for entry in entries])


# --- temperatures


def test_reference_of_another_temperature(alanine, positions, tmp_path):
    """Frames at the temperature itself where there are some; otherwise the nearest with weights exp(-u' + u)."""
    energies = ReducedEnergy(alanine)(positions) * alanine.kT
    folder = write_simulation(tmp_path / "simulation", "Ace-A-Nme", positions, energies, [300.0, 330.0])
    warm, hot = Peptide("Ace-A-Nme", temperature=310.0), Peptide("Ace-A-Nme", temperature=330.0)
    frames, notes = read_reference(folder, hot)
    torch.testing.assert_close(frames.positions, positions[50:])
    assert frames.log_weights is None and notes == []
    frames, (note,) = read_reference(folder, warm)
    torch.testing.assert_close(frames.positions, positions[:50])
    expected = ReducedEnergy(alanine)(positions[:50]) - ReducedEnergy(warm)(positions[:50])
    torch.testing.assert_close(frames.log_weights, expected, atol=1e-4, rtol=0)
    assert "300 K" in note and "310 K" in note
    frames, (note,) = read_reference(folder, alanine.at(320.0))
    torch.testing.assert_close(frames.positions, positions[50:])
    assert "330 K" in note and "320 K" in note
    for wanted, simulated, part in ((310.0, 300.0, positions[:50]), (320.0, 330.0, positions[50:])):
        frames, molecule = read_ensemble(folder, temperature=wanted)
        torch.testing.assert_close(frames.positions, part)
        assert molecule.temperature == simulated
    frames, (note,) = read_reference(None, warm)  # the shipped one, which has no energies
    everything = reference_positions(Peptide("Ace-A-Nme"))
    expected = ReducedEnergy(alanine)(everything) - ReducedEnergy(warm)(everything)
    torch.testing.assert_close(frames.log_weights, expected, atol=1e-4, rtol=0)


def test_other_physics_is_told(alanine, positions, tmp_path):
    folder = write_simulation(tmp_path / "simulation", "Ace-A-Nme", positions, torch.zeros(100).double(), [300.0])
    settings = json.loads((folder / "settings.json").read_text()) | {"force_field": ["amber14-all.xml"]}
    (folder / "settings.json").write_text(json.dumps(settings))
    _, (note,) = read_reference(folder, alanine)
    assert "another force field" in note


def test_a_shipped_reference_of_other_physics_is_told(alanine):
    """It keeps the weights of its own force field at another temperature."""
    other = Peptide("Ace-A-Nme", force_field=["amber14-all.xml", "implicit/obc1.xml"], cutoff=2.0)
    frames, (note,) = read_reference(None, other)
    assert "another force field" in note and frames.log_weights is None
    frames, (note, temperatures) = read_reference(None, other.at(310.0))
    assert "another force field" in note and "310 K" in temperatures
    expected = read_reference(None, alanine.at(310.0))[0].log_weights
    torch.testing.assert_close(frames.log_weights, expected, atol=1e-9, rtol=0)
    assert read_reference(None, alanine)[1] == []


def test_frames_of_another_molecule_are_no_reference(inputs, alanine):
    assert len(read_reference(inputs / "simulation", alanine)[0]) == 100
    with pytest.raises(ValueError, match="is a simulation of another molecule than AAA: it has 22 atoms, not 33"):
        read_reference(inputs / "simulation", Peptide("AAA"))


def test_samples_have_no_start_time(inputs, tmp_path):
    assert len(read_ensemble(inputs / "good")[0]) == 100
    with pytest.raises(
        SystemExit, match="error: .*good holds weighted samples, which have no time; leave out --start_ps"
    ):
        main(["analyse", "--data", str(inputs / "good"), "--output", str(tmp_path / "out"), "--start_ps", "50"])


def test_one_temperature_at_a_time(positions, tmp_path):
    cold = read_samples(str(write_samples(tmp_path / "cold", "Ace-A-Nme", positions)))
    hot = read_samples(str(write_samples(tmp_path / "hot", "Ace-A-Nme", positions, temperature_K=330.0)))
    with pytest.raises(ValueError, match="330 K .* 300 K; evaluate one temperature"):
        check_same_system([cold, hot])


# --- mistakes

MISTAKES = {
    "no such folder": (["{tmp}/nowhere"], [], "is not a folder"),
    "an empty folder": (["{tmp}/empty"], [], "holds no weights.npz"),
    "no summary": (["{tmp}/bare"], [], "holds no summary.json"),
    "damaged weights": (["{tmp}/truncated"], [], "damaged file"),
    "damaged summary": (["{tmp}/scribbled"], [], "is damaged"),
    "summary without a peptide": (["{tmp}/anonymous"], [], "lacks temperature_K"),
    "two peptides": (["{tmp}/good", "{tmp}/glycine"], [], "evaluate one molecule at a time"),
    "too few atoms": (["{tmp}/short"], [], "positions of shape (100, 20, 3)"),
    "twice the same": (["{tmp}/good", "{tmp}/good"], [], "two ensembles are called"),
    "nothing shipped": (["{tmp}/glycine"], [], "no reference is shipped for Ace-G-Nme"),
    "no reference folder": (["{tmp}/good"], ["--reference", "{tmp}/nowhere"], "is not a folder"),
    "no simulation there": (["{tmp}/good"], ["--reference", "{tmp}/empty"], "holds no settings.json"),
    "no frames": (["{tmp}/good"], ["--reference", "{tmp}/frameless"], "holds no frames"),
    "reference of another peptide": (["{tmp}/glycine"], ["--reference", "{tmp}/simulation"], "give a reference of"),
    "lag too long": (["{tmp}/good"], ["--reference", "{tmp}/simulation", "--tica_lag", "500"], "smaller lag"),
    "no conformations": (["{tmp}/good"], ["--num_conformations", "0"], "show 1 or more"),
    "bad bootstrap": (["{tmp}/good"], ["--num_bootstrap", "-1"], "num_bootstrap is -1"),
    "no weight at all": (["{tmp}/weightless"], [], "has no conformation that is finite and has a weight"),
}


@pytest.fixture(scope="module")
def inputs(alanine, positions, tmp_path_factory):
    tmp = tmp_path_factory.mktemp("inputs")
    for name in ("good", "bare", "truncated", "scribbled", "anonymous"):
        write_samples(tmp / name, "Ace-A-Nme", positions)
    write_samples(tmp / "glycine", "Ace-G-Nme", positions[:, :19])
    write_samples(tmp / "short", "Ace-A-Nme", positions[:, :20])
    (tmp / "bare" / "summary.json").unlink()
    weights = (tmp / "truncated" / "weights.npz").read_bytes()
    (tmp / "truncated" / "weights.npz").write_bytes(weights[: len(weights) // 2])
    (tmp / "scribbled" / "summary.json").write_text("{")
    (tmp / "anonymous" / "summary.json").write_text("{}")
    (tmp / "empty").mkdir()
    write_simulation(tmp / "simulation", "Ace-A-Nme", positions, torch.zeros(100).double(), [300.0])
    (tmp / "frameless").mkdir()
    (tmp / "frameless" / "settings.json").write_text('{"sequence": "Ace-A-Nme", "temperatures": [300.0]}')
    weightless = write_samples(tmp / "weightless", "Ace-A-Nme", positions)
    WeightedSamples(positions, torch.full((100,), -torch.inf)).save(weightless / "weights.npz")
    return tmp


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_end_in_one_sentence(name, inputs, tmp_path):
    samples, options, expected = MISTAKES[name]
    arguments = [part for folder in samples for part in ("--samples", folder)] + options
    output = tmp_path / "output"
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", *(argument.format(tmp=inputs) for argument in arguments), "--output", str(output)])
    message = str(stop.value)
    assert message.startswith("error: ") and expected in message and "\n" not in message.strip()
    assert not output.exists() or not list(output.iterdir())


def test_output_where_nothing_can_be_made(inputs):
    with pytest.raises(SystemExit, match="error: .*/proc/nowhere"):
        main(["evaluate", "--samples", str(inputs / "good"), "--output", "/proc/nowhere"])
