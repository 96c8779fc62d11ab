"""Self-training of a flow for one molecule, into a folder."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from molecular.commands.options import MoleculeOptions
from molecular.sampling.proposals import load_flow
from molecular.training.replay_buffer import SIZE
from molecular.training.self_training import Improvement
from molecular.training.self_training import improve as train_on_own_samples
from nflib.io import write_json
from nflib.processes import is_first_process
from nflib.training.config import TrainingConfig

RECORD = "improvement.json"

log = logging.getLogger(__name__)


def improve(
    output: Path,
    molecule: MoleculeOptions,
    training: TrainingConfig,
    model: Path | None = None,
    **options: Any,
) -> Improvement:
    """Train a flow further for one molecule on samples that it draws and weights itself; run again, it goes on.

    The flow that is kept is the last one or, where the effective sample size fell, the one that had the largest.

    Args:
        output: folder for the model, the flow of the best round, checkpoints, logs and improvement.json.
        molecule: which one; samples are weighted to its temperature.
        training: length, learning rate and everything else of the loop; training.refresh_interval steps are one round.
        model: folder of the flow to begin with; default: the one shipped.
        options: of `molecular.training.self_training.improve`.
    """
    target = molecule.build(model)
    result = train_on_own_samples(load_flow(target, model).flow, target, output, training, **options)
    record = {
        "molecule": target.name,
        "temperature_K": target.temperature,
        "num_energies": result.num_energies,
        "rounds": result.rounds,
        "kept_step": result.kept_step,
    }
    if is_first_process():
        write_json(Path(output) / RECORD, record)
    sizes = ", ".join(f"{part[SIZE]:.3g}" for part in result.rounds)
    log.info("%d energies in %d rounds.", result.num_energies, len(result.rounds))
    log.info("Effective sample size before each round's training, as a fraction: %s.", sizes)
    kept = "after all rounds"
    if result.kept_step < result.training.steps:
        log.warning("It fell: train for longer, with more samples or a smaller training.learning_rate.")
        kept = f"of step {result.kept_step}, the best of them," if result.kept_step else "that it began with"
    log.info("The flow %s is in %s; sample it with --model, which tells its own.", kept, result.training.model)
    return result
