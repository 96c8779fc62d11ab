"""The command line: what it writes, and how it answers mistakes."""

import json
import os
import shutil
from pathlib import Path

import mdtraj
import numpy as np
import pytest
import torch

from molecular.commands import COMMANDS, main
from molecular.data.ensembles import load_ensemble
from molecular.flows.molecule_flow import MoleculeFlow
from molecular.molecule.peptide import Peptide
from molecular.molecule.storage import load_molecule, save_molecule
from molecular.sampling import sample
from nflib.io import only_run
from nflib.montecarlo import WeightedSamples
from tests.molecular.openmm_energies import reference
from tests.molecular.tiny_runs import FILES_OF_SAMPLES

TRAINING = ["--training.max_steps", "3", "--training.batch_size", "8", "--training.progress_bar", "false"]
SMALL = ["--channels", "16", "--num_blocks", "2", "--layers_per_block", "1", "--head_dim", "16"]


@pytest.fixture(scope="module")
def simulation(tmp_path_factory):
    folder = tmp_path_factory.mktemp("simulation")
    times = ["--picoseconds", "0.4", "--save_ps", "0.01", "--hot_ps", "0.05", "--equilibration_ps", "0.1"]
    sizes = ["--num_replica_groups", "4", "--num_temperatures", "2"]
    main(["simulate", "--peptide", "Ace-G-Nme", *times, *sizes, "--output", str(folder)])
    return folder


@pytest.fixture(scope="module")
def model(simulation, tmp_path_factory):
    folder = tmp_path_factory.mktemp("training")
    main(["train", "--data", str(simulation), "--output", str(folder), *SMALL, *TRAINING])
    return folder / "model"


def draw(model, output, num_samples, *options):
    command = ["sample", "--peptide", "Ace-G-Nme", "--model", str(model), "--output", str(output)]
    main([*command, "--num_samples", str(num_samples), *options])


def test_simulate_train_sample(simulation, model, tmp_path):
    output = tmp_path / "samples"
    draw(model, output, 600, "--reference", str(simulation), "--seed", "4")
    assert {path.name for path in output.iterdir()} == FILES_OF_SAMPLES
    samples = WeightedSamples.load(output / "weights.npz")
    trajectory = mdtraj.load(str(output / "samples.xtc"), top=str(output / "topology.pdb"))
    assert trajectory.n_frames == len(samples) == 600
    np.testing.assert_allclose(trajectory.xyz, samples.x, atol=1e-3)
    summary = json.loads((output / "summary.json").read_text())
    assert summary["effective_sample_size"] == pytest.approx(samples.effective_sample_size)
    flow = MoleculeFlow.from_pretrained(model)
    with torch.no_grad():
        torch.testing.assert_close(flow.log_prob(samples.x), samples.log_prob, atol=5e-3, rtol=1e-4)


def test_weights_are_boltzmann_over_flow(simulation, model, tmp_path):
    output = tmp_path / "samples"
    draw(model, output, 600)
    samples = WeightedSamples.load(output / "weights.npz")
    peptide = Peptide("Ace-G-Nme")
    heaviest = samples.log_weights.argsort(descending=True)[:5]
    energies, _ = reference(peptide.system, samples.x[heaviest].double().numpy())
    expected = -torch.from_numpy(energies) / peptide.kT - samples.log_prob[heaviest]
    torch.testing.assert_close(samples.log_weights[heaviest].double(), expected, atol=5e-3, rtol=0)


def test_energy_informed_training_goes_on_from_a_model(simulation, model, tmp_path):
    main(
        ["train", "--data", str(simulation), "--output", str(tmp_path / "refined"), "--initial", str(model)]
        + [*TRAINING, "--training.refresh_interval", "2", "--energy_weight", "0.01"]
    )
    assert MoleculeFlow.from_pretrained(tmp_path / "refined" / "model").topology.sequence == "Ace-G-Nme"


def test_a_flow_does_not_go_on_at_another_temperature(simulation, model, tmp_path):
    """Its weights would be of frames at one temperature and its molecule of another."""
    folder = shutil.copytree(model.parent, tmp_path / "run")
    warm = shutil.copytree(simulation, tmp_path / "warm")
    save_molecule(load_molecule(simulation).at(350.0), warm)
    with pytest.raises(SystemExit, match="is a flow of something else than .*: its temperature is 300 K, not 350 K"):
        main(["train", "--data", str(warm), "--output", str(folder), *TRAINING])
    assert load_molecule(folder / "model").temperature == 300.0


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (["--coordinates", "cartesian"], "coordinates"),
        (["--channels", "16", "--whitened", "true"], "channels, whitened"),
    ],
)
def test_architectures_of_a_flow_that_has_one_are_refused(simulation, model, tmp_path, options, names):
    command = ["train", "--data", str(simulation), "--output", str(tmp_path / "run"), "--initial", str(model)]
    with pytest.raises(SystemExit, match=f"the initial flow has its own {names}: leave {names} out, or initial"):
        main([*command, *TRAINING, *options])
    assert not (tmp_path / "run").exists()


def test_marginals_of_a_trained_flow_are_refitted_where_that_is_asked_for(simulation, model, tmp_path):
    knots = []
    for start_ps, refit in (("0", "false"), ("0", "true"), ("0.2", "false"), ("0.2", "true")):
        output = tmp_path / f"{start_ps}-{refit}"
        main(
            ["train", "--data", str(simulation), "--output", str(output), "--initial", str(model), *TRAINING]
            + ["--start_ps", start_ps, "--refit_marginals", refit]
        )
        state = MoleculeFlow.from_pretrained(output / "model").state_dict()
        knots.append(next(value for name, value in state.items() if name.endswith("knots_x")))
    # The same data have the same marginals; others change them where that is asked for.
    assert [torch.equal(own, knots[0]) for own in knots] == [True, True, True, False]


def test_two_basins_of_one_name_are_refused(monkeypatch):
    """The first was dropped."""
    monkeypatch.setattr("molecular.commands.analysis.read_ensemble", lambda *_: (None, None))
    basins = ["--basins", "a=phi 1 > 0", "--basins", "a=phi 1 < 0"]
    with pytest.raises(SystemExit, match="two basins are named 'a'"):
        main(["analyse", "--data", "runs", "--output", "found", *basins])


def test_files_of_options_are_read_as_the_command_line_is(monkeypatch, tmp_path):
    """Names with dashes, and one basin without a list, as `python -m video` takes them too."""
    taken = {}

    def analyse(data: Path, basins: list[str] | None = None, start_ps: float = 0.0) -> None:
        """Analyse."""
        taken.update(locals())

    monkeypatch.setitem(COMMANDS, "analyse", analyse)
    (tmp_path / "own.yaml").write_text("data: runs\nbasins: left=phi 1 > 0\nstart-ps: 3\n")
    main(["analyse", "--config", str(tmp_path / "own.yaml")])
    assert taken == {"data": Path("runs"), "basins": ["left=phi 1 > 0"], "start_ps": 3.0, "taken": taken}
    main(["analyse", f"--config={tmp_path / 'own.yaml'}", "--basins", "right=phi 1 < 0"])
    assert taken["basins"] == ["left=phi 1 > 0", "right=phi 1 < 0"]


OF_GLYCINE = ["sample", "--peptide", "Ace-G-Nme"]
MISTAKES = {
    "unknown residue": (["sample", "--peptide", "AXA"], "X"),
    "unknown cap": (["sample", "--peptide", "Boc-A-Nme"], "Boc"),
    "empty sequence": (["sample", "--peptide", ""], "sequence"),
    "no samples": ([*OF_GLYCINE, "--model", "{model}", "--num_samples", "0"], "num_samples"),
    "negative samples": ([*OF_GLYCINE, "--model", "{model}", "--num_samples", "-3"], "num_samples"),
    "no shipped flow": (["sample", "--peptide", "Ace-W-Nme"], "no flow is shipped for Ace-W-Nme"),
    "missing model": ([*OF_GLYCINE, "--model", "{tmp}/nowhere"], "config.json"),
    "model of another peptide": (
        ["sample", "--peptide", "Ace-A-Nme", "--model", "{model}"],
        "of another molecule: it has 22 atoms, not 19",
    ),
    "truncated model": ([*OF_GLYCINE, "--model", "{truncated}"], "truncated"),
    "no such device": ([*OF_GLYCINE, "--model", "{model}", "--device", "mtia:9"], "no device"),
    "no end of training": (["train", "--data", "{tmp}"], "max_steps or max_seconds"),
    "bad training": (["train", "--data", "{tmp}", "--training.max_steps", "-3"], "max_steps"),
    "no time": (["simulate", "--picoseconds", "1", "--peptide", "Ace-G-Nme", "--picoseconds", "0"], "picoseconds is 0"),
    "degrees Celsius": (
        ["simulate", "--picoseconds", "1", "--peptide", "Ace-G-Nme", "--picoseconds", "1", "--temperature", "27"],
        "27 K",
    ),
    "an empty path": ([*OF_GLYCINE, "--model", ""], "--model is empty"),
    "peptide and structure": (["sample", "--peptide", "AA", "--structure", "a.pdb"], "either --peptide or --structure"),
    "a system for a peptide": (["sample", "--peptide", "AA", "--system", "a.xml"], "--system goes with --structure"),
    "no simulation": (["train", "--data", "{tmp}/nowhere", *TRAINING], "no molecule.json"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_end_in_one_sentence(name, model, tmp_path, capsys):
    truncated = tmp_path / "truncated"
    truncated.mkdir()
    (truncated / "config.json").write_bytes((model / "config.json").read_bytes())
    weights = (model / "model.safetensors").read_bytes()
    (truncated / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    arguments, expected = MISTAKES[name]
    places = {"model": model, "tmp": tmp_path, "truncated": truncated}
    output = tmp_path / "output"
    with pytest.raises(SystemExit) as error:
        main([argument.format(**places) for argument in arguments] + ["--output", str(output)])
    message = str(error.value)
    assert message.startswith("error: ")
    assert expected in message
    assert "\n" not in message.strip()
    assert not output.exists() or not list(output.iterdir())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_unwritable_output(model, tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(SystemExit, match="error: "):
        main([*OF_GLYCINE, "--model", str(model), "--output", str(tmp_path / "output")])


@pytest.mark.parametrize(
    "command", [["sample", "--model", "{model}"], ["simulate", "--picoseconds", "0.01"], ["train", "--data", "{data}"]]
)
def test_output_where_nothing_can_be_made(command, model, simulation):
    arguments = [argument.format(model=model, data=simulation) for argument in command]
    arguments += TRAINING if command[0] == "train" else ["--peptide", "Ace-G-Nme"]
    with pytest.raises(SystemExit, match="error: .*/proc/nowhere"):
        main([*arguments, "--output", "/proc/nowhere"])


def test_output_that_is_a_file(model, tmp_path):
    (tmp_path / "output").write_text("mine")
    arguments = ["--peptide", "Ace-G-Nme", "--model", str(model), "--output", str(tmp_path / "output")]
    with pytest.raises(SystemExit, match="error: .*output"):
        main(["sample", *arguments])
    assert (tmp_path / "output").read_text() == "mine"


def test_data_with_nan_is_refused(simulation, tmp_path):
    poisoned = shutil.copytree(simulation, tmp_path / "poisoned")
    shard = sorted(poisoned.glob("frames-*.npz"))[0]
    arrays = dict(np.load(shard))
    arrays["positions"][3, 0, 0] = np.nan
    np.savez(shard, **arrays)
    with pytest.raises(SystemExit, match="error: .*frame 3"):
        main(["train", "--data", str(poisoned), "--output", str(tmp_path / "output"), *SMALL, *TRAINING])


def test_too_few_frames_for_a_new_flow(simulation, tmp_path):
    few = shutil.copytree(simulation, tmp_path / "few")
    first, *others = sorted(few.glob("frames-*.npz"))
    for shard in others:
        shard.unlink()
    np.savez(first, **{name: array[:30] for name, array in np.load(first).items()})
    with pytest.raises(SystemExit, match="few has [0-9]+ frames to train on, where a new flow takes 32 or more"):
        main(["train", "--data", str(few), "--output", str(tmp_path / "output"), *SMALL, *TRAINING])


def test_an_output_of_no_name(model):
    with pytest.raises(SystemExit, match="error: --output is empty"):
        main([*OF_GLYCINE, "--model", str(model), "--output="])


def test_names_of_any_script(model, simulation, tmp_path):
    """mdtraj takes ASCII names alone."""
    output = tmp_path / "ünï cödé 模型"
    draw(model, output, 60, "--reference", str(simulation))
    assert (output / "samples.xtc").stat().st_size > 0
    main(["evaluate", "--samples", str(output), "--reference", str(simulation), "--output", str(output / "é")])
    assert (output / "é" / "report.html").is_file()


@pytest.mark.parametrize("command", ["simulate", "corpus", "train", "sample", "improve", "import"])
def test_two_runs_in_one_folder(command, model, simulation, tmp_path):
    sequences = tmp_path / "sequences.txt"
    sequences.write_text("GG\n")
    arguments = {
        "simulate": ["simulate", "--peptide", "Ace-G-Nme", "--picoseconds", "0.01"],
        "corpus": ["simulate", "--sequences", str(sequences), "--picoseconds", "0.01"],
        "train": ["train", "--data", str(simulation), *SMALL, *TRAINING],
        "sample": ["sample", "--model", str(model), "--num_samples", "5"],
        "improve": ["improve", "--model", str(model), "--samples_per_round", "8", *TRAINING],
        "import": ["import", "--peptide", "Ace-G-Nme", "--trajectory", str(tmp_path / "run.npz")],
    }[command]
    np.savez(tmp_path / "run.npz", positions=load_ensemble(simulation).positions.numpy())
    output = tmp_path / "output"
    with only_run(output), pytest.raises(SystemExit, match="error: .*another run is at work in .*another folder"):
        main([*arguments, "--output", str(output)])


def test_what_is_not_finite_costs_nothing_else(model, tmp_path, monkeypatch):
    """A conformation that no trajectory can hold is left out of it, and told; weights hold all."""

    def broken(*arguments, **options):
        samples = sample(*arguments, **options)
        samples.x[3, 0, 0], samples.x[5, 1, 1], samples.log_weights[[3, 5]] = torch.nan, 1e9, -torch.inf
        return samples

    monkeypatch.setattr("molecular.commands.sampling.draw", broken)
    draw(model, tmp_path / "output", 50)
    topology = str(tmp_path / "output" / "topology.pdb")
    assert mdtraj.load(str(tmp_path / "output" / "samples.xtc"), top=topology).n_frames == 48
    assert len(WeightedSamples.load(tmp_path / "output" / "weights.npz")) == 50


def test_results_outlive_a_writer_that_fails(model, tmp_path, monkeypatch):
    def fails(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("molecular.commands.sampling.write_trajectory", fails)
    with pytest.raises(SystemExit, match="error: .*No space left"):
        draw(model, tmp_path, 50)
    assert len(WeightedSamples.load(tmp_path / "weights.npz")) == 50
    assert (tmp_path / "summary.json").is_file()


@pytest.mark.parametrize("suffix", ["dcd", "h5", "npz"])
def test_other_trajectories(model, tmp_path, suffix):
    if suffix == "h5":
        pytest.importorskip("tables")
    draw(model, tmp_path, 20, "--trajectory_format", suffix)
    positions = WeightedSamples.load(tmp_path / "weights.npz").x.numpy()
    if suffix == "npz":
        read = np.load(tmp_path / "samples.npz")["positions"]
    else:
        read = mdtraj.load(str(tmp_path / f"samples.{suffix}"), top=str(tmp_path / "topology.pdb")).xyz
    np.testing.assert_allclose(read, positions, atol=1e-6)


def test_no_trajectory_of_another_run_lies_beside_new_weights(model, tmp_path):
    draw(model, tmp_path, 20)
    for name in ("history.png", "samples.mine"):
        (tmp_path / name).touch()
    draw(model, tmp_path, 20, "--trajectory_format", "npz", "--seed", "1")
    assert {path.name for path in tmp_path.glob("*s*.*[cz]")} >= {"samples.npz", "weights.npz"}
    assert not any((tmp_path / name).exists() for name in ("samples.xtc", "history.png"))
    assert (tmp_path / "samples.mine").exists()


def test_a_model_knows_its_molecule(model, tmp_path):
    main(["sample", "--model", str(model), "--num_samples", "20", "--temperature", "330", "--output", str(tmp_path)])
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["molecule"] == "Ace-G-Nme" and summary["temperature_K"] == 330


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["sample", "--moves", "3"], "--moves goes with --sampler smc or auto; leave it out."),
        (["sample", "--sampler", "auto", "--moves", "0"], "smc: .* moves 0"),
        (["sample", "--sampler", "auto", "--kernel", "independent", "--final_moves", "5"], "smc: final_moves ask the"),
        (["sample", "--conditional_ess", "0.5"], "--conditional_ess goes with --sampler smc or auto"),
        (["sample", "--sampler", "auto", "--kernel", "bogus"], "there is no kernel 'bogus'"),
        (["sample", "--num_samples", "1"], "num_samples is 1; ask for 2 samples or more"),
        (
            ["sample", "--sampler", "auto", "--num_draws", "9"],
            "smc: num_draws is 9, fewer than the 10000 samples; draw as many or more",
        ),
        (["simulate", "--picoseconds", "1", "--flow_draws", "10"], "--flow_draws goes with --flow; leave it out."),
        (["simulate", "--picoseconds", "1", "--flow_tempered", "true"], "--flow_tempered goes with --flow"),
        (["simulate", "--picoseconds", "1", "--test_fraction", "0.2"], "--test_fraction goes with --sequences"),
        (["simulate", "--picoseconds", "1", "--tar", "true"], "--tar goes with --sequences"),
    ],
)
def test_options_of_something_else_are_refused(arguments, words, tmp_path):
    with pytest.raises(SystemExit, match=f"error: {words}"):
        main([*arguments, "--peptide", "Ace-A-Nme", "--output", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_samples_do_not_join_frames(simulation, model):
    before = {path.name: path.stat().st_mtime_ns for path in simulation.iterdir()}
    with pytest.raises(SystemExit, match="holds frames, whose molecule must stay with them"):
        main(["sample", "--model", str(model), "--peptide", "Ace-G-Nme", "--output", str(simulation)])
    assert {path.name: path.stat().st_mtime_ns for path in simulation.iterdir()} == before
