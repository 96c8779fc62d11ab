"""Flows fitted to energies alone: TARFlow beside zuko's NSF, by the same reverse-KL loss in the same time.

    python benchmarks/reverse_kl.py --seconds 120 --threads 1

Targets, whose normalisers are known: a mixture of four Gaussians of unequal weight in two dimensions, times e^3; and
a double well in eight, whose wells are 4.5 kT deep, the other seven numbers Gaussian about a line in the first. All
flows start as normals of standard deviation 3, wider than the targets. The loss is `nflib.training.ReverseKL` with 256
draws a step, the optimiser Adam, the learning rate falling to zero by a cosine. In the first half of training the
target is p^b, b rising from 0.1 to 1: without that (--annealing 0) a well was lost in eight dimensions. Time is that of
the process (the machine may do other things). Judged by 10,000 draws of the last weights.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import zuko
from common import argument_parser, count_parameters, markdown_table, prepare
from nflows.transforms import CompositeTransform
from torch import Tensor, nn

from nflib import Flow
from nflib.distributions import StandardNormal
from nflib.flows import autoregressive_blocks
from nflib.montecarlo import BoltzmannDensity, importance_sample
from nflib.training import ReverseKL
from nflib.transforms import Standardize, VectorPatches

WIDTH = 3.0
NUM_DRAWS = 256
NUM_JUDGED = 10_000


@dataclass(frozen=True)
class Target:
    """A density up to its normaliser, and the logarithm of that."""

    dimensions: int
    density: BoltzmannDensity
    log_normalizer: float


def mixture() -> Target:
    centres = torch.tensor([[-2.5, -2.5], [-2.5, 2.5], [2.5, -2.5], [2.5, 2.5]])
    log_weights = torch.tensor([0.1, 0.2, 0.3, 0.4]).log()
    width, log_z = 0.5, 3.0

    def energy(x: Tensor) -> Tensor:
        distances = (x[:, None] - centres).square().sum(-1)
        log_prob = torch.logsumexp(log_weights - distances / (2 * width**2), 1) - math.log(2 * math.pi * width**2)
        return -log_prob - log_z

    return Target(2, BoltzmannDensity(energy), log_z)


def double_well() -> Target:
    slopes = torch.linspace(-0.6, 0.6, 7)
    width = 0.5

    def well(first: Tensor) -> Tensor:
        return 0.5 * (first.square() - 3.0).square() + 0.3 * first

    def energy(x: Tensor) -> Tensor:
        rest = x[:, 1:] - slopes * x[:, :1]
        return well(x[:, 0]) + rest.square().sum(-1) / (2 * width**2)

    grid = torch.linspace(-8, 8, 100_001, dtype=torch.float64)
    first = float(torch.trapezoid((-well(grid)).exp(), grid).log())
    return Target(8, BoltzmannDensity(energy), first + 3.5 * math.log(2 * math.pi * width**2))


TARGETS: dict[str, Callable[[], Target]] = {"four modes, 2-D": mixture, "double well, 8-D": double_well}


def tarflow(dimensions: int, conditional: str) -> Flow:
    patch_size = 1 if dimensions == 2 or conditional == "affine" else 4
    token_shape = (dimensions // patch_size, patch_size)
    blocks = autoregressive_blocks(
        token_shape,
        channels=32,
        num_blocks=4,
        layers_per_block=1,
        head_dim=16,
        expansion=2,
        conditional=conditional,
        start_token=True,
    )
    scale = Standardize(torch.zeros(dimensions), torch.full((dimensions,), WIDTH))
    return Flow(
        CompositeTransform([scale, VectorPatches((dimensions,), patch_size), *blocks]), StandardNormal(token_shape)
    )


class Annealed:
    """The density p^b, for a b that rises from a tenth to 1 in the given share of the training."""

    def __init__(self, density: BoltzmannDensity, share: float):
        self.density, self.share = density, share
        self.inverse_temperature = 1.0

    def set_progress(self, done: float) -> None:
        self.inverse_temperature = 10 ** (min(done / self.share, 1.0) - 1) if self.share else 1.0

    def log_prob(self, inputs: Tensor, /) -> Tensor:
        return self.inverse_temperature * self.density.log_prob(inputs)


class Peer(nn.Module):
    """zuko's NSF, of the same width at the start, with the methods that the loss and the weights ask for."""

    def __init__(self, dimensions: int):
        super().__init__()
        self.flow = zuko.flows.NSF(dimensions, transforms=4, hidden_features=(64, 64), bins=8)
        self.dimensions = dimensions

    def rsample(self, num_samples: int, *, generator: torch.Generator | None = None) -> Tensor:
        noise = torch.randn(num_samples, self.dimensions, generator=generator)
        return WIDTH * self.flow().transform.inv(noise)

    def log_prob(self, inputs: Tensor, context: None = None) -> Tensor:
        return self.flow().log_prob(inputs / WIDTH) - self.dimensions * math.log(WIDTH)

    @torch.no_grad()
    def sample_and_log_prob(
        self, num_samples: int, *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        x = self.rsample(num_samples, generator=generator)
        return x, self.log_prob(x)


FLOWS: dict[str, tuple[Callable[[int], nn.Module], float]] = {
    "TARFlow, splines": (lambda d: tarflow(d, "spline"), 3e-3),
    "TARFlow, affine": (lambda d: tarflow(d, "affine"), 3e-3),
    "zuko NSF": (Peer, 3e-3),
}


def fit(flow: nn.Module, objective: ReverseKL, target: Annealed, rate: float, seconds: float, seed: int) -> int:
    """Train for so many seconds of the processor; returns the number of steps."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(flow.parameters(), rate)
    start, steps = time.process_time(), 0
    while (done := (time.process_time() - start) / seconds) < 1:
        target.set_progress(done)
        for group in optimizer.param_groups:
            group["lr"] = rate * 0.5 * (1 + math.cos(math.pi * done))
        loss, _ = objective(flow, {}, generator)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(flow.parameters(), 10.0)
        optimizer.step()
        steps += 1
    return steps


def judge(flow: nn.Module, target: Target, seed: int) -> tuple[float, float, float]:
    """ESS as a fraction, error of log Z, and the same in standard errors."""
    flow.eval()
    samples = importance_sample(flow, target.density, NUM_JUDGED, seed=seed)  # type: ignore[arg-type]
    error = samples.log_normalizer - target.log_normalizer
    return samples.effective_sample_size / NUM_JUDGED, error, error / samples.log_normalizer_standard_error


def arguments() -> argparse.Namespace:
    parser = argument_parser(__doc__)
    parser.add_argument("--seconds", type=float, default=120.0, help="of the processor, for each training")
    parser.add_argument("--seeds", type=int, default=5, help="how many trainings of each flow")
    parser.add_argument("--targets", nargs="+", default=list(TARGETS), choices=TARGETS)
    parser.add_argument("--flows", nargs="+", default=list(FLOWS), choices=FLOWS)
    parser.add_argument("--annealing", type=float, default=0.5, help="share of the training in which p is flattened")
    parser.add_argument("--estimator", default="path", choices=("path", "total"))
    return parser.parse_args()


def main() -> None:
    options = arguments()
    prepare(options)
    rows: list[list[object]] = []
    for name in options.targets:
        target = TARGETS[name]()
        annealed = Annealed(target.density, options.annealing)
        objective = ReverseKL(annealed, NUM_DRAWS, options.estimator)
        for kind in options.flows:
            build, rate = FLOWS[kind]
            results, steps = [], []
            for seed in range(options.seed, options.seed + options.seeds):
                torch.manual_seed(seed)
                flow = build(target.dimensions)
                steps.append(fit(flow, objective, annealed, rate, options.seconds, seed))
                results.append(judge(flow, target, 1000 + seed))
            sizes, errors, scores = (np.array(column) for column in zip(*results, strict=True))
            rows.append(
                [
                    name,
                    kind,
                    count_parameters(flow),
                    round(statistics.median(steps)),
                    f"{np.median(sizes):.3f} ({sizes.min():.3f} to {sizes.max():.3f})",
                    f"{np.median(errors):+.4f}",
                    f"{np.abs(scores).max():.1f}",
                ]
            )
            print(rows[-1], flush=True)
    header = ["target", "flow", "parameters", "steps", "ESS: median (range)", "log Z, error", "largest, in std errors"]
    print(markdown_table(header, rows))


if __name__ == "__main__":
    main()
