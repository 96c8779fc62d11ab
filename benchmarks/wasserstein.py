"""What control variates buy a sliced Wasserstein distance: variance at equal directions, bias, and time.

    OMP_NUM_THREADS=1 python benchmarks/wasserstein.py --threads 1

Each estimator runs `--repeats` times with fresh directions on fixed samples. "variance ratio" is plain Monte Carlo's
variance over the estimator's; "gain at equal time" is that ratio times the ratio of the times (processor time, median
over the repeats). "bias" is the distance of the mean estimate from a reference with `--reference-directions`
directions, in standard errors of the difference.
The second table sets the exact distances beside scipy's assignment, and the plain sliced one beside POT's.
"""

import argparse
import math
import statistics
import time
from functools import partial

import torch
from common import argument_parser, markdown_table, median_seconds, prepare
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from nflib.metrics import sliced_wasserstein, wasserstein
from nflib.metrics.sliced import projected_wasserstein, random_directions
from nflib.metrics.transport import import_pot

ESTIMATORS: dict[str, dict] = {
    "Monte Carlo": {"control_variate": None},
    "lower": {"control_variate": "lower"},
    "upper": {"control_variate": "upper"},
    "both": {"control_variate": "both"},
    "upper, published coefficient": {"control_variate": "upper", "leave_one_out": False},
    "both, one coefficient for all": {"control_variate": "both", "leave_one_out": False},
}


def problems(count: int, generator: torch.Generator) -> dict[str, tuple[Tensor, Tensor]]:
    """Pairs of samples where different things differ."""

    def normal(dimension: int) -> Tensor:
        return torch.randn(count, dimension, generator=generator, dtype=torch.float64)

    widths = torch.linspace(0.2, 3.0, 10, dtype=torch.float64)
    sphere = torch.nn.functional.normalize(normal(3), dim=1)
    angles = 2 * math.pi * torch.rand(count, 2, generator=generator, dtype=torch.float64)
    ring = 1.0 + 0.4 * angles[:, 1].cos()
    torus = torch.stack([ring * angles[:, 0].cos(), ring * angles[:, 0].sin(), 0.4 * angles[:, 1].sin()], dim=1)
    modes = 4.0 * torch.randint(0, 2, (count, 10), generator=generator).double()
    return {
        "normals, shifted and scaled, d = 10": (normal(10), 1.5 * normal(10) + widths),
        "normals, one covariance turned, d = 10": (normal(10) * widths, normal(10) * widths.flip(0)),
        "point clouds, sphere and torus, d = 3": (sphere, torus + torch.tensor([0.5, 0.0, 0.0])),
        "mixture against its Gaussian, d = 10": (modes + 0.3 * normal(10), 2.0 + 2.02 * normal(10)),
        "normals, shifted, d = 100": (normal(100), normal(100) + 0.3),
    }


def sliced_rows(name: str, x: Tensor, y: Tensor, arguments: argparse.Namespace) -> list[list[object]]:
    """One row an estimator and number of directions."""
    directions = random_directions(arguments.reference_directions, x.shape[1], torch.Generator().manual_seed(10**6))
    reference = projected_wasserstein(x, y, directions)[0]
    truth, truth_error = reference.mean().item(), reference.std().item() / math.sqrt(len(reference))
    rows = []
    for num_directions in arguments.directions:
        estimates: dict[str, list[float]] = {label: [] for label in ESTIMATORS}
        seconds: dict[str, list[float]] = {label: [] for label in ESTIMATORS}
        for repeat in range(arguments.repeats):
            for label, keywords in ESTIMATORS.items():  # in turns, so that a drifting clock hits them alike
                start = time.process_time()
                estimate = sliced_wasserstein(
                    x, y, num_directions=num_directions, seed=arguments.seed + repeat, **keywords
                )
                seconds[label].append(time.process_time() - start)
                estimates[label].append(estimate.squared.item())
        variances = {label: statistics.variance(values) for label, values in estimates.items()}
        cost = {label: statistics.median(values) for label, values in seconds.items()}
        for label, variance in variances.items():
            ratio = variances["Monte Carlo"] / variance
            bias = (statistics.mean(estimates[label]) - truth) / math.hypot(
                truth_error, math.sqrt(variance / arguments.repeats)
            )
            rows.append(
                [
                    name,
                    label,
                    num_directions,
                    f"{truth:.4f}",
                    f"{100 * math.sqrt(variance) / truth:.3f}",
                    f"{ratio:.1f}",
                    f"{bias:+.1f}",
                    f"{1e3 * cost[label]:.2f}",
                    f"{ratio * cost['Monte Carlo'] / cost[label]:.1f}",
                ]
            )
    return rows


def exact_rows(arguments: argparse.Namespace) -> list[list[object]]:
    """Times of exact and plain sliced distances beside their peers, and the largest relative difference."""
    ot = import_pot()
    generator = torch.Generator().manual_seed(arguments.seed)
    rows: list[tuple[str, dict[str, float], float]] = []
    for count in arguments.exact_samples:
        x, y = (torch.randn(count, 4, generator=generator, dtype=torch.float64) for _ in range(2))

        def assignment(x: Tensor = x, y: Tensor = y) -> float:
            cost = torch.cdist(x, y).square().numpy()
            return math.sqrt(cost[linear_sum_assignment(cost)].mean())

        difference = abs(wasserstein(x, y).item() / assignment() - 1)
        seconds = median_seconds({"ours": partial(wasserstein, x, y), "peer": assignment}, repeats=3)
        rows.append((f"W_2 exact, d = 4, peer: scipy's assignment, n = {count}", seconds, difference))

        def pot_sliced(x: Tensor = x, y: Tensor = y) -> float:
            return float(ot.sliced_wasserstein_distance(x.numpy(), y.numpy(), n_projections=500, seed=0)) ** 2

        ours = partial(sliced_wasserstein, x, y, num_directions=500, control_variate=None, seed=0)
        difference = abs(ours().squared.item() / pot_sliced() - 1)
        seconds = median_seconds({"ours": ours, "peer": pot_sliced}, repeats=3)
        rows.append((f"SW_2^2, 500 directions each its own, peer: POT, n = {count}", seconds, difference))
    return [[n, f"{1e3 * s['ours']:.1f}", f"{1e3 * s['peer']:.1f}", f"{d:.1e}"] for n, s, d in rows]


def main() -> None:
    parser = argument_parser(__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=500, help="in each of the two samples")
    parser.add_argument("--directions", type=int, nargs="+", default=[10, 100])
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--reference-directions", type=int, default=50_000)
    parser.add_argument("--exact-samples", type=int, nargs="+", default=[500, 1000])
    arguments = parser.parse_args()
    prepare(arguments)
    rows = []
    for name, (x, y) in problems(arguments.samples, torch.Generator().manual_seed(arguments.seed)).items():
        rows += sliced_rows(name, x, y, arguments)
    header = [
        "problem",
        "estimator",
        "directions",
        "SW_2^2",
        "std / %",
        "variance ratio",
        "bias / s.e.",
        "CPU ms",
        "gain at equal time",
    ]
    print(markdown_table(header, rows))
    print()
    print(markdown_table(["distance", "ours / ms", "peer / ms", "relative difference"], exact_rows(arguments)))


if __name__ == "__main__":
    main()
