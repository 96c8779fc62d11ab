"""Self-improvement: a flow is trained further for one peptide on its own weighted samples, without simulation."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from molecular.boltzmann import CLIP, energy_for
from molecular.flow import PeptideFlow
from molecular.own_samples import OwnSamples
from molecular.peptide import Peptide
from molecular.prose import Prose
from molecular.sample import load_flow
from molecular.train import Symmetries
from molecular.transferable import InternalProse
from molecular.transferable.rigid_motion import random_rigid_motion
from molecular.transferable.symmetries import SymmetryTable, symmetry_groups
from nflib.montecarlo import Proposal
from nflib.training import LogVariance, TrainingConfig, TrainingResult, fit
from nflib.training.checkpoints import latest_checkpoint
from nflib.training.seeds import REFRESH, derived_generator

RECORD = "improvement.json"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Improvement:
    """What `improve` did. rounds: of each, the step, energies until then, and effective sample size (a fraction) of
    draws of the flow as it was before that round's training. num_energies: evaluated in all."""

    training: TrainingResult
    rounds: list[dict[str, float]]
    num_energies: int


def improve_to_folder(
    sequence: str,
    output: str | Path,
    config: TrainingConfig,
    *,
    model: str | Path | None = None,
    temperature: float | None = None,
    **options: Any,
) -> Improvement:
    """Improve the flow in `model`, or the shipped one, for a peptide; the arguments are those of the command line.

    Writes `model/`, `checkpoints/` and `logs/` as training does, and improvement.json with the rounds and the number of
    energies. Raises FileNotFoundError and ValueError as `molecular.sample.load_flow` and `improve` do.
    """
    peptide = Peptide(sequence, temperature=temperature)
    loaded = load_flow(sequence, model)
    flow = loaded if isinstance(loaded, PeptideFlow) else cast(InternalProse | Prose, loaded.flow)
    result = improve(flow, peptide, output, config, **options)
    record = {
        "peptide": sequence,
        "temperature_K": peptide.temperature,
        "num_energies": result.num_energies,
        "rounds": result.rounds,
    }
    (Path(output) / RECORD).write_text(json.dumps(record, indent=2) + "\n")
    sizes = ", ".join(f"{part['effective_sample_size_fraction']:.3g}" for part in result.rounds)
    log.info("%d energies in %d rounds.", result.num_energies, len(result.rounds))
    log.info("Effective sample size before each round's training, as a fraction: %s.", sizes)
    log.info("The improved flow is in %s; sample it with --model.", result.training.model)
    return result


def improve(
    flow: PeptideFlow | InternalProse | Prose,
    peptide: Peptide,
    output: str | Path,
    config: TrainingConfig,
    *,
    samples_per_round: int = 2000,
    teacher_weight: float = 0.3,
    energy_weight: float = 0.1,
    batch_size: int = 1000,
) -> Improvement:
    """Train a flow, in place, for one peptide on samples that it draws and weights itself; run again, it goes on.

    A round draws samples_per_round conformations, evaluates their energies, and resamples all rounds' by their exact
    importance weights (`OwnSamples`); `config.refresh_interval` steps of training follow. With p the target so
    resampled and T the teacher, the flow as it was given, the loss of the student q is

        E_p[-log q] + teacher_weight E_T[-log q], over 1 + teacher_weight,  + energy_weight log-variance,

    whose first part is, but for a constant, the divergence KL(m | q) from the mixture m of p and T in these shares.
    Hence the regulariser is a likelihood of unweighted teacher samples: q = m keeps every mode the teacher has, its
    importance weights p / m are at most 1 + teacher_weight, and the many teacher samples outvote the few conformations
    of large weight that likelihood alone would learn by heart. A penalty on parameters bounds neither. The last part
    (`nflib.training.LogVariance`) compares log q with the energies of all rows, resampled or not: each energy is a
    label even where its weight is nothing; 0 leaves it out.

    Rows are turned by the exact symmetries of the peptide, as in training. Raises ValueError for numbers out of range,
    or a flow whose samples have no finite energies.
    """
    if samples_per_round < 2 or batch_size < 1:
        raise ValueError(
            f"samples_per_round must be 2 or more and batch_size 1, not {samples_per_round}, {batch_size}."
        )
    if teacher_weight < 0:
        raise ValueError(f"teacher_weight must be zero or more, not {teacher_weight}.")
    objective = LogVariance(energy_weight=energy_weight, clip=CLIP)
    source = OwnSamples(
        lambda student: _proposal(student, peptide),
        _Energy(flow, peptide),
        samples_per_round,
        teacher_weight=teacher_weight,
        labelled=energy_weight > 0,
        context=None if isinstance(flow, PeptideFlow) else flow.context(peptide),
        batch_size=batch_size,
    )
    # A run that goes on has its rounds in the checkpoint.
    if latest_checkpoint(Path(output) / "checkpoints") is None:
        log.info("Drawing %d samples of %s.", samples_per_round, peptide.sequence)
        source.refresh(flow.eval(), 0, derived_generator(config.seed, REFRESH, 0))
    result = fit(
        flow,
        source,
        config=config,
        objective=objective,
        output=Path(output),
        augment=_augmentation(flow, peptide),
    )
    return Improvement(result, source.rounds(), source.num_energies)


def _proposal(student: nn.Module, peptide: Peptide) -> Proposal:
    """The flow in training, given the peptide where it needs to be told."""
    return cast(Proposal, student.of(peptide) if isinstance(student, InternalProse | Prose) else student)


class _Energy:
    """`energy_for` a flow, on whichever device its samples are: training moves the flow."""

    def __init__(self, flow: PeptideFlow | InternalProse | Prose, peptide: Peptide):
        self.flow, self.peptide = flow, peptide
        self.made: dict[torch.device, Any] = {}

    def __call__(self, positions: Tensor) -> Tensor:
        device = positions.device
        if device not in self.made:
            self.made[device] = energy_for(self.flow, self.peptide, device)
        energies: Tensor = self.made[device](positions)
        return energies


class _Turned:
    """Augmentation for a transferable flow: random symmetries and, on plain positions, a random rotation about the
    centroid, which stays where it is: the energy label belongs to its place."""

    def __init__(self, peptide: Peptide, rotate: bool):
        self.table = SymmetryTable([symmetry_groups(peptide)], peptide.num_atoms)
        self.rotate = rotate

    def __call__(self, positions: Tensor, generator: torch.Generator) -> Tensor:
        count = len(positions)
        turned = self.table.turn(positions, torch.zeros(count, dtype=torch.int64), generator)
        if not self.rotate:
            return turned
        exists = torch.ones(turned.shape[:2], dtype=torch.bool, device=turned.device)
        return random_rigid_motion(turned, exists, 0.0, generator) + turned.mean(1, keepdim=True)


def _augmentation(flow: PeptideFlow | InternalProse | Prose, peptide: Peptide) -> Any:
    if isinstance(flow, PeptideFlow):
        return Symmetries(peptide)
    return _Turned(peptide, rotate=isinstance(flow, Prose))
