"""Damaged files of every format that the package itself writes and reads again: one sentence, or the right result."""

import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from molecular import Peptide
from molecular.analysis.sources import name_ensembles, read_ensemble, read_reference, read_samples
from molecular.data.corpus import open_corpus, simulate_corpus
from molecular.data.corpus.many_peptides import ManyPeptides
from molecular.data.corpus.memory import CorpusSource
from molecular.data.corpus.sequences import read_sequences, read_split
from molecular.data.ensembles import load_ensemble
from molecular.dynamics import simulate
from molecular.molecule.storage import save_molecule
from molecular.sampling import load_flow, sample
from molecular.sampling.shipped import Coverage
from molecular.training.fit_molecule import train_on_ensemble
from molecular.training.self_training import improve
from nflib.montecarlo import BoltzmannDensity, WeightedSamples, smc
from nflib.training import TrainingConfig
from tests.damage import damaged
from tests.molecular.small_molecules import VACUUM
from tests.molecular.tiny_flow import SETTINGS, make_tiny_flow
from tests.molecular.tiny_runs import DIPEPTIDES, IMPROVEMENT, SIMULATION, TRAINING

QUICK, THOROUGH = 12, 300
resource = pytest.importorskip("resource")


@dataclass(frozen=True)
class Format:
    """A file of one of our folders, and what the commands that read it do with the folder; True where it is right."""

    file: str
    read: Callable[[Path, Any], bool]
    quick: int = QUICK


@dataclass
class Whole:
    """A folder with undamaged folders of every kind, and the molecule that they are of."""

    folder: Path
    molecule: Peptide


# --- what is read


class Well:
    """A proposal and an energy for sequential Monte Carlo, cheaper than a molecule's."""

    def sample_and_log_prob(self, num_samples, *, generator=None):
        x = torch.randn(num_samples, 2, generator=generator)
        return x, self.log_prob(x)

    def log_prob(self, x):
        return -0.5 * x.square().sum(-1) - np.log(2 * np.pi)


def move(checkpoint, stop=None):
    calls = 0

    def energy(x):
        nonlocal calls
        calls += 1
        if calls == stop:
            raise KeyboardInterrupt
        return x.square().sum(-1)

    return smc(Well(), BoltzmannDensity(energy), 32, temperatures=[0.25, 0.5, 0.75, 1.0], checkpoint=checkpoint, seed=0)


def finite(*values):
    return all(bool(torch.isfinite(torch.as_tensor(value)).all()) for value in values)


def sound(ensemble, molecule):
    parts = (ensemble.positions, ensemble.energies, ensemble.time)
    return finite(*parts) and ensemble.positions.shape[1:] == (molecule.num_atoms, 3)


def frames(folder, whole):
    return sound(load_ensemble(folder), whole.molecule) and sound(read_ensemble(folder)[0], whole.molecule)


def reference(folder, whole):
    conformations, _ = read_reference(folder, whole.molecule)
    return finite(conformations.positions) and conformations.positions.shape[1:] == (whole.molecule.num_atoms, 3)


def simulation_goes_on(folder, whole):
    storage = "xtc" if list(folder.glob("*.xtc")) else "float32"
    made = simulate(whole.molecule, folder, storage=storage, **SIMULATION | {"picoseconds": 0.05})
    assert made.frames is not None
    parts = (made.frames.positions, made.frames.energies, made.frames.time)
    return finite(*parts) and len(made.frames) == 150 and sound(load_ensemble(folder), whole.molecule)


def samples(folder, whole):
    read = read_samples(str(folder))
    named = name_ensembles([read])
    usable = [part.usable() for part in named.values()]
    shape = (whole.molecule.num_atoms, 3)
    right = all(finite(part.positions) and part.positions.shape[1:] == shape for part in usable)
    if read.history is not None:
        json.dumps(read.history.summary(), allow_nan=False)
        right &= len(read.history.effective_sample_size_fraction) == len(read.history)
    return right and isinstance(read.samples.summary(), dict)


def moving_goes_on(folder, whole):
    made = move(folder / "smc-checkpoint.npz")
    used = made.log_weights > -torch.inf
    return finite(made.x[used], made.log_weights[used], made.log_normalizer) and len(made) == 32


def model(folder, whole):
    drawn = sample(load_flow(whole.molecule, folder), whole.molecule, 4)
    used = drawn.log_weights > -torch.inf  # what is not finite is rejected, and told
    return finite(drawn.x[used], drawn.log_prob[used]) and drawn.x.shape == (4, whole.molecule.num_atoms, 3)


def training_goes_on(folder, whole):
    shutil.rmtree(folder / "checkpoints" / "step-000000002", ignore_errors=True)
    result = train_on_ensemble(whole.folder / "simulation", folder, TrainingConfig(**TRAINING), **SETTINGS)
    return result.steps == 2 and (finite(result.loss) or result.skipped_steps > 0) and model(result.model, whole)


def improvement_goes_on(folder, whole):
    shutil.rmtree(folder / "checkpoints" / "step-000000002", ignore_errors=True)
    flow = make_tiny_flow(whole.molecule)
    result = improve(flow, whole.molecule, folder, TrainingConfig(**TRAINING, refresh_interval=1), **IMPROVEMENT)
    return result.training.steps == 2 and finite(result.training.loss) and isinstance(result.num_energies, int)


def corpus(folder, whole):
    opened = open_corpus(folder)
    source = CorpusSource(opened, "train")
    return finite(source.batch(torch.arange(len(source)))["inputs"])


def corpus_goes_on(folder, whole):
    made = simulate_corpus(["GG", "GA"], folder, **DIPEPTIDES)
    return all(len(made.ensemble(name)) == 2 for part in ("train", "test") for name in made.sequences(part))


def packed(folder, whole):
    opened = ManyPeptides(folder)
    source = CorpusSource(opened, "train")
    return finite(source.batch(torch.arange(len(source)))["inputs"])


def packed_reference(folder, whole):
    opened = ManyPeptides(folder)
    (sequence,) = opened.sequences("test")
    atoms = opened.topology(sequence).getNumAtoms()
    positions = opened.reference(sequence)
    return finite(positions) and positions.shape[1:] == (atoms, 3)


def lists(folder, whole):
    sequences = read_sequences(folder / "sequences.txt")
    split = read_split(folder / "split.json", sequences)
    return sorted(name for part in split.values() for name in part) == sorted(sequences)


def coverage(folder, whole):
    return isinstance(str(Coverage.read(folder / "coverage.json")), str)


FORMATS = {
    "frames of a simulation": Format("simulation/frames-000000.npz", frames),
    "frames that a simulation goes on from": Format("simulation/frames-000000.npz", simulation_goes_on),
    "frames in XTC": Format("rounded/frames-000000.xtc", frames),
    "frames beside XTC": Format("rounded/frames-000000.npz", simulation_goes_on),
    "checkpoint of a simulation": Format("simulation/checkpoint.npz", simulation_goes_on),
    "settings of a simulation": Format("simulation/settings.json", simulation_goes_on),
    "settings of a reference": Format("simulation/settings.json", reference),
    "report of a simulation": Format("simulation/report.json", simulation_goes_on),
    "molecule of a simulation": Format("simulation/molecule.json", simulation_goes_on),
    "System of a simulation": Format("simulation/system.xml", frames),
    "structure of a simulation": Format("simulation/topology.pdb", simulation_goes_on),
    "samples": Format("samples/weights.npz", samples),
    "summary of samples": Format("samples/summary.json", samples),
    "molecule of samples": Format("samples/molecule.json", samples),
    "checkpoint of sequential Monte Carlo": Format("samples/smc-checkpoint.npz", moving_goes_on),
    "configuration of a flow": Format("trained/model/config.json", model),
    "weights of a flow": Format("trained/model/model.safetensors", model),
    "configuration of a transferable flow": Format("transferable/config.json", model),
    "weights of a transferable flow": Format("transferable/model.safetensors", model),
    "weights of a checkpoint": Format("trained/checkpoints/step-000000001/weights.safetensors", training_goes_on),
    "state of a checkpoint": Format("trained/checkpoints/step-000000001/training.pt", training_goes_on),
    "state of an improvement": Format("improved/checkpoints/step-000000001/training.pt", improvement_goes_on, 3),
    "description of a corpus": Format("corpus/corpus.json", corpus),
    "description of a corpus that goes on": Format("corpus/corpus.json", corpus_goes_on),
    "record of a simulated peptide": Format("corpus/systems/GG/finished.json", corpus_goes_on, 4),
    "record of packed frames": Format("corpus/packed.json", corpus_goes_on),
    "frames of a corpus": Format("corpus/systems/GG/frames-000000.npz", corpus),
    "structures of a corpus": Format("corpus/systems/GG/topology.pdb", corpus),
    "packed frames": Format("corpus/webdatasets/single_frames/0000.tar", packed),
    "packed reference": Format("corpus/trajectories_subsampled/test/2AA/GA_subsampled.npz", packed_reference),
    "sequences": Format("lists/sequences.txt", lists),
    "split": Format("lists/split.json", lists),
    "coverage of a flow": Format("lists/coverage.json", coverage),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return make_whole(tmp_path_factory.mktemp("whole"))


def make_whole(folder):
    molecule = Peptide("GG", force_field=VACUUM)
    for name, storage in (("simulation", "float32"), ("rounded", "xtc")):
        simulate(molecule, folder / name, storage=storage, **SIMULATION)
    whole = Whole(folder, molecule)
    (folder / "samples").mkdir()
    save_molecule(molecule, folder / "samples")
    with pytest.raises(KeyboardInterrupt):
        move(folder / "samples" / "smc-checkpoint.npz", stop=4)
    moved = move(None)
    x = load_ensemble(folder / "simulation").positions[:32]
    weighted = WeightedSamples(
        x, moved.log_weights, log_target=moved.log_target, ancestors=moved.ancestors, resamplings=moved.resamplings
    )
    weighted.save(folder / "samples" / "weights.npz")
    summary = weighted.summary() | {"history": moved.history.summary(), "temperature_K": 300.0, "seed": 0}
    (folder / "samples" / "summary.json").write_text(json.dumps(summary | {"molecule": molecule.name}))
    train_on_ensemble(folder / "simulation", folder / "trained", TrainingConfig(**TRAINING), **SETTINGS)
    make_tiny_flow(molecule).save_pretrained(folder / "transferable")
    improve(
        make_tiny_flow(molecule), molecule, folder / "improved", TrainingConfig(**TRAINING, refresh_interval=1),
        **IMPROVEMENT,
    )  # fmt: skip
    simulate_corpus(["GG", "GA"], folder / "corpus", **DIPEPTIDES)
    (folder / "lists").mkdir()
    (folder / "lists" / "sequences.txt").write_text("GG\nGA  # a comment\n\nAG\n")
    (folder / "lists" / "split.json").write_text('{"train": ["GG"], "test": ["GA"], "validation": []}')
    (folder / "lists" / "coverage.json").write_text('{"lengths": [2, 3], "residues": "ACDEFGHIKLMNPQRSTVWY"}')
    return whole


def check(whole, tmp_path, format, count, first=0):
    path = Path(format.file)
    good = (whole.folder / path).read_bytes()
    others = [
        (whole.folder / other).read_bytes()
        for other in sorted({each.file for each in FORMATS.values()} - {format.file})
        if (whole.folder / other).stat().st_size < 10**6
    ]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    wrong = []
    for seed in [-1, *range(first, first + count)]:
        folder = tmp_path / str(seed)
        shutil.copytree(whole.folder / path.parts[0], folder / path.parts[0])
        place = folder / path
        top = place.parent if path.name in ("config.json", "model.safetensors") else folder / path.parts[0]
        if seed >= 0:
            place.write_bytes(damaged(path.name, good, others, np.random.default_rng(seed)))
        try:
            with warnings.catch_warnings(action="ignore"):
                right = format.read(top, whole)
        except (ValueError, FileNotFoundError) as error:
            text = str(error)
            if "\n" in text or len(text) > 800 or str(folder) not in text:
                wrong.append((seed, f"no sentence: {text[:500]!r}"))
            elif seed < 0:
                raise
        except Exception as error:
            wrong.append((seed, f"{type(error).__name__}: {str(error)[:500]}"))
            if seed < 0:
                raise
        else:
            if not right:
                wrong.append((seed, "neither told nor right"))
        shutil.rmtree(folder)
    assert not wrong, f"{len(wrong)} of {count}:\n" + "\n".join(f"{seed}: {what}" for seed, what in wrong)
    unit = 2**10 if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 2**32 else 1  # kB, on a Mac bytes
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit < 2**30


@pytest.mark.parametrize("name", FORMATS)
def test_a_few_damaged_files(name, whole, tmp_path):
    check(whole, tmp_path, FORMATS[name], FORMATS[name].quick)


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_many_damaged_files(name, whole, tmp_path):
    check(whole, tmp_path, FORMATS[name], THOROUGH)
