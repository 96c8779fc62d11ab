"""Digits drawn in five steps of a continuous flow, by the coupling that it was trained with.

    python benchmarks/continuous_digits.py --threads 1

Data: scikit-learn's digits, 8 × 8 pixels, dequantised and Gaussianised pixel by pixel (`image_bits.py`), without their
class. A TARFlow is trained first, on pictures with normal noise of --noise; then, for each coupling of noise and data,
the same velocity network for as long, from several seeds: independent noise, minibatch optimal transport, and the
TARFlow's own encodings as the noise (normalizing flow matching, arXiv:2603.09014). Drawn by Euler's method in 5 steps,
and by RK4 in 32 as what the velocity is good for; the TARFlow draws token by token. Fréchet distances to the test
pictures, of the hidden layer of a small classifier and of pixels; "training pictures" is what real ones get. Bits per
dimension: of --bits test pictures, exact, of the map of 8 steps of Heun's method.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch
from common import argument_parser, count_parameters, markdown_table, prepare, trained
from image_bits import PIXELS, Gaussianize, dequantised
from torch import Tensor, nn

from examples.digits.data import LEVELS, Digits, parts
from nflib.continuous import (
    RK4,
    Euler,
    FlowMatching,
    FromFlow,
    Heun,
    Independent,
    MLPVelocity,
    ODEFlow,
    OptimalTransport,
)
from nflib.flows import TARFlow
from nflib.metrics import frechet_distance

SAMPLES = 2000
SETTINGS: dict[str, Any] = {
    "batch_size": 128,
    "weight_decay": 0.01,
    "ema_decay": 0.995,
}


class Dequantised:
    """Pictures with fresh noise of dequantisation in every batch, prepared, and with normal noise if asked for."""

    def __init__(self, part: Digits, prepare: Callable[[Tensor], Tensor], noise: float = 0.0, seed: int = 0):
        self.part, self.prepare, self.noise = part, prepare, noise
        self.generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return len(self.part.labels)

    def batch(self, indices: Tensor) -> dict[str, Tensor]:
        z = self.prepare(dequantised(self.part.levels[indices], self.generator))
        return {"inputs": z + self.noise * torch.randn(z.shape, generator=self.generator)}


def classifier(part: Digits, steps: int = 600) -> Callable[[Tensor], Tensor]:
    """Features ``(N, 64)`` of levels ``(N, 64)``: the hidden layer of a classifier trained on real pictures."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        hidden = nn.Sequential(nn.Linear(PIXELS, 128), nn.ReLU(), nn.Linear(128, 64), nn.Tanh())
        model = nn.Sequential(hidden, nn.Linear(64, 10))
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.1)
        for _ in range(steps):
            rows = torch.randint(len(part.labels), (128,))
            loss = nn.functional.cross_entropy(model(part.levels[rows] / 8 - 1), part.labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return torch.no_grad()(lambda levels: hidden(levels / 8 - 1))


def levels_of(z: Tensor, preprocess: Gaussianize) -> Tensor:
    """Levels 0 … 16 of Gaussianised pixels: the inverse of `Gaussianize`, rounded down."""
    uniform = torch.special.ndtr(z.double())
    upper = (preprocess.below + preprocess.mass)[None]
    return (uniform[..., None] >= upper).sum(-1).clamp(max=LEVELS - 1).float()


@torch.no_grad()
def bits(flow: ODEFlow, part: Digits, preprocess: Gaussianize, count: int) -> float:
    """Bits per dimension of so many pictures, dequantised once each, under the map of eight steps of Heun's method."""
    rows = torch.randperm(len(part.labels), generator=torch.Generator().manual_seed(0))[:count]
    z, logabsdet = preprocess(dequantised(part.levels[rows], torch.Generator().manual_seed(0)))
    density = flow.with_solver(Heun(8)).log_prob(z) + logabsdet
    return float(-density.mean()) / (PIXELS * math.log(2))


def main() -> None:
    """Train the TARFlow, then a velocity by each coupling and seed, and print the table."""
    parser = argument_parser(__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="of each training")
    parser.add_argument("--num_seeds", type=int, default=3, help="velocities of each coupling")
    parser.add_argument("--noise", type=float, default=0.1, help="width of the noise on encoded pictures")
    parser.add_argument("--channels", type=int, default=256, help="of the velocity network")
    parser.add_argument("--bits", type=int, default=50, help="test pictures whose bits are computed; 0 for none")
    arguments = parser.parse_args()
    prepare(arguments)
    data = parts()
    preprocess = Gaussianize(data["train"].levels)
    features = classifier(data["train"])
    real = data["test"].levels

    def gaussianized(levels: Tensor) -> Tensor:
        return preprocess(levels)[0]

    def judged_levels(levels: Tensor) -> list[float]:
        return [frechet_distance(of(levels), of(real)) for of in (features, lambda levels: levels / 8 - 1)]

    def judged(z: Tensor) -> list[float]:
        return judged_levels(levels_of(z, preprocess))

    teacher = TARFlow((PIXELS,), 8, 64, 2, 2, conditional="spline", head_dim=32, start_token=True, dropout=0.2)
    noisy = Dequantised(data["train"], gaussianized, arguments.noise, arguments.seed)
    steps = trained(teacher, noisy, arguments.seconds, arguments.seed, learning_rate=3e-3, **SETTINGS)
    couplings: dict[str, Any] = {
        "independent": Independent(),
        "optimal transport": OptimalTransport(),
        "TARFlow": FromFlow(teacher, arguments.noise),
    }
    of_teacher = judged(teacher.sample(SAMPLES, seed=0))
    table: list[list[object]] = [
        ["training pictures", "", "", *_figures(judged_levels(data["train"].levels)), "", ""],
        ["TARFlow itself", count_parameters(teacher), steps, *_figures(of_teacher), "", ""],
    ]
    for name, coupling in couplings.items():
        found: list[list[float]] = []
        for seed in range(arguments.seed, arguments.seed + arguments.num_seeds):
            torch.manual_seed(seed)
            flow = ODEFlow(MLPVelocity(PIXELS, channels=arguments.channels), (PIXELS,), solver=Euler(5))
            source = Dequantised(data["train"], gaussianized, seed=seed)
            steps = trained(
                flow, source, arguments.seconds, seed, FlowMatching(coupling), learning_rate=2e-3, **SETTINGS
            )
            few, many = (judged(flow.with_solver(solver).sample(SAMPLES, seed=0)) for solver in (Euler(5), RK4(32)))
            found.append([*few, many[0], bits(flow, data["test"], preprocess, arguments.bits)])
        table.append([name, count_parameters(flow), steps, *map(_spread, zip(*found, strict=True))])
        print(*table[-1], flush=True)
    print(f"\n{arguments.seconds:g} s of training each, {SAMPLES} samples, median (range) of the seeds")
    header = ["coupling", "parameters", "steps", "features, Euler-5", "pixels, Euler-5", "features, RK4-32", "bits"]
    print(markdown_table(header, table))


def _figures(values: Sequence[float]) -> list[str]:
    return [f"{value:.3f}" for value in values]


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.3f} ({min(values):.3f} … {max(values):.3f})"


if __name__ == "__main__":
    main()
