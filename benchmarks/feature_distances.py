"""Fréchet and kernel distances of sets of features beside torchmetrics': the numbers, and the time.

    OMP_NUM_THREADS=1 python benchmarks/feature_distances.py --threads 1

torchmetrics is in no extra: `pip install --no-deps --target FOLDER torchmetrics`, and FOLDER into PYTHONPATH; without
it, ours alone are printed.
"closed form": the Fréchet distance of the two normal distributions of which the features are drawn; that of finite
samples is larger. Times are medians, the two taking turns.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from common import argument_parser, markdown_table, median_seconds, prepare
from torch import Tensor, nn

from nflib.metrics import frechet_distance, kernel_distance


class Given(nn.Module):
    """The features themselves, where torchmetrics wants a network that makes them of pictures."""

    def __init__(self, num_features: int):
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


def normals(count: int, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor, float]:
    """Features of two normal distributions whose covariances are scaled against each other, and their distance."""
    mixing = torch.randn(size, size, generator=generator, dtype=torch.float64) / size**0.5
    x, y = (torch.randn(count, size, generator=generator, dtype=torch.float64) @ mixing for _ in range(2))
    shift, scale = 0.05, 1.2
    exact = size * shift**2 + (scale - 1) ** 2 * float(mixing.square().sum())
    return x, scale * y + shift, exact


def main() -> None:
    """Print one row a set of features and distance."""
    parser = argument_parser(__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    prepare(arguments)
    installed = importlib.util.find_spec("torchmetrics") is not None
    generator = torch.Generator().manual_seed(arguments.seed)
    header = ["features", "distance", "closed form", "ours", "s"]
    if installed:
        header += ["torchmetrics: relative difference", "s", "times ours"]
    rows = []
    for count, size in ((2_000, 64), (2_000, 768), (1_000, 2_048)):
        x, y, exact = normals(count, size, generator)
        for name, ours in (("Fréchet", frechet_distance), ("kernel", kernel_distance)):
            calls: dict[str, Callable[[], float]] = {"ours": partial(ours, x, y)}
            if installed:
                calls["theirs"] = torchmetrics_distance(name, x, y)
            seconds = median_seconds(calls, arguments.repeats)
            row = [f"{count} × {size}", name, f"{exact:.4f}" if name == "Fréchet" else "", f"{ours(x, y):.6f}"]
            row.append(f"{seconds['ours']:.2f}")
            if installed:
                difference = abs(calls["theirs"]() / ours(x, y) - 1)
                row += [f"{difference:.0e}", f"{seconds['theirs']:.2f}", f"{seconds['theirs'] / seconds['ours']:.1f}"]
            rows.append(row)
    print(markdown_table(header, rows))


def torchmetrics_distance(name: str, x: Tensor, y: Tensor) -> Callable[[], float]:
    """A function that computes it anew; of the kernel distance, over one subset, which is all samples."""
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import KernelInceptionDistance

    given = Given(x.shape[1])
    if name == "kernel":
        metric: Any = KernelInceptionDistance(given, subsets=1, subset_size=len(x))
    else:
        metric = FrechetInceptionDistance(given).set_dtype(torch.float64)
    metric.update(x, real=True)
    metric.update(y, real=False)

    def compute() -> float:
        metric._computed = None
        value = metric.compute()
        return float(value[0] if isinstance(value, tuple) else value)

    return compute


if __name__ == "__main__":
    main()
