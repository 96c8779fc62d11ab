"""A flow's own samples of one peptide with their energies, as what it is trained on next."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from molecular.training.labels import as_labels
from nflib.events import per_row
from nflib.flows import Flow
from nflib.montecarlo import (
    BoltzmannDensity,
    Proposal,
    WeightedSamples,
    effective_sample_size,
    importance_sample,
    normalized_weights,
    resample,
)
from nflib.processes import is_first_process
from nflib.random import drawn_seed

# Of a round, among its figures.
SIZE = "effective_sample_size_fraction"


class Particles(Protocol):
    """Weighted conformations at the target, `count` of them, such as sequential Monte Carlo brings there."""

    @property
    def count(self) -> int: ...

    def __call__(
        self, flow: nn.Module, last: WeightedSamples | None, generator: torch.Generator
    ) -> tuple[WeightedSamples, int]:
        """New particles (last: None), or the last round's after further moves, and how many energies they took."""
        ...


class ReplayBuffer:
    """Self-training's data: samples that the flow drew itself, with their energies; a `BatchSource`.

    Every `refresh` is a round: samples_per_round draws of the flow as it is, their reduced energies and exact
    log-weights, kept beside those of the rounds before. The first round's are the teacher's. With `particles`, each
    round's are kept as well. Rows are, samples_per_round of each kind, and in the first one more for each particle:

    - draws and particles of all rounds resampled by their weights (is_data 1): the target;
    - draws of the teacher without weights (is_data `teacher_weight`): the regulariser;
    - with `labelled`, draws of all later rounds without weights (is_data 0), which serve as labelled points alone.

    A round's draws, and its particles, have a share in the first part in proportion to their effective sample size. Of
    each such set of n the largest weights are cut to the sqrt(n)-th largest, so that no conformation is learnt by
    heart: none is more than one in so many. Cut weights are for training alone.

    Args:
        propose: makes the proposal of a flow in training.
        energy: the reduced energy, positions ``(B, n, 3)`` -> ``(B,)`` kT.
        samples_per_round: draws, and energies, of a round.
        teacher_weight: of the regulariser's rows.
        labelled: whether later draws serve as labelled points.
        context: ``(1, n, k)``, of a transferable flow.
        particles: conformations at the target, beside the draws; None for none.
        batch_size: conformations drawn at once.
        best: folder that gets the flow of each round whose effective sample size is the largest so far.

    Raises:
        ValueError: in the first round, where no draw has a finite energy.
    """

    def __init__(
        self,
        propose: Callable[[nn.Module], Proposal],
        energy: Callable[[Tensor], Tensor],
        samples_per_round: int,
        *,
        teacher_weight: float,
        labelled: bool,
        context: Tensor | None = None,
        particles: Particles | None = None,
        batch_size: int = 1000,
        best: Path | None = None,
    ):
        self.propose, self.energy, self.context, self.particles = propose, energy, context, particles
        self.samples_per_round, self.batch_size, self.best = samples_per_round, batch_size, best
        size, num_parts = samples_per_round, 3 if labelled else 2
        self.sizes = [size + (particles.count if particles else 0), size, size][:num_parts]
        self.is_data = torch.tensor([1.0, teacher_weight, 0.0][:num_parts]).repeat_interleave(torch.tensor(self.sizes))
        self.positions = torch.zeros(0)
        self.energies = torch.zeros(0, dtype=torch.float64)
        self.log_weights = torch.zeros(0, dtype=torch.float64)
        # Of the draws of round r 2 r, of its particles 2 r + 1.
        self.sets = torch.zeros(0, dtype=torch.int64)
        self.steps: list[int] = []
        self.spent: list[int] = []
        self.rows = torch.zeros(0, dtype=torch.int64)
        self.labels = torch.zeros(0, dtype=torch.float64)

    @property
    def num_energies(self) -> int:
        """Energies evaluated so far, a force counting as one."""
        return self.spent[-1] if self.spent else 0

    def rounds(self) -> list[dict[str, float]]:
        """Of each round the training step before it, the energies until then, and its draws' effective sample size."""
        return [
            {
                "step": step,
                "num_energies": spent,
                SIZE: effective_sample_size(self.log_weights[self.sets == 2 * number]) / self.samples_per_round,
            }
            for number, (step, spent) in enumerate(zip(self.steps, self.spent, strict=True))
        ]

    @property
    def best_round(self) -> dict[str, float]:
        """Of `rounds`, that of the largest effective sample size, the first of equals."""
        return max(self.rounds(), key=lambda part: part[SIZE])

    def __len__(self) -> int:
        return len(self.is_data)

    def batch(self, indices: Tensor) -> dict[str, Tensor]:
        """Rows: "inputs", "energy" (infinite: without a label), "is_data", and "context" if there is one."""
        chosen = self.rows[indices]
        batch = {
            "inputs": self.positions[chosen],
            "energy": self.labels[chosen],
            "is_data": self.is_data[indices],
        }
        if self.context is not None:
            batch["context"] = self.context.expand(len(indices), -1, -1)
        return batch

    def refresh(self, flow: nn.Module, step: int, generator: torch.Generator) -> None:
        """Another round: draw and label, move particles, and choose the rows anew."""
        drawn = importance_sample(
            self.propose(flow),
            BoltzmannDensity(self.energy),
            self.samples_per_round,
            batch_size=self.batch_size,
            generator=generator,
        )
        number, spent = len(self.steps), self.num_energies + self.samples_per_round
        self._keep(drawn, 2 * number)
        if self.particles is not None:
            moved, num_energies = self.particles(flow, self._particles_of(number - 1), generator)
            spent += num_energies
            self._keep(moved, 2 * number + 1)
        self.steps.append(step)
        self.spent.append(spent)
        self._choose(torch.Generator().manual_seed(drawn_seed(generator)))
        if self.best is not None and self.best_round["step"] == step and is_first_process():
            cast(Flow, flow).save_pretrained(self.best)

    def _keep(self, samples: WeightedSamples, number: int) -> None:
        assert samples.log_target is not None
        # Rejected samples stay, so that fractions are of all; they are chosen for no row.
        x, log_weights = samples.x.cpu(), samples.log_weights.cpu()
        finite = torch.isfinite(log_weights)
        positions = x.where(per_row(finite, x), 0.0)
        energies = torch.where(finite, -samples.log_target.cpu().double(), torch.inf)
        self.positions = torch.cat([self.positions, positions]) if len(self.sets) else positions
        self.energies = torch.cat([self.energies, energies])
        self.log_weights = torch.cat([self.log_weights, log_weights])
        self.sets = torch.cat([self.sets, torch.full((len(finite),), number)])

    def _particles_of(self, number: int) -> WeightedSamples | None:
        if number < 0:
            return None
        chosen = self.sets == 2 * number + 1
        return WeightedSamples(self.positions[chosen], self.log_weights[chosen], log_target=-self.energies[chosen])

    def _choose(self, generator: torch.Generator) -> None:
        """The rows of each part, and the labels."""
        weights = torch.zeros_like(self.log_weights)
        for number in self.sets.unique():
            weights[self.sets == number] = _share(self.log_weights[self.sets == number])
        usable = torch.isfinite(self.energies)
        teacher = usable & (self.sets == 0)
        if not bool(teacher.any()):
            raise ValueError(
                f"none of the flow's first {self.samples_per_round} samples has a finite energy; train it further, or "
                "draw more."
            )
        later = usable & (self.sets > 0) & (self.sets % 2 == 0)
        if not bool(later.any()):
            later = usable
        parts = (weights, teacher.double(), later.double())[: len(self.sizes)]
        self.rows = torch.cat([resample(part, size, generator) for part, size in zip(parts, self.sizes, strict=True)])
        order = self.energies.argsort()
        total = weights[order].cumsum(0)
        median = self.energies[order][torch.searchsorted(total, total[-1] / 2)]
        self.labels = as_labels(self.energies, median)

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _STATE}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the samples of a checkpoint.

        Raises ValueError for rounds of another size, TypeError for what is no state of such rounds.
        """
        if len(state["rows"]) != len(self):
            raise ValueError(
                f"the run was begun with rounds of {len(state['rows'])} rows, not {len(self)}; give the same "
                "samples_per_round, num_particles and energy_weight, or choose another output folder."
            )
        count, rounds = len(state["positions"]), len(state["steps"])
        rows = dict.fromkeys(("energies", "log_weights", "sets", "labels"), (count,)) | {"rows": (sum(self.sizes),)}
        wrong = [name for name, shape in rows.items() if state[name].shape != shape]
        known = not wrong and rounds == len(state["spent"]) and set(state["rows"].tolist()) <= set(range(count))
        if not known or not all(isinstance(number, int) for number in [*state["steps"], *state["spent"]]):
            raise TypeError(f"its {', '.join(wrong) or 'rows'} do not belong to {count} samples of {rounds} rounds")
        for name in _STATE:
            setattr(self, name, state[name])


_STATE = ("positions", "energies", "log_weights", "sets", "steps", "spent", "rows", "labels")


def _share(log_weights: Tensor) -> Tensor:
    """A round's weights, cut, with its effective sample size as their sum; zero where it has none."""
    if log_weights.max() == -torch.inf:
        return torch.zeros_like(log_weights)
    largest = log_weights.topk(math.isqrt(len(log_weights))).values
    cut = log_weights.clamp_max(float(largest[largest > -torch.inf].min()))
    return normalized_weights(cut) * effective_sample_size(log_weights)
