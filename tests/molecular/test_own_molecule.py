"""One's own molecule by the command line alone: docs/molecules.md and docs/trajectories.md, at smaller sizes."""

import csv
import json
import os

import mdtraj
import numpy as np
import openmm
import pytest
import torch
from openmm import unit

from molecular import Molecule, MoleculeFlow
from molecular.commands import main
from molecular.data.ensembles import load_ensemble
from molecular.molecule.storage import save_molecule
from nflib.montecarlo import WeightedSamples
from tests.molecular.small_molecules import build, write
from tests.pages import commands

# What makes the commands of the pages short; the last of an option given twice is heeded.
SMALLER = {
    "simulate": "--picoseconds 0.5 --save_ps 0.01 --hot_ps 0.05 --equilibration_ps 0.1 --num_replica_groups 4 "
    "--num_temperatures 2",
    "train": "--training.max_steps 30 --training.batch_size 16 --training.progress_bar false --channels 16 "
    "--num_blocks 2 --head_dim 16",
    "sample": "--num_samples 60",
    "analyse": "--bins 12",
}
TORSION = "C1:1 C2:1 C3:1 C4:1"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where the commands are typed."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*words):
    main([*map(str, words), *SMALLER.get(words[0], "").split()])


def shown(page, *names):
    """The commands of a page that have these names."""
    found = [words[3:] for words in commands(page) if words[:3] == ["python", "-m", "molecular"]]
    return [words for words in found if words[0] in names]


def check(analysis):
    """What `analyse` wrote is all about butane."""
    found = json.loads((analysis / "analysis.json").read_text())
    assert found["molecule"] == "butane" and found["temperature_K"] == 300.0
    assert 0 <= found["populations"]["gauche"]["value"] <= 1
    (profile,) = analysis.glob("profile-*.csv")
    with profile.open() as file:
        assert len(list(csv.reader(file))) == 13
    assert profile.with_suffix(".png").stat().st_size > 1000
    assert "Free energies of butane" in (analysis / "report.html").read_text(encoding="utf-8")


def test_page_of_molecules(folder):
    """Four commands, as they stand there, after the one that writes the files."""
    writing = [words[2] for words in commands("docs/molecules.md") if words[:2] == ["python", "-c"]]
    exec(compile(writing[0], "docs/molecules.md", "exec"), {})
    four = shown("docs/molecules.md", "simulate", "train", "sample", "analyse")
    assert [words[0] for words in four] == ["simulate", "train", "sample", "analyse"]
    for words in four:
        run(*words)
    assert WeightedSamples.load("runs/butane_samples/weights.npz").x.shape == (60, 14, 3)
    check(folder / "runs" / "butane_analysis")
    basins = ["--basins", f"gauche=-120 < {TORSION} < 120"]
    run("analyse", "--data", "runs/butane", "--output", "simulated", "--variables", TORSION, *basins)
    check(folder / "simulated")
    with pytest.raises(SystemExit, match="another molecule: it has 10 atoms, not 14"):
        glycol = write("glycol", folder)
        model = ["--model", "runs/butane_flow/model"]
        run("sample", "--structure", glycol[0], "--system", glycol[1], *model, "--output", "wrong")


def test_page_of_trajectories(folder):
    """One of OpenMM's own making, in ångström as DCD files are, is imported as shown, and a flow trained on it."""
    write("butane", folder)
    _, system, x = build("butane")
    integrator = openmm.LangevinMiddleIntegrator(300, 5.0, 0.001)
    integrator.setRandomNumberSeed(1)
    context = openmm.Context(system, integrator, openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(x)
    context.setVelocitiesToTemperature(300, 1)
    frames = []
    for _ in range(120):
        integrator.step(20)
        frames.append(context.getState(positions=True).getPositions(asNumpy=True).value_in_unit(unit.nanometer))
    trajectory = mdtraj.Trajectory(np.array(frames), mdtraj.Topology.from_openmm(build("butane")[0]))
    trajectory.save_dcd("run.dcd")
    run(*shown("docs/trajectories.md", "import")[0])
    ensemble = load_ensemble("runs/imported")
    assert len(ensemble) > 100 and ensemble.num_atoms == 14
    os.rename("runs/imported", "runs/butane")
    for words in shown("docs/molecules.md", "train", "sample", "analyse"):
        run(*words)
    check(folder / "runs" / "butane_analysis")


@pytest.mark.parametrize(("name", "is_rounded"), [("methanol", False), ("glycol", True)])
def test_samples_in_xtc_are_said_to_be_rounded_where_they_are(name, is_rounded, folder, caplog):
    """XTC holds up to nine atoms as they are."""
    molecule = Molecule(*build(name))
    flow = MoleculeFlow.of(molecule, channels=8, num_blocks=1, layers_per_block=1, head_dim=4, num_bins=4)
    flow.fit_coordinates(torch.from_numpy(molecule.positions).float() + 0.003 * torch.randn(200, molecule.num_atoms, 3))
    flow.save_pretrained("flow")
    save_molecule(molecule, "flow")
    with caplog.at_level("INFO"):
        run("sample", "--model", "flow", "--output", "samples")
    assert ("samples.xtc is rounded" in caplog.text) == is_rounded
    with mdtraj.formats.XTCTrajectoryFile("samples/samples.xtc") as file:
        stored = file.read()[0]
    assert np.array_equal(stored, WeightedSamples.load("samples/weights.npz").x.numpy()) != is_rounded
