"""The benchmarks of transferable flows run, keep what they have computed, and print their tables."""

import json
import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from molecular import Peptide
from molecular.commands.improvement import RECORD
from molecular.training.fit_corpus import train_on_corpus
from nflib.metrics import Estimate
from nflib.training import TrainingConfig
from tests.molecular.tiny_flow import SETTINGS, make_tiny_flow

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A tiny flow, and a corpus of one held-out peptide whose frames are noise about its structure."""
    folder = tmp_path_factory.mktemp("benchmark")
    peptide = Peptide("GG")
    make_tiny_flow(peptide).save_pretrained(folder / "model")
    system = folder / "corpus" / "systems" / "GG"
    system.mkdir(parents=True)
    split = {"train": [], "validation": [], "test": ["GG"]}
    (folder / "corpus" / "corpus.json").write_text(json.dumps({"split": split}))
    (system / "finished.json").write_text("{}")
    peptide.save_pdb(system / "topology.pdb")
    noise = 0.003 * np.random.default_rng(0).normal(size=(60, peptide.num_atoms, 3))
    zeros = np.zeros(60)
    np.savez(
        system / "frames-000000.npz",
        positions=(peptide.positions + noise).astype(np.float32), energies=zeros, time=zeros,
        temperature_index=zeros.astype(np.int16), replica_group=np.arange(60, dtype=np.int32) // 10,
    )  # fmt: skip
    return folder


def run(name, *options, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr(sys, "argv", [name, *map(str, options), "--threads", "1"])
    runpy.run_path(str(BENCHMARKS / name), run_name="__main__")


def test_the_table_of_held_out_peptides(places, tmp_path, monkeypatch, capsys):
    options = ["--models", f"tiny={places / 'model'}", "--references", places / "corpus", "--output", tmp_path]
    options += ["--num_samples", "40", "--bootstrap", "2"]
    moved = [*options, "--smc_samples", "20", "--conditional_ess", "0.3"]
    run("transferable.py", *moved, monkeypatch=monkeypatch)
    first = capsys.readouterr().out
    for words in ("| reference, half to half |", "| proposal ", "| reweighted ", "| SMC ", "of 1."):
        assert words in first
    run("transferable.py", *moved, monkeypatch=monkeypatch)
    assert first.split("peptide", 1)[1] == capsys.readouterr().out.split("peptide", 1)[1]
    with pytest.raises(SystemExit, match="choose another output folder"):
        run("transferable.py", *options, monkeypatch=monkeypatch)
    run("transferable.py", *options, "--likelihood_only", monkeypatch=monkeypatch)
    assert "nats a dimension" in capsys.readouterr().out


def test_the_table_of_the_public_test(places, tmp_path, monkeypatch, capsys):
    """The reference comes after the draws, and SMC later still."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import public_test

    listed = tmp_path / "public_sequences.json"
    listed.write_text(json.dumps({"validation": [], "test": ["GG", "GGG"]}))
    monkeypatch.setattr(public_test, "SEQUENCES", listed)
    output, references = tmp_path / "output", tmp_path / "references"
    options = ["--public-test", "2", "--models", f"tiny={places / 'model'}", "--output", output, "--num_samples", "40"]
    options += ["--bootstrap", "2", "--references", references]
    weights = [*options, "--smc_samples", "0"]
    run("transferable.py", *weights, monkeypatch=monkeypatch)
    first = capsys.readouterr().out
    assert "GG, tiny, importance" in first and "comparison:" not in first and "| Prose " in first
    drawn = (output / "importance" / "tiny" / "GG.npz").stat().st_mtime_ns
    shutil.copytree(places / "corpus" / "systems" / "GG", references / "GG")
    run("transferable.py", *weights, monkeypatch=monkeypatch)
    assert "GG, tiny, comparison" not in capsys.readouterr().out  # a simulation without a report is not over
    (references / "GG" / "report.json").write_text("{}")
    run("transferable.py", *options, "--smc_samples", "20", "--conditional_ess", "0.3", monkeypatch=monkeypatch)
    text = capsys.readouterr().out
    assert "GG, tiny, comparison" in text and "GGG" not in text
    assert "- Effective sample size below 30: 1 of 1: GG " in text and "- z-scores, SMC" in text
    assert (output / "importance" / "tiny" / "GG.npz").stat().st_mtime_ns == drawn
    with pytest.raises(SystemExit, match="choose another output folder"):
        run("transferable.py", *options, "--seed", "1", monkeypatch=monkeypatch)
    with pytest.raises(SystemExit, match="no public test sequence"):
        run("transferable.py", *options, "--peptides", "VV", monkeypatch=monkeypatch)


def test_the_table_of_single_systems(places, tmp_path, monkeypatch, capsys):
    """The whole command, and again, when it only reads."""
    references, output = tmp_path / "references", tmp_path / "output"
    shutil.copytree(places / "corpus" / "systems" / "GG", references / "GG")
    (references / "GG" / "report.json").write_text("{}")
    options = ["--output", output, "--references", references, "--seeds", "2", "--num_samples", "40"]
    options += ["--bootstrap", "2", "--models", f"GG={places / 'model'}"]
    run("single_systems.py", *options, monkeypatch=monkeypatch)
    first = capsys.readouterr().out
    (row,) = (line for line in first.splitlines() if line.startswith("| GG "))
    found = [json.loads((output / f"seed-{seed}" / "importance" / "flow" / "GG.json").read_text()) for seed in (0, 1)]
    low, high = sorted(record["effective_sample_size_fraction"] for record in found)
    assert row.split(" | ")[1:3] == ["ours", f"{(low + high) / 2:.3g} ({low:.3g} to {high:.3g})"] and low < high
    assert "–" not in row and "over 2 seeds" in first  # distances to the reference are there
    run("single_systems.py", *options, monkeypatch=monkeypatch)
    assert first.split("peptide", 1)[1] == capsys.readouterr().out.split("peptide", 1)[1]
    with pytest.raises(SystemExit, match="PEPTIDE=FOLDER, not 'GG'"):
        run("single_systems.py", *options[:-1], "GG", monkeypatch=monkeypatch)


def test_single_systems_stand_beside_what_was_published(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from single_systems import SHOWN, table_rows

    seeds = [{"importance": {"effective_sample_size_fraction": size}} for size in (0.5, 0.1, 0.2)]
    rows = {row[1]: dict(zip(SHOWN, row[2:], strict=True)) for row in table_rows("Ace-A-Nme", seeds)}
    assert rows["ours"]["ESS / samples"] == "0.2 (0.1 to 0.5)" and rows["ours"]["torus W2 / rad"] == "–"
    assert rows["SBG (TarFlow)"]["ESS, trimmed"] == "0.03" and rows["SBG (TarFlow)"]["ESS / samples"] == "–"
    assert rows["FALCON"]["torus W2, trimmed"] == "0.402"


def test_means_worst_cases_and_z_scores_of_the_public_test(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from peptide_steps import compared
    from public_test import remarks, table

    def record(size, energy, z):
        comparison = {
            "distances": {"reweighted": {"energy_w2": {"value": energy}, "torus_w2": {"value": 0.1}}},
            "averages": {"reweighted": {"phi 1 > 0": {"z": z}, "other": {"z": None}}},
        }
        truncated = {"effective_sample_size_fraction": size / 5000}
        importance = {"effective_sample_size": size, "effective_sample_size_fraction": size / 10000}
        return {"importance": importance | {"truncated": truncated}, "comparison": comparison}

    records = {
        "AA": record(1000, 0.5, 0.5),
        "QR": record(20, 2.5, -3.0),
        "RL": {"importance": record(28, 0, 0)["importance"]},
    }
    lines = {
        line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:]]
        for line in table(records, 2).splitlines()
    }
    assert lines["AA"][:2] == ["0.1", "0.2"] and lines["RL"][5] == "–"
    assert lines["mean"][0] == "0.035 ± 0.033" and lines["mean"][5] == "1.5 ± 1.0"
    assert lines["Prose"][:2] == ["–", "0.191"] and lines["Prose"][6] == "0.371"
    text = "\n".join(remarks(records))
    assert "- Worst, ESS / samples: QR 0.002, RL 0.0028, AA 0.1." in text
    assert "- Worst, energy W2 / kT: QR 2.5, AA 0.5." in text
    assert "below 30: 2 of 3: QR 20.0 (SMC –), RL 28.0 (SMC –)." in text
    assert "2 of 4 averages have an error; 0.50 of them are within 1, 0.50 within 2" in text
    assert "the largest is 3.0, phi 1 > 0 of QR." in text
    found = compared(
        {"a": Estimate(1.0, 3.0), "b": Estimate(1.0, np.inf)}, {"a": Estimate(6.0, 4.0), "b": Estimate(1.0, 0.0)}
    )
    assert found["a"]["z"] == -1.0 and found["b"]["z"] is None and found["b"]["ours"]["error"] is None


def test_self_improvement_at_equal_energies(places, tmp_path, monkeypatch, capsys):
    make_tiny_flow(Peptide("GG")).save_pretrained(tmp_path / "model")
    (tmp_path / RECORD).write_text(json.dumps({"molecule": "GG", "temperature_K": 310.0, "num_energies": 10}))
    options = ["--peptide", "GG", "--teacher", places / "model", "--improved", tmp_path]
    run("self_improvement.py", *options, "--energies", "30", monkeypatch=monkeypatch)
    assert "times the effective sample size" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="give more than that"):
        run("self_improvement.py", *options, "--energies", "10", monkeypatch=monkeypatch)


def test_frames_of_other_atoms_stop_training_in_one_sentence(places, tmp_path):
    corpus = tmp_path / "corpus"
    system = corpus / "systems" / "GG"
    system.mkdir(parents=True)
    for name in ("topology.pdb", "finished.json"):
        (system / name).write_bytes((places / "corpus" / "systems" / "GG" / name).read_bytes())
    arrays = dict(np.load(places / "corpus" / "systems" / "GG" / "frames-000000.npz"))
    np.savez(system / "frames-000000.npz", **arrays | {"positions": arrays["positions"][:, 1:]})
    (corpus / "corpus.json").write_text(json.dumps({"split": {"train": ["GG"], "validation": [], "test": []}}))
    config = TrainingConfig(max_steps=1, batch_size=8, progress_bar=False, tensorboard=False)
    with pytest.raises(ValueError, match="a frame of GG has 16 atoms, but its PDB file has 17"):
        train_on_corpus(corpus, tmp_path / "output", config, **SETTINGS)
