"""The benchmarks of transferable flows run, keep what they have computed, and print their tables."""

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

from molecular import Peptide
from molecular.commands.improvement import RECORD
from molecular.training.fit_corpus import train_on_corpus
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
        temperature_index=zeros.astype(np.int16), ladder=np.arange(60, dtype=np.int32) // 10,
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
