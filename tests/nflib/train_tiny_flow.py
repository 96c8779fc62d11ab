"""Trains a tiny flow; run by test_training under torchrun: train_tiny_flow.py OUTPUT."""

import sys
from pathlib import Path

import torch
from nflows.distributions import StandardNormal
from nflows.flows import Flow
from nflows.transforms import MaskedAffineAutoregressiveTransform

from nflib.training import LogVariance, Objective, TrainingConfig, fit, maximum_likelihood


def tiny_flow(seed: int = 0, hidden: int = 8) -> Flow:
    torch.manual_seed(seed)
    return Flow(MaskedAffineAutoregressiveTransform(3, hidden, num_blocks=1), StandardNormal([3]))


def train(output: Path) -> None:
    """Train once with each objective, into output/likelihood and output/log-variance."""
    inputs = torch.randn(40, 3, generator=torch.Generator().manual_seed(1)) * 2 + 1
    energy = (inputs**2).sum(dim=1) / 3
    energy[5] = float("inf")
    config = TrainingConfig(
        batch_size=8,
        max_steps=6,
        learning_rate=1e-2,
        validation_interval=3,
        log_interval=1,
        tensorboard=False,
        progress_bar=False,
        accelerator="cpu",
    )
    weights = torch.arange(40) % 4
    runs: dict[str, tuple[Objective, dict[str, torch.Tensor]]] = {
        "likelihood": (maximum_likelihood, {"inputs": inputs, "weights": weights}),
        "log-variance": (LogVariance(0.1, clip=1.0), {"inputs": inputs, "energy": energy}),
    }
    for name, (objective, data) in runs.items():
        fit(
            tiny_flow(),
            data,
            {key: values[:13] for key, values in data.items()},
            config=config,
            objective=objective,
            output=output / name,
            augment=lambda x, generator: x + 0.1 * torch.randn(x.shape, generator=generator),
        )


if __name__ == "__main__":
    torch.set_num_threads(1)
    train(Path(sys.argv[1]))
