"""Digits drawn in five steps of a continuous flow, by the coupling that it was trained with.

    python benchmarks/continuous_digits.py --threads 1

Data: scikit-learn's digits, 8 × 8 pixels, dequantised and Gaussianised one by one (`digit_pixels.py`), without their
class. A TARFlow is trained first, on pictures with normal noise of --noise; then, for each coupling of noise and data,
the same velocity network for as long, from several seeds: independent noise, minibatch optimal transport, and the
TARFlow's own encodings as the noise (normalizing flow matching, arXiv:2603.09014). Drawn by Euler's method in 5 steps,
and by RK4 in 32 as what the velocity is good for; the TARFlow draws token by token. Fréchet distances to the test
pictures, of the hidden layer of a small classifier and of pixels; "training pictures" is what real ones get. Bits per
dimension: of --bits test pictures, exact, of the map of 8 steps of Heun's method. With --latents all flows are of the
latents of the video package's autoencoder, which is trained first (`LatentPictures`). Seconds are the processor's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from common import argument_parser, count_parameters, markdown_table, median_and_range, prepare, trained
from digit_pixels import PIXELS
from digit_spaces import LatentPictures, Pixels, Space
from torch import Tensor, nn

from examples.digits.data import Digits, parts
from nflib.continuous import (
    RK4,
    Euler,
    FlowCoupling,
    FlowMatching,
    Heun,
    IndependentCoupling,
    MLPVelocity,
    ODEFlow,
    OptimalTransportCoupling,
)
from nflib.flows import TARFlow
from nflib.metrics import frechet_distance

SETTINGS: dict[str, Any] = {
    "batch_size": 128,
    "weight_decay": 0.01,
    "ema_decay": 0.995,
}


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


def main() -> None:
    """Train the TARFlow, then a velocity by each coupling and seed, and print the table."""
    parser = argument_parser(__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="of each flow's training")
    parser.add_argument("--num_seeds", type=int, default=3, help="velocities of each coupling")
    parser.add_argument("--noise", type=float, default=0.1, help="width of that on encoded pictures, or latents")
    parser.add_argument("--channels", type=int, default=256, help="of the velocity network")
    parser.add_argument("--samples", type=int, default=2000, help="drawn of each flow")
    parser.add_argument("--bits", type=int, default=50, help="test pictures whose bits are computed")
    parser.add_argument("--latents", action="store_true", help="latents of an autoencoder in the place of pixels")
    parser.add_argument("--autoencoder_seconds", type=float, default=60.0, help="of its training")
    arguments = parser.parse_args()
    prepare(arguments)
    seconds, count, first = arguments.seconds, arguments.samples, arguments.seed
    data = parts()
    features = classifier(data["train"])
    real = data["test"].levels
    chosen = torch.randperm(len(real), generator=torch.Generator().manual_seed(0))[: arguments.bits]
    test = Digits(real[chosen], data["test"].labels[chosen])
    space: Space = (
        LatentPictures(data, arguments.noise, arguments.autoencoder_seconds, first)
        if arguments.latents
        else Pixels(data["train"], arguments.noise)
    )
    rows = space.rows(data["train"])

    def judged(levels: Tensor) -> list[float]:
        return [frechet_distance(of(levels), of(real)) for of in (features, lambda levels: levels / 8 - 1)]

    def noisy(rows: Tensor, generator: torch.Generator) -> Tensor:
        z = space.draw(rows, generator)
        return z + space.teacher_noise * torch.randn(z.shape, generator=generator)

    teacher = TARFlow((space.size,), 8, 64, 2, 2, conditional="spline", head_dim=32, start_token=True, dropout=0.2)
    steps = trained(teacher, rows, seconds, first, augment=noisy, learning_rate=3e-3, **SETTINGS).steps
    couplings: dict[str, Any] = {
        "independent": IndependentCoupling(),
        "optimal transport": OptimalTransportCoupling(),
        "TARFlow": FlowCoupling(teacher, space.teacher_noise),
    }
    known = ["" for _ in space.bits_are] if space.teacher_noise else _figures(space.bits(teacher, test))
    coded = space.levels(space.draw(rows, torch.Generator().manual_seed(0)))
    blank = ["" for _ in space.bits_are]
    table: list[list[object]] = [
        ["training pictures", "", "", *_figures(judged(data["train"].levels)), "", *blank],
        ["the same, there and back", "", "", *_figures(judged(coded)), "", *blank],
        [
            *("TARFlow itself", count_parameters(teacher), steps),
            *(*_figures(judged(space.levels(teacher.sample(count, seed=0)))), "", *known),
        ],
    ]
    for name, coupling in couplings.items():
        found: list[list[float]] = []
        for seed in range(first, first + arguments.num_seeds):
            torch.manual_seed(seed)
            network = MLPVelocity(space.size, channels=arguments.channels)
            flow = ODEFlow(network, (space.size,), path=space.path, solver=Euler(5))
            objective = FlowMatching(coupling)
            steps = trained(flow, rows, seconds, seed, objective, space.draw, learning_rate=2e-3, **SETTINGS).steps
            few, many = (
                judged(space.levels(flow.with_solver(solver).sample(count, seed=0))) for solver in (Euler(5), RK4(32))
            )
            found.append([*few, many[0], *space.bits(flow.with_solver(Heun(8)), test)])
        table.append([name, count_parameters(flow), steps, *map(median_and_range, zip(*found, strict=True))])
        print(*table[-1], flush=True)
    print(f"\n{seconds:g} s of the processor for each flow, {count} samples, median (range) of the seeds")
    header = ["coupling", "parameters", "steps", "features, Euler-5", "pixels, Euler-5", "features, RK4-32"]
    print(markdown_table([*header, *space.bits_are], table))


def _figures(values: Sequence[float]) -> list[str]:
    return [f"{value:.3f}" for value in values]


if __name__ == "__main__":
    main()
