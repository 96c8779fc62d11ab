"""Self-improvement: a flow is trained further for one molecule on its own weighted samples, without simulation."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from molecular.flows.conformations import ConformationFlow
from molecular.molecule.molecule import Molecule
from molecular.molecule.storage import refuse_another_molecule, save_molecule
from molecular.sampling.sequential import SplitFlow, move_at_target, smc
from molecular.sampling.targets import energy_for
from molecular.training.beginnings import refuse_another_beginning
from molecular.training.labels import CLIP
from molecular.training.replay_buffer import SIZE, ReplayBuffer
from nflib.io import fingerprint
from nflib.montecarlo import Proposal, WeightedSamples
from nflib.processes import is_first_process
from nflib.random import derived_generator, drawn_seed
from nflib.training import LogVariance, TrainingConfig, TrainingResult, alone, fit, has_begun
from nflib.training.seeds import REFRESH

# The better draws of the flow become particles. Draws are cheap beside moves.
DRAWS_PER_PARTICLE = 3

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Improvement:
    """The result of `improve`.

    Args:
        training: what `nflib.training.fit` gave.
        rounds: of each the training step before it, the energies until then, and the effective sample size (a fraction)
            of draws of the flow as it was before that round's training.
        num_energies: evaluated in all; a force counts as one.
        kept_step: training step of the flow that was kept.
    """

    training: TrainingResult
    rounds: list[dict[str, float]]
    num_energies: int
    kept_step: int


def improve(
    flow: ConformationFlow,
    molecule: Molecule,
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
    """Self-training: train a flow, in place, for one molecule on samples that it draws and weights itself.

    A round draws conformations, evaluates their energies, and resamples all rounds' by their exact importance weights
    (`ReplayBuffer`); `config.refresh_interval` steps of training follow. Run again, it goes on. With p the target so
    resampled and T the teacher, the flow as it was given, the loss of the student q is

        E_p[-log q] + teacher_weight E_T[-log q], over 1 + teacher_weight,  + energy_weight log-variance

    without particles; with them the weight of E_p, and 1 in that sum, are (samples_per_round + num_particles) /
    samples_per_round.

    The loss's first part is, but for a constant, the divergence KL(m | q) from the mixture m of p and T in their
    shares. Hence the regulariser is a likelihood of unweighted teacher samples: q = m keeps every mode the teacher has,
    its importance weights p / m are at most 1 + teacher_weight, and the many teacher samples outvote the few
    conformations of large weight that likelihood alone would learn by heart. A penalty on parameters bounds neither.
    The last part (`nflib.training.LogVariance`) compares log q with the energies of all rows, resampled or not: each
    energy is a label even where its weight is nothing.

    Particles represent p beside the draws where few of these carry all the weight: sequential Monte Carlo brings them
    from the flow to the force field (`molecular.sampling.smc`) in the first round, and they go on by steps in each, to
    conformations that training has not seen. Rows are turned by the exact symmetries of the molecule, as in training.

    The flow after the last round is kept, unless the last round's draws were worth less than an earlier round's: then
    it is the flow that made the best of them, which may be the teacher.

    Args:
        flow: to train.
        molecule: what it is of, at the temperature that samples are weighted to.
        output: folder for the model with its molecule, the flow of the best round, checkpoints and logs.
        config: of the training.
        samples_per_round: conformations drawn, and energies evaluated, in each round.
        teacher_weight: of the likelihood of the first flow's own samples beside that of the resampled ones, which keeps
            the flow from forgetting and from learning single conformations by heart. Particles add to the resampled
            rows, so that with them the teacher's share is smaller.
        energy_weight: of the log-variance of the importance weights, with energies as labels; 0 for likelihood alone.
        num_particles: brought to the force field by sequential Monte Carlo, to learn from beside weighted draws.
        moves_per_round: steps by which particles go on in each round, an energy each, after one where they stand.
        batch_size: conformations decoded at once.

    Raises:
        ValueError: numbers out of range, a flow whose samples have no finite energies, particles of a flow that
            `molecular.sampling.smc` cannot move, or a folder of a run for another molecule, temperature or flow.
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
    output = Path(output)
    model, best = output / "model", output / "best"
    source = ReplayBuffer(
        lambda student: _proposal(student, molecule),
        _Energy(flow, molecule),
        samples_per_round,
        teacher_weight=teacher_weight,
        labelled=energy_weight > 0,
        context=flow.context(molecule),
        particles=_Particles(molecule, num_particles, moves_per_round, batch_size) if num_particles else None,
        batch_size=batch_size,
        best=best,
    )
    with alone(output):
        # A run that goes on has its rounds in the checkpoint, with energies of the molecule that lies beside the model.
        refuse_another_molecule(model, molecule)
        settings = {
            "teacher_weight": teacher_weight,
            "energy_weight": energy_weight,
            "moves_per_round": moves_per_round,
        }
        refuse_another_beginning(output, model, None, fingerprint(flow.state_dict().values()), settings)
        if not has_begun(output):
            if is_first_process():
                save_molecule(molecule, model)
            log.info("Drawing %d samples of %s.", samples_per_round, molecule.name)
            source.refresh(flow.eval(), 0, derived_generator(config.seed, REFRESH, 0))
        symmetries = flow.augmentation(molecule)
        result = fit(flow, source, config=config, objective=objective, output=output, augment=symmetries)
        rounds, kept_step, before = source.rounds(), result.steps, source.best_round
        # Runs of earlier versions have no flow of their best round.
        if before[SIZE] > rounds[-1][SIZE] and best.is_dir():
            kept_step = int(before["step"])
            flow.load_state_dict(type(flow).from_pretrained(best).state_dict())
            if is_first_process():
                flow.save_pretrained(model)
    return Improvement(result, rounds, source.num_energies, kept_step)


def _proposal(student: nn.Module, molecule: Molecule) -> Proposal:
    """The flow in training, given the molecule."""
    return cast(Proposal, cast(ConformationFlow, student).given(molecule))


class _Energy:
    """`energy_for` a flow, on whichever device its samples are: training moves the flow."""

    def __init__(self, flow: ConformationFlow, molecule: Molecule):
        self.flow, self.molecule = flow, molecule
        self.made: dict[torch.device, Any] = {}

    def __call__(self, positions: Tensor) -> Tensor:
        device = positions.device
        if device not in self.made:
            self.made[device] = energy_for(self.flow.given(self.molecule), self.molecule, device)
        energies: Tensor = self.made[device](positions)
        return energies


@dataclass(frozen=True)
class _Particles:
    """Particles from the flow in training, and then moved on, as `ReplayBuffer` asks for them."""

    molecule: Molecule
    count: int
    moves: int
    batch_size: int

    def __call__(
        self, flow: nn.Module, last: WeightedSamples | None, generator: torch.Generator
    ) -> tuple[WeightedSamples, int]:
        proposal = cast(SplitFlow, _proposal(flow, self.molecule))
        device = str(next(flow.parameters()).device)
        if last is None:
            drawn = smc(
                proposal,
                self.molecule,
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
            self.molecule,
            last.x[alive],
            self.moves,
            batch_size=self.batch_size,
            generator=generator,
            device=device,
        )
        log_weights = last.log_weights[alive].where(torch.isfinite(moved.log_target), -torch.inf)
        return WeightedSamples(moved.x, log_weights, log_target=moved.log_target), moved.num_evaluations
