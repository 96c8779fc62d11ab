"""Self-training of a flow for one molecule, into a folder."""

from __future__ import annotations

import logging
from pathlib import Path

from molecular.molecule.options import MoleculeOptions
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
    samples_per_round: int = 2000,
    teacher_weight: float = 0.3,
    energy_weight: float = 0.1,
    num_particles: int = 0,
    moves_per_round: int = 10,
    batch_size: int = 1000,
) -> Improvement:
    """Train a flow further for one molecule on samples that it draws and weights itself; run again, it goes on.

    Args:
        output: folder for the model, checkpoints, logs and improvement.json.
        molecule: which one; samples are weighted to its temperature.
        training: length, learning rate and everything else of the loop; training.refresh_interval steps are one round.
        model: folder of the flow to begin with; default: the one shipped.
        samples_per_round: conformations drawn, and energies evaluated, in each round.
        teacher_weight: of the likelihood of the first flow's own samples beside that of the resampled ones, which keeps
            the flow from forgetting and from learning single conformations by heart.
        energy_weight: of the log-variance of the importance weights, with energies as labels; 0 for likelihood alone.
        num_particles: brought to the force field by sequential Monte Carlo, to learn from beside weighted draws.
        moves_per_round: steps by which particles go on in each round, an energy each, after one where they stand.
        batch_size: conformations decoded at once.
    """
    target = molecule.build(model)
    result = train_on_own_samples(
        load_flow(target, model).flow,
        target,
        output,
        training,
        samples_per_round=samples_per_round,
        teacher_weight=teacher_weight,
        energy_weight=energy_weight,
        num_particles=num_particles,
        moves_per_round=moves_per_round,
        batch_size=batch_size,
    )
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
    log.info("The improved flow is in %s; sample it with --model.", result.training.model)
    return result
