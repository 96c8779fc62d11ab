"""The command line of `molecular`: options of functions become arguments, in YAML files too (``--config``)."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonargparse

from nflib.training.config import TrainingConfig

USER_ERRORS = (ValueError, OSError, RuntimeError)


def main(arguments: list[str] | None = None) -> None:
    """Run a command; a user's mistake ends in one sentence on standard error and exit status 1."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = jsonargparse.ArgumentParser(prog="python -m molecular", description="Equilibrium ensembles of peptides.")
    subcommands = parser.add_subcommands(required=True, dest="command")
    for name, function in COMMANDS.items():
        summary = (function.__doc__ or "").split("\n\n")[0]
        command = jsonargparse.ArgumentParser(description=summary)
        command.add_argument("--config", action="config", help="a YAML file with these options")
        command.add_function_arguments(function)
        subcommands.add_subcommand(name, command, help=summary)
    options = parser.instantiate_classes(parser.parse_args(arguments))
    name = options.command
    chosen = dict(options[name].items())
    chosen.pop("config", None)
    try:
        COMMANDS[name](**chosen)
    except USER_ERRORS as error:
        sys.exit(f"error: {error}")


def simulate(
    peptide: str,
    output: Path,
    picoseconds: float,
    equilibration_ps: float = 20.0,
    highest_temperature: float = 900.0,
    num_temperatures: int = 8,
    num_ladders: int = 32,
    timestep_ps: float = 0.001,
    friction: float = 1.0,
    save_ps: float = 1.0,
    temperature: float | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> None:
    """Simulate a peptide by parallel tempering in batched Langevin dynamics (BAOAB); run again, it goes on.

    Args:
        peptide: sequence, such as Ace-A-Nme or AAA.
        output: folder for frames, topology, settings and report.
        picoseconds: production time of each replica.
        equilibration_ps: time before production, not saved.
        highest_temperature: top of the temperature ladder, K.
        num_temperatures: temperatures in each ladder.
        num_ladders: independent ladders, simulated in one batch.
        timestep_ps: integration step.
        friction: of the Langevin thermostat, 1/ps.
        save_ps: time between saved frames.
        temperature: K; default 300 for capped, 310 for uncapped peptides.
        seed: of the random numbers.
        device: cpu, cuda or mps.
    """
    from molecular.peptide import Peptide
    from molecular.simulate import simulate as run

    run(
        Peptide(peptide, temperature=temperature),
        output,
        picoseconds=picoseconds,
        equilibration_ps=equilibration_ps,
        highest_temperature=highest_temperature,
        num_temperatures=num_temperatures,
        num_ladders=num_ladders,
        timestep=timestep_ps,
        friction=friction,
        save_ps=save_ps,
        seed=seed,
        device=device,
    )


def train(
    data: Path,
    output: Path,
    training: TrainingConfig,
    coordinates: str = "internal",
    channels: int = 128,
    num_blocks: int = 6,
    layers_per_block: int = 2,
    head_dim: int = 32,
    initial: Path | None = None,
    energy_weight: float = 0.0,
) -> None:
    """Train a flow on a simulated ensemble; run again, it goes on from its last checkpoint.

    Args:
        data: folder written by simulate.
        output: folder for the model, checkpoints and logs.
        training: length, learning rate and everything else of the loop.
        coordinates: what the flow sees: internal, local_frames or cartesian.
        channels: width of the transformers.
        num_blocks: autoregressive maps.
        layers_per_block: transformer layers of each.
        head_dim: channels of an attention head.
        initial: folder of a trained flow to start from; its architecture then holds.
        energy_weight: weight of the log-variance of the importance weights beside the likelihood; with it, batches
            also hold the flow's own samples, drawn anew every training.refresh_interval steps.
    """
    from molecular.train import train_from_folder

    train_from_folder(
        data,
        output,
        training,
        initial=initial,
        energy_weight=energy_weight,
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
    batch_size: int = 1000,
    temperature: float | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> None:
    """Draw weighted equilibrium samples: exact likelihoods from a flow, reweighted to the force field.

    Args:
        peptide: sequence, such as Ace-A-Nme.
        output: folder for topology.pdb, samples.xtc, weights.npz, summary.json and ramachandran.png.
        num_samples: how many conformations to draw.
        model: folder of a trained flow; default: the one shipped for this peptide.
        reference: folder of a simulation for the plot; default: the one shipped for this peptide, if any.
        batch_size: conformations decoded at once.
        temperature: K, to which the samples are reweighted; default 300 for capped, 310 for uncapped peptides.
        seed: of the random numbers.
        device: cpu, cuda or mps.
    """
    from molecular.sample import sample_to_folder

    sample_to_folder(
        peptide,
        output,
        num_samples,
        model=model,
        reference=reference,
        batch_size=batch_size,
        temperature=temperature,
        seed=seed,
        device=device,
    )


COMMANDS: dict[str, Callable[..., Any]] = {"simulate": simulate, "train": train, "sample": sample}
