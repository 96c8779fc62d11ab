"""Entropy production of two active particles, from samples alone.

    OMP_NUM_THREADS=1 python benchmarks/entropy_production.py --threads 1

Two particles on a line, in a harmonic trap, push each other apart and are driven by propulsions g that forget
themselves at a rate gamma: ``dx_i = (-x_i + F_i(x) + g_i) dt + sqrt(2 T) dW``, ``dg_i = -gamma g_i dt + sqrt(2 gamma)
dW``, F of the potential ``height exp(-(x_1 - x_2)^2 / 2)``. The rate is estimated from independent samples of the
stationary state and a score learnt on others: by implicit score matching, and that of a TARFlow trained by likelihood.
Of each score the bound that lies below, and the rate itself, which for the flow lies as much above. Beside it what
needs no score: the work of the propulsion, ``E[g . dx/dt] / T`` (exact in expectation), and at height 0, where the
system is linear, the closed form. Medians over the seeds and their range.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path

import torch
from common import argument_parser, markdown_table, median_and_range, prepare, quiet
from torch import Tensor, nn

from nflib.flows import TARFlow
from nflib.metrics import (
    ImplicitScoreMatching,
    entropy_production_bound,
    entropy_production_rate,
    linear_entropy_production_rate,
)
from nflib.training import fit

TEMPERATURE, RATE = 0.3, 0.5
DIFFUSION = torch.tensor([TEMPERATURE, TEMPERATURE, RATE, RATE])


def drift(state: Tensor, height: float) -> Tensor:
    """Of states (x_1, x_2, g_1, g_2), ``(N, 4)``."""
    x, g = state[:, :2], state[:, 2:]
    apart = x[:, :1] - x[:, 1:]
    push = height * apart * torch.exp(-0.5 * apart.square())
    return torch.cat([-x + torch.cat([push, -push], dim=1) + g, -RATE * g], dim=1)


def stationary(
    height: float, number: int, generator: torch.Generator, dt: float = 0.02, duration: float = 12.0
) -> Tensor:
    """Independent samples, each the end of a run of its own, by Heun's method (of second order in distribution)."""
    state = torch.randn(number, 4, generator=generator)
    for _ in range(round(duration / dt)):
        noise = (2 * DIFFUSION * dt).sqrt() * torch.randn(number, 4, generator=generator)
        force = drift(state, height)
        state = state + noise + 0.5 * dt * (force + drift(state + dt * force + noise, height))
    return state


class Score(nn.Module):
    """A linear map, as of a normal, and what a small network adds to it."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.rest = nn.Sequential(nn.Linear(4, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 4))

    def forward(self, state: Tensor) -> Tensor:
        return self.linear(state) + self.rest(state)


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--heights", type=float, nargs="+", default=[0.0, 1.0, 2.0, 4.0], help="of the potential")
    parser.add_argument("--samples", type=int, default=40_000, help="to learn from; half as many are held out")
    parser.add_argument("--steps", type=int, default=1500, help="of each training")
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    prepare(arguments)
    rows = []
    for height in arguments.heights:
        found: dict[str, list[float]] = {}
        for seed in range(arguments.seed, arguments.seed + arguments.seeds):
            generator = torch.Generator().manual_seed(seed)
            count = arguments.samples
            train, held_out = stationary(height, count + count // 2, generator).tensor_split([count])
            velocity = drift(held_out, height)[:, :2]
            work = float((held_out[:, 2:] * velocity).sum(1).mean()) / TEMPERATURE
            found.setdefault("work of the propulsion", []).append(work)
            torch.manual_seed(seed)
            config = quiet(seed, batch_size=500, max_steps=arguments.steps, learning_rate=3e-3)
            network = Score()
            flow = TARFlow(event_shape=(4,), patch_size=1, channels=32, num_blocks=4, layers_per_block=1, head_dim=16)
            with tempfile.TemporaryDirectory() as folder:
                fit(network, train, config=config, objective=ImplicitScoreMatching(), output=Path(folder) / "network")
                fit(flow, train, config=config, output=Path(folder) / "flow")
            for name, score in (("score network", network), ("TARFlow", flow.score)):
                for what, estimate in (("at least", entropy_production_bound), ("", entropy_production_rate)):
                    rate = estimate(held_out, partial(drift, height=height), score, DIFFUSION)
                    found.setdefault(f"{name}, {what}".rstrip(", "), []).append(rate.value)
        exact = f"{linear_entropy_production_rate(drift(torch.eye(4), 0.0).T, DIFFUSION):.3f}" if height == 0 else ""
        rows.append([f"{height:g}", exact, *map(median_and_range, found.values())])
        print(*rows[-1], flush=True)
    print(markdown_table(["height", "closed form", *found], rows))


if __name__ == "__main__":
    main()
