"""What the tests of training share: a flow of which everything is known, settings, and a record of losses."""

from __future__ import annotations

import csv
from pathlib import Path

import torch
from torch import nn

from nflib.training import TrainingConfig, TrainingState
from tests.quiet import QUIET


class Gaussian(nn.Module):
    """log N(x; mean, exp(log_scale)^2) with dropout on the mean: everything about it is known."""

    def __init__(self, size: int = 2, dropout: float = 0.0) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(size))
        self.log_scale = nn.Parameter(torch.zeros(size))
        self.dropout = nn.Dropout(dropout)

    def log_prob(self, inputs: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:
        mean = self.dropout(self.mean.expand_as(inputs))
        return torch.distributions.Normal(mean, self.log_scale.exp()).log_prob(inputs).sum(dim=1)

    def rsample(
        self, num_samples: int, context: torch.Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        noise = torch.randn(num_samples, len(self.mean), generator=generator, dtype=self.mean.dtype)
        return self.mean + self.log_scale.exp() * noise


def configuration(**changes: object) -> TrainingConfig:
    settings: dict[str, object] = {
        "batch_size": 16,
        "max_steps": 12,
        "learning_rate": 1e-2,
        "validation_interval": 4,
        "checkpoint_interval": 5,
        "log_interval": 1,
        **QUIET,
    }
    return TrainingConfig(**(settings | changes))  # type: ignore[arg-type]


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def logged(output: Path, column: str = "loss", version: int = 0) -> list[float]:
    with (output / "logs" / f"version_{version}" / "metrics.csv").open() as file:
        return [float(row[column]) for row in csv.DictReader(file) if row[column]]


class Record:
    """Callback that keeps the losses, and breaks off after a step if asked to."""

    def __init__(self, fail_at: int | None = None) -> None:
        self.losses: list[float] = []
        self.steps: list[int] = []
        self.rates: list[float] = []
        self.fail_at = fail_at

    def __call__(self, state: TrainingState) -> None:
        self.steps.append(state.step)
        self.losses.append(state.loss)
        self.rates.append(state.learning_rate)
        if state.step == self.fail_at:
            raise InterruptedError("stopped by the test")
