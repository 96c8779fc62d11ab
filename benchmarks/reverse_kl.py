"""Flows trained on an energy alone, without a single sample of it: TARFlow beside zuko's NSF, in one run.

    OMP_NUM_THREADS=1 python benchmarks/reverse_kl.py --threads 1 --seconds 30 --seeds 5

Targets: a mixture of four normals in two dimensions, scaled by a known constant, and a bent double well in eight. Both
have an exact normaliser and exact shares of their modes. Every entrant is trained by `nflib.training.fit` with
`ReverseKL`, by the same optimiser, for the same processor time: as many steps as a measurement beforehand says. All
start over-dispersed, as a normal that covers all modes, and the target is annealed, since a reverse Kullback-Leibler
divergence does not bring back a mode that the flow has left. "mixed" and "path" are estimators of `ReverseKL`.

Figures are of 10,000 draws with importance weights: their effective sample size, the error of log Z, and the largest
one in standard errors, of the seeds that have any (where Pareto k is above 0.7 none is given), and the smallest share
of draws (unweighted) that a mode has, as a fraction of its true one. Median and range of the seeds.
"""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import zuko
from common import argument_parser, count_parameters, markdown_table, median_and_range, prepare, quiet
from nflows.transforms import CompositeTransform
from torch import Tensor, nn
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from nflib.flows import Flow, TARFlow
from nflib.montecarlo import importance_sample
from nflib.training import ReverseKL, TrainingState, fit
from nflib.transforms import Standardize

DRAWS = 10_000
CALIBRATION_STEPS = 20
TEMPERATURE, ANNEALING = 10.0, 0.9


class FourModes:
    """Normals of width 0.5 at (±2, ±2), of unequal weights, times e^2: far apart, with next to nothing between."""

    name = "four modes"
    dimensions, width, log_normalizer = 2, 3.0, 2.0
    shares = torch.tensor([0.1, 0.2, 0.3, 0.4])

    def __init__(self) -> None:
        self.means = torch.tensor([[-2.0, -2.0], [-2.0, 2.0], [2.0, -2.0], [2.0, 2.0]])
        normals = Independent(Normal(self.means, torch.tensor(0.5)), 1)
        self.mixture = MixtureSameFamily(Categorical(self.shares), normals)

    def log_prob(self, x: Tensor) -> Tensor:
        """Up to a constant: `log_normalizer`."""
        return self.mixture.log_prob(x) + self.log_normalizer

    def mode(self, x: Tensor) -> Tensor:
        """The index of the mode that is nearest."""
        return torch.cdist(x, self.means).argmin(-1)


class DoubleWell:
    """``exp(-x_1^4 + 6 x_1^2 + x_1 / 2 - sum_i (x_i - (x_1^2 - 3) / 2)^2 / (2 * 0.5^2))`` for i = 2 ... 8.

    The barrier is 9 kT high. Given x_1 the others are normal, so that the normaliser is an integral over x_1.
    """

    name = "double well"
    dimensions, width = 8, 2.0

    def __init__(self) -> None:
        y = torch.linspace(-5, 5, 100_001, dtype=torch.float64)
        density = (-self._along(y)).exp()
        halves = torch.stack([density[y < 0].sum(), density[y > 0].sum()]) * (y[1] - y[0])
        self.shares = (halves / halves.sum()).float()
        self.log_normalizer = float(halves.sum().log()) + 3.5 * math.log(2 * math.pi * 0.25)

    def _along(self, y: Tensor) -> Tensor:
        return y**4 - 6 * y**2 - 0.5 * y

    def log_prob(self, x: Tensor) -> Tensor:
        """Up to a constant: `log_normalizer`."""
        first, others = x.split([1, 7], dim=-1)
        bent = others - 0.5 * (first**2 - 3)
        return -self._along(first[:, 0]) - 2 * bent.square().sum(-1)

    def mode(self, x: Tensor) -> Tensor:
        """0 or 1: the well on the left, or that on the right."""
        return (x[:, 0] > 0).long()


TARGETS: dict[str, Callable[[], FourModes | DoubleWell]] = {kind.name: kind for kind in (FourModes, DoubleWell)}


class ZukoFlow(nn.Module):
    """A flow of zuko with the methods that `ReverseKL` and Monte Carlo call; its base is `width` wide in x."""

    def __init__(self, flow: zuko.flows.Flow, width: float):
        super().__init__()
        self.flow = flow
        self.width = width

    def rsample(self, num_samples: int, generator: torch.Generator | None = None) -> Tensor:
        """Through the inverse by autograd, from torch's global generator, which `fit` seeds in every step."""
        return self.width * self.flow().rsample((num_samples,))

    def log_prob(self, inputs: Tensor, context: None = None) -> Tensor:
        """Log-densities ``(B,)``."""
        return self.flow().log_prob(inputs / self.width) - inputs.shape[-1] * math.log(self.width)

    def sample_and_log_prob(
        self, num_samples: int, *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Samples without a gradient, and their log-densities."""
        z, log_prob = self.flow().rsample_and_log_prob((num_samples,))
        return self.width * z, log_prob - z.shape[-1] * math.log(self.width)


Model = Flow | ZukoFlow


def tarflow(dimensions: int, width: float, **settings: Any) -> Flow:
    """A TARFlow that begins as a normal of that width."""
    flow = TARFlow((dimensions,), **settings)
    widen = Standardize(torch.zeros(dimensions), torch.full((dimensions,), width))
    return Flow(CompositeTransform([widen, flow._transform]), flow._distribution)


def splines(dimensions: int, width: float) -> Flow:
    """One token, of splines that are autoregressive inside it: the rest of a transformer would idle. Two blocks for the
    four modes, one for the double well, where a block costs more.
    """
    settings = {"channels": 32, "num_blocks": 2 if dimensions == 2 else 1, "layers_per_block": 1, "head_dim": 32}
    return tarflow(dimensions, width, patch_size=dimensions, conditional="spline", **settings)


def nsf(dimensions: int, width: float) -> ZukoFlow:
    """Autoregressive splines, of as many bins."""
    flow = zuko.flows.NSF(dimensions, transforms=2, bins=8, hidden_features=(64, 64))
    return ZukoFlow(flow, width)


@dataclass(frozen=True)
class Entrant:
    """How to build a flow from dimensions and width, the estimator, and learning rate and batch size by target."""

    build: Callable[[int, float], Model]
    estimator: str
    settings: dict[str, tuple[float, int]]


HEADER = [
    "model",
    "parameters",
    "ESS",
    "log Z error / nats",
    "largest error / s.e.",
    "Pareto k",
    "least share of a mode",
    "steps",
    "CPU s",
]
TARFLOW = {"four modes": (6e-3, 512), "double well": (5e-3, 128)}
NSF = {"four modes": (1e-2, 1024), "double well": (5e-3, 128)}
ENTRANTS = {
    "nflib TARFlow, splines, mixed": Entrant(splines, "mixed", TARFLOW),
    "nflib TARFlow, splines, path": Entrant(splines, "path", TARFLOW),
    "zuko NSF, mixed": Entrant(nsf, "mixed", NSF),
    "zuko NSF, path": Entrant(nsf, "path", NSF),
}


def train(entrant: Entrant, target: FourModes | DoubleWell, seconds: float, seed: int) -> tuple[Model, int, float]:
    """The trained flow, the steps, and the processor time that they took."""

    learning_rate, batch_size = entrant.settings[target.name]

    def run(steps: int) -> tuple[Model, float]:
        torch.manual_seed(seed)
        flow = entrant.build(target.dimensions, target.width)
        config = quiet(
            seed,
            max_steps=steps,
            learning_rate=learning_rate,
            ema_decay=0.99,
            weight_decay=0.0,
            log_interval=steps,
        )
        objective = ReverseKL(target, batch_size, entrant.estimator, TEMPERATURE, ANNEALING)
        seen: list[float] = []

        def clock(state: TrainingState) -> None:
            if state.step in (3, steps):  # the first steps measure decoders and allocate
                seen.append(time.process_time())

        with tempfile.TemporaryDirectory() as folder:
            fit(flow, config=config, objective=objective, output=folder, callbacks=[clock])
        return flow, (seen[1] - seen[0]) / (steps - 3)

    _, per_step = run(CALIBRATION_STEPS)
    steps = max(round(seconds / per_step), 10)
    flow, per_step = run(steps)
    return flow, steps, steps * per_step


@dataclass(frozen=True)
class Figures:
    """Of one trained flow: effective sample size as a share of the draws, error of log Z in nats and its standard error
    (infinite where `WeightedSamples` refuses to give one), Pareto k, and the least share of a mode.
    """

    ess: float
    error: float
    standard_error: float
    pareto_k: float
    least_share: float

    @classmethod
    def of(cls, flow: Model, target: FourModes | DoubleWell, seed: int) -> Figures:
        torch.manual_seed(seed)
        draws = importance_sample(flow, target, DRAWS, seed=seed)
        counts = torch.bincount(target.mode(draws.x), minlength=len(target.shares))
        return cls(
            draws.effective_sample_size_fraction,
            draws.log_normalizer - target.log_normalizer,
            draws.log_normalizer_standard_error,
            draws.pareto_k,
            float((counts / counts.sum() / target.shares).min()),
        )

    @property
    def in_standard_errors(self) -> float:
        return abs(self.error) / self.standard_error if math.isfinite(self.standard_error) else math.nan


def main() -> None:
    """Train every entrant on every target and print a table for each."""
    parser = argument_parser(__doc__)
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--models", nargs="+", choices=ENTRANTS, default=list(ENTRANTS))
    parser.add_argument("--seconds", type=float, default=30.0, help="processor time of each training")
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    prepare(arguments)
    for name in arguments.targets:
        rows = []
        for model in arguments.models:
            target, runs, costs = TARGETS[name](), list[Figures](), list[tuple[int, float]]()
            for seed in range(arguments.seed, arguments.seed + arguments.seeds):
                flow, steps, seconds = train(ENTRANTS[model], target, arguments.seconds, seed)
                runs.append(Figures.of(flow, target, seed))
                costs.append((steps, seconds))
                print(name, model, seed, runs[-1], steps, f"{seconds:.1f} s", flush=True)
            told = [run.in_standard_errors for run in runs if not math.isnan(run.in_standard_errors)]
            rows.append(
                [
                    model,
                    count_parameters(flow),
                    median_and_range([run.ess for run in runs]),
                    median_and_range([run.error for run in runs]),
                    f"{max(told):.1f} of {len(told)}" if told else "none",
                    median_and_range([run.pareto_k for run in runs], 2),
                    median_and_range([run.least_share for run in runs], 2),
                    *(f"{statistics.median(column):.0f}" for column in zip(*costs, strict=True)),
                ]
            )
        print(f"\n{name}, log Z = {target.log_normalizer:.4f}, {arguments.seeds} seeds: median (range)")
        print(markdown_table(HEADER, rows), flush=True)


if __name__ == "__main__":
    main()
