"""A flow's own samples of one peptide with their energies, as what it is trained on next."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from molecular.boltzmann import HIGHEST_ENERGY
from nflib.montecarlo import BoltzmannDensity, Proposal, importance_sample, resample
from nflib.montecarlo.diagnostics import effective_sample_size, normalized_weights


class OwnSamples:
    """Rows of samples that the flow drew itself, in rounds, each labelled with its energy; a `BatchSource`.

    Every `refresh` is a round: samples_per_round draws of the flow as it is, their reduced energies and exact
    log-weights, kept beside those of the rounds before. The first round's are the teacher's. Rows are, in equal parts:

    - samples of all rounds resampled by their weights (is_data 1): the target;
    - draws of the teacher without weights (is_data `teacher_weight`): the regulariser;
    - with `labelled`, draws of all later rounds without weights (is_data 0), which serve as labelled points alone.

    A round's share in the first part is in proportion to its effective sample size. Of each round the largest weights
    are cut to the sqrt(samples_per_round)-th largest, so that no conformation is learnt by heart: none is more than one
    in so many. Cut weights are for training alone.

    propose: the proposal that a flow in training makes. context: ``(1, n, k)``, of a transferable flow. Raises
    ValueError, in a round, where no sample so far has a finite energy.
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
        batch_size: int = 1000,
    ):
        self.propose, self.energy, self.context = propose, energy, context
        self.samples_per_round, self.batch_size = samples_per_round, batch_size
        self.weight_of_part = torch.tensor([1.0, teacher_weight, 0.0][: 3 if labelled else 2])
        self.positions = torch.zeros(0)
        self.energies = torch.zeros(0, dtype=torch.float64)
        self.log_weights = torch.zeros(0, dtype=torch.float64)
        self.steps: list[int] = []
        self.rows = torch.zeros(0, dtype=torch.int64)
        self.labels = torch.zeros(0, dtype=torch.float64)

    @property
    def num_energies(self) -> int:
        """Energies evaluated so far."""
        return len(self.energies)

    def rounds(self) -> list[dict[str, float]]:
        """Of each round the training step before it, the energies until then, and its effective sample size."""
        size = self.samples_per_round
        return [
            {
                "step": step,
                "num_energies": (index + 1) * size,
                "effective_sample_size_fraction": effective_sample_size(part) / size,
            }
            for index, (step, part) in enumerate(zip(self.steps, self.log_weights.split(size), strict=True))
        ]

    def __len__(self) -> int:
        return len(self.weight_of_part) * self.samples_per_round

    def batch(self, indices: Tensor) -> dict[str, Tensor]:
        """Rows: "inputs", "energy" (infinite: without a label), "is_data", and "context" if there is one."""
        chosen = self.rows[indices]
        batch = {
            "inputs": self.positions[chosen],
            "energy": self.labels[chosen],
            "is_data": self.weight_of_part[indices // self.samples_per_round],
        }
        if self.context is not None:
            batch["context"] = self.context.expand(len(indices), -1, -1)
        return batch

    def refresh(self, flow: nn.Module, step: int, generator: torch.Generator) -> None:
        """Another round: draw, label, and choose the rows anew."""
        drawn = importance_sample(
            self.propose(flow),
            BoltzmannDensity(self.energy),
            self.samples_per_round,
            batch_size=self.batch_size,
            generator=generator,
        )
        assert drawn.log_target is not None
        # Rejected samples stay, so that rounds are equally long; they are chosen for no row.
        finite = torch.isfinite(drawn.log_weights)
        positions = drawn.x.where(finite.view(-1, *[1] * (drawn.x.dim() - 1)), 0.0)
        energies = torch.where(finite, -drawn.log_target.double(), torch.inf)
        first = not self.steps
        self.positions = positions if first else torch.cat([self.positions, positions])
        self.energies = torch.cat([self.energies, energies])
        self.log_weights = torch.cat([self.log_weights, drawn.log_weights])
        self.steps.append(step)
        self._choose(torch.Generator().manual_seed(_seed(generator)))

    def _choose(self, generator: torch.Generator) -> None:
        """The rows of each part, and the labels."""
        size = self.samples_per_round
        weights = torch.cat([_share(part) for part in self.log_weights.split(size)])
        if not bool((weights > 0).any()):
            raise ValueError(
                f"none of the flow's {len(weights)} samples has a finite energy; train it further, or draw more."
            )
        usable = torch.isfinite(self.energies)
        later = usable & (torch.arange(len(usable)) >= size)
        teacher = usable.clone()
        teacher[size:] = False
        if not bool(later.any()):
            later = usable
        parts = [
            resample(weights, size, generator),
            *(resample(part.double(), size, generator) for part in (teacher, later)),
        ]
        self.rows = torch.cat(parts[: len(self.weight_of_part)])
        order = self.energies.argsort()
        total = weights[order].cumsum(0)
        median = self.energies[order][torch.searchsorted(total, total[-1] / 2)]
        self.labels = torch.where(self.energies < median + HIGHEST_ENERGY, self.energies, torch.inf)

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _STATE}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in _STATE:
            setattr(self, name, state[name])


_STATE = ("positions", "energies", "log_weights", "steps", "rows", "labels")


def _share(log_weights: Tensor) -> Tensor:
    """A round's weights, cut, with its effective sample size as their sum; zero where it has none."""
    if log_weights.max() == -torch.inf:
        return torch.zeros_like(log_weights)
    largest = log_weights.topk(math.isqrt(len(log_weights))).values
    cut = log_weights.clamp_max(float(largest[largest > -torch.inf].min()))
    return normalized_weights(cut) * effective_sample_size(log_weights)


def _seed(generator: torch.Generator) -> int:
    return int(torch.randint(2**62, (), generator=generator, device=generator.device))
