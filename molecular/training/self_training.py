"""Self-improvement: a flow is trained further for one peptide on its own weighted samples, without simulation."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from molecular.energy.reduced import CLIP
from molecular.flows import InternalProse
from molecular.flows.peptide_flow import PeptideFlow
from molecular.flows.prose import Prose
from molecular.flows.rigid_motion import random_rigid_motion
from molecular.molecule.equivalent_atoms import SymmetryTable, symmetry_groups
from molecular.molecule.peptide import Peptide
from molecular.sampling.sample import load_flow
from molecular.sampling.smc import SplitFlow, move_at_target, smc
from molecular.sampling.targets import energy_for
from molecular.training.fit_molecule import Symmetries
from molecular.training.replay_buffer import OwnSamples, drawn_seed
from nflib.montecarlo import Proposal, WeightedSamples
from nflib.training import LogVariance, TrainingConfig, TrainingResult, fit
from nflib.training.checkpoints import latest_checkpoint
from nflib.training.seeds import REFRESH, derived_generator

RECORD = "improvement.json"
# The better draws of the flow become particles. Draws are cheap beside moves.
DRAWS_PER_PARTICLE = 3

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Improvement:
    """What `improve` did. rounds: of each, the step, energies until then, and effective sample size (a fraction) of
    draws of the flow as it was before that round's training. num_energies: evaluated in all, a force counts as one."""

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
    energies. Raises FileNotFoundError and ValueError as `molecular.sampling.sample.load_flow` and `improve` do.
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
    num_particles: int = 0,
    moves_per_round: int = 10,
    batch_size: int = 1000,
) -> Improvement:
    """Train a flow, in place, for one peptide on samples that it draws and weights itself; run again, it goes on.

    A round draws samples_per_round conformations, evaluates their energies, and resamples all rounds' by their exact
    importance weights (`OwnSamples`); `config.refresh_interval` steps of training follow. With p the target so
    resampled and T the teacher, the flow as it was given, the loss of the student q is

        E_p[-log q] + teacher_weight E_T[-log q], over 1 + teacher_weight,  + energy_weight log-variance,

    num_particles: with these p is also represented by particles, which sequential Monte Carlo brings from the flow to
    the force field (`molecular.sampling.smc`) in the first round, and which go on by moves_per_round steps in each, to
    conformations that training has not seen. Where few draws carry all the weight they are the better part of p.

    The loss's first part is, but for a constant, the divergence KL(m | q) from the mixture m of p and T in their
    shares. Hence the regulariser is a likelihood of unweighted teacher samples: q = m keeps every mode the teacher has,
    its importance weights p / m are at most 1 + teacher_weight, and the many teacher samples outvote the few
    conformations of large weight that likelihood alone would learn by heart. A penalty on parameters bounds neither.
    The last part (`nflib.training.LogVariance`) compares log q with the energies of all rows, resampled or not: each
    energy is a label even where its weight is nothing; 0 leaves it out.

    Rows are turned by the exact symmetries of the peptide, as in training. Raises ValueError for numbers out of range,
    a flow whose samples have no finite energies, or particles of a flow that `molecular.sampling.smc` cannot move.
    """
    if samples_per_round < 2 or batch_size < 1:
        raise ValueError(
            f"samples_per_round must be 2 or more and batch_size 1, not {samples_per_round}, {batch_size}."
        )
    if num_particles < 0 or num_particles == 1 or moves_per_round < 1:
        raise ValueError(
            f"num_particles must be 0, or 2 or more, and moves_per_round 1 or more, not {num_particles}, "
            f"{moves_per_round}."
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
        particles=_Particles(peptide, num_particles, moves_per_round, batch_size) if num_particles else None,
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
    return cast(Proposal, student.given(peptide) if isinstance(student, InternalProse | Prose) else student)


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


@dataclass(frozen=True)
class _Particles:
    """Particles from the flow in training, and then moved on, as `OwnSamples` asks for them."""

    peptide: Peptide
    count: int
    moves: int
    batch_size: int

    def __call__(
        self, flow: nn.Module, last: WeightedSamples | None, generator: torch.Generator
    ) -> tuple[WeightedSamples, int]:
        proposal = cast(SplitFlow, _proposal(flow, self.peptide))
        device = str(next(flow.parameters()).device)
        if last is None:
            drawn = smc(
                proposal,
                self.peptide,
                self.count,
                num_draws=DRAWS_PER_PARTICLE * self.count,
                final_moves=self.moves,
                batch_size=self.batch_size,
                seed=drawn_seed(generator),
                device=device,
            )
            return drawn, drawn.history.num_evaluations[-1]
        # A particle that has died has no weight to bring along.
        alive = torch.isfinite(last.log_weights)
        moved = move_at_target(
            proposal,
            self.peptide,
            last.x[alive],
            self.moves,
            batch_size=self.batch_size,
            generator=generator,
            device=device,
        )
        log_weights = last.log_weights[alive].where(torch.isfinite(moved.log_target), -torch.inf)
        return WeightedSamples(moved.x, log_weights, log_target=moved.log_target), moved.num_evaluations


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
