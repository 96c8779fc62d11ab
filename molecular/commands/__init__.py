"""The command line of `molecular`: options of functions become arguments, in YAML files too (``--config``)."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nflib.command_line import run_command
from nflib.training.config import TrainingConfig

log = logging.getLogger(__name__)


def main(arguments: list[str] | None = None) -> None:
    """Run a command; a user's mistake ends in one sentence on standard error and exit status 1."""
    # An option of a list, given again, appends to it.
    run_command(
        "python -m molecular",
        "Equilibrium ensembles of peptides.",
        COMMANDS,
        arguments,
        aliases={"--samples": "--samples+"},
    )


def simulate(
    output: Path,
    picoseconds: float,
    peptide: str | None = None,
    sequences: Path | None = None,
    equilibration_ps: float = 20.0,
    highest_temperature: float = 900.0,
    num_temperatures: int = 8,
    num_ladders: int = 32,
    timestep_ps: float = 0.001,
    friction: float = 1.0,
    save_ps: float = 1.0,
    frames: str = "float32",
    temperature: float | None = None,
    hydrogen_mass: float | None = None,
    engine: str = "batched",
    platform: str = "CPU",
    compile: bool = False,
    split: Path | None = None,
    validation_fraction: float = 0.1,
    test_fraction: float = 0.1,
    tar: bool = False,
    seed: int = 0,
    device: str = "cpu",
) -> None:
    """Simulate a peptide, or a corpus of them, by parallel tempering in Langevin dynamics; run again, it goes on.

    Args:
        output: folder for frames, topology, settings and report; of a corpus, with one such folder a sequence.
        picoseconds: production time of each replica.
        peptide: sequence, such as Ace-A-Nme or AAA.
        sequences: instead of a peptide, a text file of sequences, one a line, for a corpus.
        equilibration_ps: time before production, not saved.
        highest_temperature: top of the temperature ladder, K.
        num_temperatures: temperatures in each ladder.
        num_ladders: independent ladders, simulated in one batch, each from a structure of its own.
        timestep_ps: integration step.
        friction: of the Langevin thermostat, 1/ps.
        save_ps: time between saved frames.
        frames: how positions are stored: float32 or float16 (npz), or xtc.
        temperature: K; default 300 for capped, 310 for uncapped peptides.
        hydrogen_mass: amu, taken from the bonded heavy atoms, so that longer steps are stable; natural without it.
        engine: batched (tensors, on the device) or openmm (the reference, one replica after the other).
        platform: of the openmm engine: CPU, Reference, CUDA ...
        compile: fuse the batched engine's energies by torch.compile, which takes about a minute first.
        split: of a corpus, a JSON file with lists of train, validation and test; sequences it lacks are for training.
        validation_fraction: of a corpus without such a file, the share of the sequences, chosen by seed.
        test_fraction: likewise.
        tar: pack the frames of a corpus into tar shards for streaming, in the layout of ManyPeptidesMD.
        seed: of the random numbers.
        device: cpu, cuda or mps.
    """
    if (peptide is None) == (sequences is None):
        raise ValueError("give either --peptide or --sequences.")
    options: dict[str, Any] = {
        "picoseconds": picoseconds,
        "equilibration_ps": equilibration_ps,
        "highest_temperature": highest_temperature,
        "num_temperatures": num_temperatures,
        "num_ladders": num_ladders,
        "timestep": timestep_ps,
        "friction": friction,
        "save_ps": save_ps,
        "storage": frames,
        "engine": engine,
        "platform": platform,
        "compile": compile,
        "device": device,
    }
    if sequences is not None:
        from molecular.data.corpus import read_sequences, read_split, simulate_corpus

        names = read_sequences(sequences)
        simulate_corpus(
            names,
            output,
            split=None if split is None else read_split(split, names),
            validation_fraction=validation_fraction,
            test_fraction=test_fraction,
            temperature=temperature,
            hydrogen_mass=hydrogen_mass,
            seed=seed,
            tar=tar,
            **options,
        )
        return
    from molecular.dynamics import report_lines
    from molecular.dynamics.simulate import simulate as run
    from molecular.molecule.peptide import Peptide

    assert peptide is not None
    molecule = Peptide(peptide, temperature=temperature, hydrogen_mass=hydrogen_mass)
    result = run(molecule, output, seed=seed, **options)
    for line in report_lines(result.report):
        log.info("%s", line)


def train(
    data: Path,
    output: Path,
    training: TrainingConfig,
    coordinates: str = "internal",
    channels: int = 128,
    num_blocks: int = 6,
    layers_per_block: int = 2,
    head_dim: int = 32,
    dropout: float | None = None,
    neighbours: bool | None = None,
    surroundings: bool | None = None,
    initial: Path | None = None,
    energy_weight: float = 0.0,
) -> None:
    """Train a flow on a simulated ensemble; run again, it goes on from its last checkpoint.

    On a corpus of many peptides, one flow for all of them is trained, conditioned on the molecule (Prose).

    Args:
        data: folder written by simulate: one peptide's simulation, or a corpus.
        output: folder for the model, checkpoints and logs.
        training: length, learning rate and everything else of the loop.
        coordinates: what the flow sees: internal, local_frames (not on a corpus) or cartesian.
        channels: width of the transformers.
        num_blocks: autoregressive maps.
        layers_per_block: transformer layers of each.
        head_dim: channels of an attention head.
        dropout: on a corpus, of the layers' updates; default 0.
        neighbours: on a corpus and internal coordinates, whether an atom's conditions tell the residues before and
            behind its own, which a flow learns by heart where sequences are few; default true.
        surroundings: on a corpus and internal coordinates, whether each atom's step is shown the atoms placed before it
            in its own local frame; default true.
        initial: folder of a trained flow to start from; its architecture then holds.
        energy_weight: weight of the log-variance of the importance weights beside the likelihood; with it, batches
            also hold the flow's own samples, drawn anew every training.refresh_interval steps.
    """
    from molecular.training.fit_molecule import train_from_folder

    only_for_a_corpus = {"dropout": dropout, "neighbours": neighbours, "surroundings": surroundings}
    train_from_folder(
        data,
        output,
        training,
        initial=initial,
        energy_weight=energy_weight,
        only_for_a_corpus={name: value for name, value in only_for_a_corpus.items() if value is not None},
        coordinates=coordinates,
        channels=channels,
        num_blocks=num_blocks,
        layers_per_block=layers_per_block,
        head_dim=head_dim,
    )


def sample(
    peptide: str,
    output: Path,
    num_samples: int = 10_000,
    model: Path | None = None,
    reference: Path | None = None,
    sampler: str = "importance",
    kernel: str = "mala",
    moves: int = 1,
    final_moves: int = 0,
    num_draws: int | None = None,
    conditional_ess: float = 0.9,
    batch_size: int = 1000,
    temperature: float | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> None:
    """Draw weighted equilibrium samples: exact likelihoods from a flow, reweighted to the force field or moved to it.

    Args:
        peptide: sequence, such as Ace-A-Nme.
        output: folder for topology.pdb, samples.xtc, weights.npz, summary.json and ramachandran.png.
        num_samples: how many conformations to draw.
        model: folder of a trained flow; default: the one shipped for this peptide, or for peptides like it.
        reference: folder of a simulation for the plot; default: the one shipped for this peptide, if any.
        sampler: importance (weights alone), or smc: the draws are moved to the force field in steps, by sequential
            Monte Carlo; the folder also gets history.png, and a run that was stopped goes on.
        kernel: of smc: mala, hmc, ula or independent.
        moves: of smc: steps of the kernel at each intermediate temperature.
        final_moves: of smc: further steps in the force field alone, which cost no pass through the flow.
        num_draws: of smc: how many to draw, of which the better num_samples are kept early on; default num_samples.
        conditional_ess: of smc: effective samples kept from one temperature to the next, a fraction; closer to 1, more
            temperatures.
        batch_size: conformations decoded at once.
        temperature: K, to which the samples are reweighted; default 300 for capped, 310 for uncapped peptides.
        seed: of the random numbers.
        device: cpu, cuda or mps.
    """
    from molecular.sampling.sample import sample_to_folder

    sample_to_folder(
        peptide,
        output,
        num_samples,
        model=model,
        reference=reference,
        sampler=sampler,
        kernel=kernel,
        moves=moves,
        final_moves=final_moves,
        num_draws=num_draws,
        conditional_ess=conditional_ess,
        batch_size=batch_size,
        temperature=temperature,
        seed=seed,
        device=device,
    )


def improve(
    peptide: str,
    output: Path,
    training: TrainingConfig,
    model: Path | None = None,
    samples_per_round: int = 2000,
    teacher_weight: float = 0.3,
    energy_weight: float = 0.1,
    num_particles: int = 0,
    moves_per_round: int = 10,
    batch_size: int = 1000,
    temperature: float | None = None,
) -> None:
    """Train a flow further for one peptide on samples that it draws and weights itself; run again, it goes on.

    Args:
        peptide: sequence, such as NL.
        output: folder for the model, checkpoints, logs and improvement.json.
        training: length, learning rate and everything else of the loop; training.refresh_interval steps are one round.
        model: folder of the flow to begin with; default: the one shipped.
        samples_per_round: conformations drawn, and energies evaluated, in each round.
        teacher_weight: of the likelihood of the first flow's own samples beside that of the resampled ones, which keeps
            the flow from forgetting and from learning single conformations by heart.
        energy_weight: of the log-variance of the importance weights, with energies as labels; 0 for likelihood alone.
        num_particles: brought to the force field by sequential Monte Carlo, to learn from beside weighted draws.
        moves_per_round: steps by which particles go on in each round, an energy each, after one where they stand.
        batch_size: conformations decoded at once.
        temperature: K, to which samples are weighted; default 300 for capped, 310 for uncapped peptides.
    """
    from molecular.training.self_training import improve_to_folder

    improve_to_folder(
        peptide,
        output,
        training,
        model=model,
        temperature=temperature,
        samples_per_round=samples_per_round,
        teacher_weight=teacher_weight,
        energy_weight=energy_weight,
        num_particles=num_particles,
        moves_per_round=moves_per_round,
        batch_size=batch_size,
    )


def evaluate(
    samples: list[str],
    output: Path,
    reference: Path | None = None,
    num_bootstrap: int = 20,
    transport_points: int = 1000,
    tica_lag: int = 10,
    num_clusters: int = 20,
    num_conformations: int = 10,
    seed: int = 0,
) -> None:
    """Compare samples of a peptide with a reference: a table with errors, figures, and one page of HTML.

    Args:
        samples: folder written by sample, or NAME=FOLDER; may be given again for more of the same peptide.
        output: folder for evaluation.json, evaluation.md, report.html and the figures.
        reference: folder of a simulation; default: the ensemble shipped for this peptide.
        num_bootstrap: resamples for the errors; 0 for none.
        transport_points: torus_w2 and tica_w2 are exact between at most so many points.
        tica_lag: frames of the reference.
        num_clusters: of k-means in the TICA plane.
        num_conformations: of each ensemble, to rotate in the page.
        seed: of the random numbers.
    """
    from molecular.analysis.report import evaluate_to_folder

    evaluate_to_folder(
        samples,
        output,
        reference=reference,
        num_bootstrap=num_bootstrap,
        transport_points=transport_points,
        tica_lag=tica_lag,
        num_clusters=num_clusters,
        num_conformations=num_conformations,
        seed=seed,
    )


COMMANDS: dict[str, Callable[..., Any]] = {
    "simulate": simulate,
    "train": train,
    "sample": sample,
    "improve": improve,
    "evaluate": evaluate,
}
