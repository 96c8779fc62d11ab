"""Simulation by parallel tempering, of one molecule or a corpus of peptides."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from molecular.data.corpus import read_sequences, read_split, simulate_corpus
from molecular.dynamics import report_lines
from molecular.dynamics.simulate import simulate as run
from molecular.molecule.options import MoleculeOptions

log = logging.getLogger(__name__)


def simulate(
    output: Path,
    picoseconds: float,
    molecule: MoleculeOptions,
    sequences: Path | None = None,
    equilibration_ps: float = 20.0,
    highest_temperature: float = 900.0,
    num_temperatures: int = 8,
    num_ladders: int = 32,
    timestep_ps: float = 0.001,
    friction: float = 1.0,
    save_ps: float = 1.0,
    frames: str = "float32",
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
    """Simulate a molecule, or a corpus of peptides, by parallel tempering in Langevin dynamics; run again, it goes on.

    Args:
        output: folder for frames, topology, settings and report; of a corpus, with one such folder a sequence.
        picoseconds: production time of each replica.
        molecule: which one; of a corpus, temperature and hydrogen mass alone, of all its peptides.
        sequences: instead of a molecule, a text file of sequences, one a line, for a corpus.
        equilibration_ps: time before production, not saved.
        highest_temperature: top of the temperature ladder, K.
        num_temperatures: temperatures in each ladder.
        num_ladders: independent ladders, simulated in one batch, each from a structure of its own.
        timestep_ps: integration step.
        friction: of the Langevin thermostat, 1/ps.
        save_ps: time between saved frames.
        frames: how positions are stored: float32 or float16 (npz), or xtc.
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
    if [molecule.peptide, molecule.structure, sequences].count(None) != 2:
        raise ValueError("give one of --peptide, --structure and --sequences.")
    if sequences is not None:
        others = replace(molecule, temperature=None, hydrogen_mass=None)
        others.check_unused("goes with one molecule, not with --sequences")
        names = read_sequences(sequences)
        simulate_corpus(
            names,
            output,
            split=None if split is None else read_split(split, names),
            validation_fraction=validation_fraction,
            test_fraction=test_fraction,
            temperature=molecule.temperature,
            hydrogen_mass=molecule.hydrogen_mass,
            seed=seed,
            tar=tar,
            **options,
        )
        return
    result = run(molecule.build(), output, seed=seed, **options)
    for line in report_lines(result.report):
        log.info("%s", line)
