"""Do stated errors hold? How often the truth lies within one and two standard errors, over repeated runs.

    python benchmarks/coverage.py --runs 100

Targets of known normaliser and moments: (a) a Gaussian a little off its proposal; (b) Student's t, from one of lighter
tails: the weights have a tail of Pareto shape k = 0.5, 0.6 or 0.7, and no variance; (c) a mixture of modes; (d) a
double well of 8 dimensions; (e) Student's t with k = 0.9, and a Gaussian shifted in 8 dimensions, where no error can be
trusted and none should be stated; (f) a Gaussian of ten times the proposal's variance: most of it lies where hardly a
draw does, which the draws themselves hardly show. Each by importance sampling and by sequential Monte Carlo, with
adaptive temperatures and in a single step. For normal errors that are right, 68 % and 95 % of the runs hold the truth.
A run is refused where it states an infinite error; it then counts in no later column. "worst score": the largest
|error| over stated error. "width": the median stated error over the root mean square of the errors made.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from common import argument_parser, markdown_table, prepare
from scipy import stats
from scipy.integrate import quad
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal, StudentT

from nflib.montecarlo import HMC, AdaptiveTemperatures, BoltzmannDensity, WeightedSamples, importance_sample, smc


@dataclass(frozen=True)
class Problem:
    """A proposal and a target, and what is known of it: log-normaliser, and the mean of a function of x."""

    proposal: torch.distributions.Distribution
    energy: Callable[[Tensor], Tensor]
    log_normalizer: float
    function: Callable[[Tensor], Tensor]
    mean: float
    num_samples: int
    num_particles: int


def gaussian(dim: int, scale: float, shift: float = 0.0) -> torch.distributions.Distribution:
    """Isotropic, in float64."""
    return Independent(Normal(torch.full((dim,), shift, dtype=torch.float64), scale), 1)


def off_gaussian(dim: int, shift: float, variance: float, counts: tuple[int, int]) -> Problem:
    """From the standard normal to another isotropic one: (x - shift)^2 / (2 variance)."""
    return Problem(
        gaussian(dim, 1.0),
        lambda x: 0.5 * (x - shift).square().sum(-1) / variance,
        0.5 * dim * math.log(2 * math.pi * variance),
        lambda x: x[:, 0].square(),
        variance + shift**2,
        *counts,
    )


def student(k: float, degrees: float = 10.0) -> Problem:
    """From Student's t to one of fewer degrees of freedom, (1 - k) times as many: weights of tail shape k."""
    fewer = (1.0 - k) * degrees
    proposal, target = (StudentT(torch.tensor(number, dtype=torch.float64)) for number in (degrees, fewer))
    outside = 2.0 * stats.t(fewer).sf(2.0)
    return Problem(proposal, lambda x: -target.log_prob(x), 0.0, lambda x: (x.abs() > 2.0).double(), outside, 1000, 500)


def problems() -> dict[str, Problem]:
    """All of them, by name."""
    corners = 3.0 * torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]], dtype=torch.float64)
    shares = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
    modes = MixtureSameFamily(
        Categorical(shares), Independent(Normal(corners, torch.full_like(corners, 0.6)), 1), validate_args=False
    )

    spreads = torch.tensor([3.0] + 7 * [0.5], dtype=torch.float64).sqrt()

    def well(x: Any) -> Any:
        return x**4 - 6 * x**2 + x

    integrals = [quad(lambda x, n=n: x**n * math.exp(-well(x) - 10), -6, 6, epsabs=1e-13)[0] for n in (0, 1)]
    return {
        "(a) Gaussian, 2 d": off_gaussian(2, 0.4, 0.8, (1000, 500)),
        "(b) k = 0.5": student(0.5),
        "(b) k = 0.6": student(0.6),
        "(b) k = 0.7": student(0.7),
        "(c) four modes, 2 d": Problem(
            gaussian(2, 3.5), lambda x: -modes.log_prob(x), 0.0, lambda x: (x[:, 0] > 0).double(), 0.7, 2000, 500
        ),
        "(d) double well, 8 d": Problem(
            Independent(Normal(torch.zeros_like(spreads), spreads), 1),
            lambda x: well(x[:, 0]) + 2 * x[:, 1:].square().sum(-1),
            math.log(integrals[0]) + 10 + 3.5 * math.log(math.pi / 2),
            lambda x: x[:, 0],
            integrals[1] / integrals[0],
            2000,
            500,
        ),
        "(e) k = 0.9": student(0.9),
        "(e) shifted, 8 d": off_gaussian(8, 1.2, 1.0, (1000, 500)),
        "(f) narrow proposal": off_gaussian(1, 0.0, 10.0, (1000, 500)),
    }


def run(problem: Problem, sampler: str, seed: int) -> WeightedSamples:
    """One run of a sampler."""
    target = BoltzmannDensity(problem.energy)
    if sampler == "importance":
        return importance_sample(problem.proposal, target, problem.num_samples, seed=seed)
    options: dict[str, Any] = {"kernel": HMC(num_leapfrog=4), "temperatures": AdaptiveTemperatures(0.9)}
    if sampler == "SMC, 1 step":
        options["temperatures"] = [1.0]
    return smc(problem.proposal, target, problem.num_particles, moves=2, batch_size=4096, seed=seed, **options)


def row(samples: list[WeightedSamples], found: list[tuple[float, float]], truth: float) -> list[str]:
    """What the runs stated, `found` as value and error, against the truth."""
    values, stated = np.array(found).T
    kept = np.isfinite(stated)
    errors, stated = np.abs(values - truth)[kept], stated[kept]
    k = [s.pareto_k for s in samples]
    figures = [f"{np.nanmedian(k):.2f}" if np.isfinite(k).any() else "–", f"{100 * (1 - kept.mean()):.0f} %"]
    if not kept.any():
        return [*figures, "–", "–", "–", "–"]
    inside = [f"{100 * (errors < multiple * stated).mean():.0f} %" for multiple in (1, 2)]
    width = np.median(stated) / math.sqrt(np.mean(errors**2))
    return [*figures, *inside, f"{(errors / stated).max():.1f}", f"{width:.2f}"]


def main() -> None:
    """Print the table."""
    parser = argument_parser(__doc__)
    parser.add_argument("--runs", type=int, default=100, help="of each sampler on each target")
    arguments = parser.parse_args()
    prepare(arguments)
    rows = []
    for title, problem in problems().items():
        for sampler in ("importance", "SMC", "SMC, 1 step"):
            samples = [run(problem, sampler, arguments.seed + number) for number in range(arguments.runs)]
            normalizers = [(s.log_normalizer, s.log_normalizer_standard_error) for s in samples]
            means = [tuple(float(part) for part in s.expectation(problem.function)) for s in samples]
            for of, found, truth in (("log Z", normalizers, problem.log_normalizer), ("mean", means, problem.mean)):
                rows.append([title, sampler, of, *row(samples, found, truth)])  # type: ignore[arg-type]
            print(f"{title}, {sampler}: done", flush=True)
    header = ["target", "sampler", "of", "Pareto k", "refused", "within 1 error", "within 2", "worst score", "width"]
    print("\n" + markdown_table(header, rows))


if __name__ == "__main__":
    main()
