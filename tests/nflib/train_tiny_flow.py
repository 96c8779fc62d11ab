"""Trains a tiny flow; the tests of training start it as a process: train_tiny_flow.py OUTPUT [SECONDS [WORKERS]].

Without seconds it trains once with each objective; with them so many between steps, so that there is time for a signal.
"""

import os
import sys
import time
from pathlib import Path

import torch
from nflows.distributions import StandardNormal
from nflows.flows import Flow
from nflows.transforms import MaskedAffineAutoregressiveTransform

from nflib.training import LogVariance, Objective, TrainingConfig, TrainingState, fit, maximum_likelihood

CONFIG = {
    "batch_size": 8,
    "learning_rate": 1e-2,
    "log_interval": 1,
    "tensorboard": False,
    "progress_bar": False,
    "accelerator": "cpu",
}


def tiny_flow(seed: int = 0, hidden: int = 8) -> Flow:
    torch.manual_seed(seed)
    return Flow(MaskedAffineAutoregressiveTransform(3, hidden, num_blocks=1), StandardNormal([3]))


def points() -> torch.Tensor:
    return torch.randn(40, 3, generator=torch.Generator().manual_seed(1)) * 2 + 1


def jitter(inputs: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return inputs + 0.1 * torch.randn(inputs.shape, generator=generator)


def train(output: Path) -> None:
    """Train once with each objective, into output/likelihood and output/log-variance."""
    inputs = points()
    energy = (inputs**2).sum(dim=1) / 3
    energy[5] = float("inf")
    config = TrainingConfig(max_steps=6, validation_interval=3, **CONFIG)  # type: ignore[arg-type]
    runs: dict[str, tuple[Objective, dict[str, torch.Tensor]]] = {
        "likelihood": (maximum_likelihood, {"inputs": inputs, "weights": torch.arange(40) % 4}),
        "log-variance": (LogVariance(0.1, clip=1.0), {"inputs": inputs, "energy": energy}),
    }
    for name, (objective, data) in runs.items():
        few = {key: values[:13] for key, values in data.items()}
        path = output / name
        fit(tiny_flow(), data, few, config=config, objective=objective, output=path, augment=jitter)


def train_slowly(output: Path, seconds: float, workers: int = 0) -> None:
    """Train for 30 steps with no checkpoint but the last; output/pid-RANK appears after the third step."""

    def wait(state: TrainingState) -> None:
        if seconds and state.step == 3:
            (output / f"pid-{os.environ.get('RANK', 0)}").write_text(str(os.getpid()))
        time.sleep(seconds)

    config = TrainingConfig(
        max_steps=30,
        validation_interval=4,
        checkpoint_interval=None,
        checkpoint_seconds=None,
        num_workers=workers,
        **CONFIG,  # type: ignore[arg-type]
    )
    data = torch.utils.data.TensorDataset(points())
    fit(tiny_flow(), data, points()[:13], config=config, output=output, augment=jitter, callbacks=[wait])


if __name__ == "__main__":
    torch.set_num_threads(1)
    if len(sys.argv) == 2:
        train(Path(sys.argv[1]))
    else:
        train_slowly(Path(sys.argv[1]), float(sys.argv[2]), *map(int, sys.argv[3:]))
