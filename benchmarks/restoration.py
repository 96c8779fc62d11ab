"""Digits restored: the posterior by sequential Monte Carlo beside the mode that a variational scheme finds.

    python benchmarks/restoration.py --output runs/restoration --threads 1

Digits of scikit-learn, 8 × 8 pixels, dequantised, scaled to -1 … 1. A TARFlow and a velocity field are trained on them
for --seconds each. Test pictures lose their lower half, are blurred, or shrink to 4 × 4, and get noise. The posterior
under the TARFlow is sampled by `video.restore.restore` (`smc`), the mode under the velocity found by `restored_mode`
(FLAIR's scheme). Root mean square errors to the picture itself, the share of its pixels inside the posterior's central
90 %, and the root mean square misfit to what was observed, in units of its noise (1 is right). --output gets a picture.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import torch
from common import argument_parser, markdown_table, prepare, trained
from continuous_digits import Dequantised
from torch import Tensor, nn

from examples.digits.data import LEVELS, parts
from nflib.continuous import FlowMatching, MLPVelocity, ODEFlow
from nflib.flows import TARFlow
from nflib.montecarlo import HMC
from video.restore import Degradation, blur, downsampling, inpainting, restore, restored_mode

SIDE = 8
SHAPE = (1, SIDE, SIDE)
SETTINGS: dict[str, Any] = {
    "batch_size": 128,
    "learning_rate": 2e-3,
    "weight_decay": 0.1,
    "ema_decay": 0.995,
}
PIXEL = 2 / LEVELS


class PictureVelocity(nn.Module):
    """The velocity of vectors, on pictures."""

    def __init__(self, channels: int):
        super().__init__()
        self.inner = MLPVelocity(SIDE * SIDE, channels=channels)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.inner(x.flatten(1), t).view_as(x)


def scaled(levels: Tensor) -> Tensor:
    """Levels, dequantised, ``(N, 64)`` as pictures ``(N, 1, 8, 8)`` in -1 … 1."""
    return (levels * PIXEL - 1).view(-1, *SHAPE)


def root_mean_square(x: Tensor) -> float:
    return float(x.square().mean().sqrt())


def weighted_quantiles(x: Tensor, weights: Tensor, shares: tuple[float, ...]) -> list[Tensor]:
    """Of each number of samples ``(N, *event)``, the values below which these shares of the weight lie."""
    order = x.argsort(0)
    below = weights.view(-1, *[1] * (x.dim() - 1)).expand_as(x).gather(0, order).cumsum(0)
    values = x.gather(0, order)
    return [values.gather(0, (below < share).sum(0, keepdim=True).clamp(max=len(x) - 1))[0] for share in shares]


def main() -> None:
    """Train both priors, restore the pictures, and print the table."""
    parser = argument_parser(__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder for restored.png")
    parser.add_argument("--seconds", type=float, default=90.0, help="of each training")
    parser.add_argument("--pictures", type=int, default=6, help="test pictures")
    parser.add_argument("--particles", type=int, default=200, help="of the posterior")
    parser.add_argument("--noise", type=float, default=0.15, help="standard deviation of what is observed")
    arguments = parser.parse_args()
    prepare(arguments)
    data = parts()
    torch.manual_seed(arguments.seed)
    prior = TARFlow(SHAPE, patch_size=2, channels=64, num_blocks=4, layers_per_block=2, head_dim=32, dropout=0.2)
    train = Dequantised(data["train"], scaled, seed=arguments.seed)
    trained(prior, train, arguments.seconds, arguments.seed, **SETTINGS)
    velocity = ODEFlow(PictureVelocity(256), SHAPE)
    trained(velocity, train, arguments.seconds, arguments.seed, FlowMatching(), **SETTINGS)
    generator = torch.Generator().manual_seed(arguments.seed)
    chosen = torch.randperm(len(data["test"].labels), generator=generator)[: arguments.pictures]
    levels = data["test"].levels[chosen]
    pictures = scaled(levels + torch.rand(levels.shape, generator=generator))
    upper = torch.arange(SIDE)[:, None].expand(SIDE, SIDE) < SIDE // 2
    degradations = {
        "lower half missing": inpainting(upper, arguments.noise),
        "blurred": blur(1.0, arguments.noise),
        "4 × 4 pixels": downsampling(2, arguments.noise),
    }
    rows: list[list[object]] = []
    shown: list[list[Tensor]] = []
    for name, degradation in degradations.items():
        found: list[list[float]] = []
        seconds = [0.0, 0.0]
        for number, picture in enumerate(pictures):
            clean = degradation.operator(picture[None])[0]
            observed = clean + arguments.noise * torch.randn(clean.shape, generator=generator)
            start = time.perf_counter()
            samples = restore(
                prior, observed, degradation, arguments.particles, kernel=HMC(), moves=3, seed=arguments.seed + number
            )
            seconds[0] += time.perf_counter() - start
            start = time.perf_counter()
            mode = restored_mode(velocity, observed, degradation, seed=arguments.seed + number)[0]
            seconds[1] += time.perf_counter() - start
            x, weights = samples.x, samples.weights.to(samples.x)
            mean = (weights.view(-1, 1, 1, 1) * x).sum(0)
            low, high = weighted_quantiles(x, weights, (0.05, 0.95))
            covered = float(((picture >= low) & (picture <= high)).float().mean())
            misfits = [_misfit(degradation, observed, value) for value in (picture, x[int(weights.argmax())], mode)]
            errors = [root_mean_square(value - picture) for value in (mean, mode)]
            found.append([*errors, covered, *misfits])
            shown.append([picture, observed, mean, *x[torch.multinomial(weights, 3, generator=generator)], mode])
        medians = [statistics.mean(column) for column in zip(*found, strict=True)]
        rows.append([name, *(f"{value:.3f}" for value in medians), *(f"{s / len(pictures):.1f}" for s in seconds)])
        print(*rows[-1], flush=True)
    header = ["degradation", "error of the posterior's mean", "error of the mode", "90 % intervals cover"]
    header += ["misfit of the picture", "of a draw", "of the mode", "seconds, posterior", "seconds, mode"]
    print("\n" + markdown_table(header, rows))
    draw(shown, arguments.output)


def _misfit(degradation: Degradation, observed: Tensor, picture: Tensor) -> float:
    return root_mean_square((degradation.operator(picture[None])[0] - observed) / degradation.noise)


def draw(rows: list[list[Tensor]], output: Path) -> None:
    """Write restored.png: a row for each picture."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    titles = ["picture", "observed", "posterior mean", "draw", "draw", "draw", "mode"]
    figure, axes = pyplot.subplots(len(rows), len(titles), figsize=(len(titles), len(rows)))
    for line, values in zip(axes, rows, strict=True):
        for axis, value in zip(line, values, strict=True):
            axis.imshow(value[0], cmap="gray", vmin=-1, vmax=1)
            axis.set_axis_off()
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=7)
    output.mkdir(parents=True, exist_ok=True)
    figure.savefig(output / "restored.png", dpi=120, bbox_inches="tight")


if __name__ == "__main__":
    main()
