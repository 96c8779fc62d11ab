"""A disk that fills up while a command writes: one sentence, and the folder keeps its last good state."""

import shutil
import warnings

import numpy as np
import pytest
import torch

from molecular import Peptide
from molecular.analysis.sources import read_samples
from molecular.commands import main
from molecular.data.corpus import simulate_corpus
from molecular.data.ensembles import load_ensemble
from molecular.data.trajectories import import_trajectory
from molecular.dynamics import simulate
from molecular.training.fit_molecule import train_on_ensemble
from molecular.training.self_training import improve
from nflib.flows import Flow
from nflib.training import TrainingConfig
from tests.molecular.small_molecules import VACUUM
from tests.molecular.tiny_flow import SETTINGS, make_tiny_flow
from tests.molecular.tiny_runs import DIPEPTIDES, IMPROVEMENT, SIMULATION, TRAINING
from tests.nflib.full_disk import full_disk


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    molecule = Peptide("GG", force_field=VACUUM)
    simulate(molecule, folder / "simulation", **SIMULATION)
    np.savez(folder / "run.npz", positions=load_ensemble(folder / "simulation").positions.numpy())
    train_on_ensemble(folder / "simulation", folder / "trained", TrainingConfig(**TRAINING), **SETTINGS)
    run("sample", folder, folder / "samples", molecule, more=False)
    return folder, molecule


def run(command, inputs, output, molecule, more):
    """A command into a folder; `more`: to go on with, or replace, what an earlier run left there."""
    longer = {"max_steps": 4} if more else {}
    match command:
        case "simulate":
            simulate(molecule, output, **SIMULATION | {"picoseconds": 0.06 if more else 0.04})
        case "corpus":
            simulate_corpus(["GG", "GA"], output, **DIPEPTIDES | {"picoseconds": 0.008 if more else 0.004})
        case "import":
            import_trajectory(molecule, inputs / "run.npz", output, highest_energy=1e9, seed=int(more))
        case "train":
            train_on_ensemble(inputs / "simulation", output, TrainingConfig(**TRAINING | longer), **SETTINGS)
        case "improve":
            config = TrainingConfig(**TRAINING | longer, refresh_interval=1)
            improve(make_tiny_flow(molecule), molecule, output, config, **IMPROVEMENT)
        case "sample":
            model = ["--model", str(inputs / "trained" / "model"), "--num_samples", "40", "--seed", str(int(more))]
            main(["sample", *model, "--output", str(output)])
        case "sample by smc":
            model = ["--model", str(inputs / "trained" / "model"), "--num_samples", "20", "--seed", str(int(more))]
            main(["sample", *model, "--sampler", "smc", "--output", str(output)])
        case "evaluate":
            folders = ["--samples", str(inputs / "samples"), "--reference", str(inputs / "simulation")]
            main(["evaluate", *folders, "--num_bootstrap", "0", "--num_clusters", "2", "--output", str(output)])
        case "analyse":
            main(["analyse", "--data", str(inputs / "simulation"), "--output", str(output)])


def assert_sound(command, folder):
    """What an earlier run left can be read."""
    match command:
        case "simulate" | "import":
            assert torch.isfinite(load_ensemble(folder).positions).all()
        case "train" | "improve":
            Flow.from_pretrained(folder / "model")
        case "sample" | "sample by smc":
            read_samples(str(folder))
    assert not [path for path in folder.rglob("*") if path.name.startswith(".incomplete")]


@pytest.mark.parametrize("size", [0, 2000])
@pytest.mark.parametrize(
    "command", ["simulate", "corpus", "import", "train", "improve", "sample", "sample by smc", "evaluate", "analyse"]
)
def test_one_sentence_and_the_last_good_state(command, size, inputs, tmp_path, capsys):
    """capsys: what is printed goes to memory, where there is room."""
    folder, molecule = inputs
    with warnings.catch_warnings(action="ignore"):
        run(command, folder, tmp_path / "run", molecule, more=False)
        shutil.copytree(tmp_path / "run", tmp_path / "before")
        if command == "import":  # which writes into no folder that has frames
            shutil.rmtree(tmp_path / "run")
        with pytest.raises((OSError, SystemExit)) as error, full_disk(size):
            run(command, folder, tmp_path / "run", molecule, more=True)
        text = str(error.value)
        assert str(tmp_path / "run") in text and "\n" not in text and len(text) < 500, text
        if command == "import":
            assert not list((tmp_path / "run").glob("frames-*.npz"))
        else:
            assert_sound(command, tmp_path / "run")
            before = {path.relative_to(tmp_path / "before") for path in (tmp_path / "before").rglob("*.*")}
            lost = [path for path in before if not (tmp_path / "run" / path).exists()]
            assert not lost
        run(command, folder, tmp_path / "run", molecule, more=True)
        assert_sound(command, tmp_path / "run")
