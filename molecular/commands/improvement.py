"""Self-training of a flow for one molecule, into a folder."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from molecular.commands.options import MoleculeOptions
from molecular.sampling.sample import load_flow
from molecular.training.self_training import Improvement
from molecular.training.self_training import improve as train_on_own_samples
from nflib.io import write_json
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

    Args:
        output: folder for the model, checkpoints, logs and improvement.json.
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
    }
    write_json(Path(output) / RECORD, record)
    sizes = ", ".join(f"{part['effective_sample_size_fraction']:.3g}" for part in result.rounds)
    log.info("%d energies in %d rounds.", result.num_energies, len(result.rounds))
    log.info("Effective sample size before each round's training, as a fraction: %s.", sizes)
    first, last = (result.rounds[index]["effective_sample_size_fraction"] for index in (0, -1))
    if last < first:
        log.warning(
            "It fell from %.3g to %.3g: train for longer, with more samples or a smaller training.learning_rate.",
            first,
            last,
        )
    log.info("The flow after all rounds is in %s; sample it with --model, which tells its own.", result.training.model)
    return result
