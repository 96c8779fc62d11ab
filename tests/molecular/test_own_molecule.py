"""A user's own molecule by the command line alone: from a PDB file to a free-energy profile."""

import csv
import json

import mdtraj
import numpy as np
import openmm
import pytest
from openmm import unit

from molecular.commands import main
from molecular.data.ensembles import load_ensemble
from nflib.montecarlo import WeightedSamples
from tests.molecular.small_molecules import build, write

TRAINING = ["--training.max_steps", "30", "--training.batch_size", "16", "--training.progress_bar", "false"]
SMALL = ["--channels", "16", "--num_blocks", "2", "--layers_per_block", "1", "--head_dim", "16"]


def run(*arguments):
    main([str(argument) for argument in arguments])


def finish(folder, data):
    """Train, sample and analyse; what is written is all about butane."""
    run("train", "--data", data, "--output", folder / "flow", *SMALL, *TRAINING)
    run("sample", "--model", folder / "flow" / "model", "--num_samples", "60", "--output", folder / "samples")
    torsion = "C1:1 C2:1 C3:1 C4:1"
    for source in (folder / "samples", data):
        output = folder / f"analysis of {source.name}"
        arguments = ["analyse", "--data", source, "--output", output, "--variables", torsion]
        run(*arguments, "--basins", f"trans={torsion} > 120", "--bins", "12")
        found = json.loads((output / "analysis.json").read_text())
        assert found["molecule"] == "butane" and found["temperature_K"] == 300.0
        assert 0 <= found["populations"]["trans"]["value"] <= 1
        (profile,) = output.glob("profile-*.csv")
        with profile.open() as file:
            assert len(list(csv.reader(file))) >= 12
        assert profile.with_suffix(".png").stat().st_size > 1000
    return WeightedSamples.load(folder / "samples" / "weights.npz")


def test_by_simulation(tmp_path):
    structure, system = write("butane", tmp_path)
    arguments = ["--structure", structure, "--system", system, "--picoseconds", "0.5", "--save_ps", "0.01"]
    options = ["--hot_ps", "0.05", "--equilibration_ps", "0.1", "--num_ladders", "4", "--num_temperatures", "2"]
    run("simulate", *arguments, *options, "--output", tmp_path / "simulation")
    samples = finish(tmp_path, tmp_path / "simulation")
    assert samples.x.shape == (60, 14, 3)
    with pytest.raises(SystemExit, match="another molecule: it has 10 atoms, not 14"):
        glycol = write("glycol", tmp_path)
        model = ["--model", tmp_path / "flow" / "model"]
        run("sample", "--structure", glycol[0], "--system", glycol[1], *model, "--output", tmp_path / "wrong")


def test_by_a_trajectory(tmp_path):
    """Of OpenMM's own making, in ångström as DCD files are."""
    structure, system_file = write("butane", tmp_path)
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
    trajectory.save_dcd(str(tmp_path / "run.dcd"))
    molecule = ["--structure", structure, "--system", system_file]
    run("import", *molecule, "--trajectory", tmp_path / "run.dcd", "--output", tmp_path / "imported")
    ensemble = load_ensemble(tmp_path / "imported")
    assert len(ensemble) > 100 and ensemble.num_atoms == 14
    finish(tmp_path, tmp_path / "imported")
