"""Digits restored: the posterior by sequential Monte Carlo beside the mode that a variational scheme finds.

    OMP_NUM_THREADS=1 python benchmarks/restoration.py --output runs/restoration --threads 1

Digits of scikit-learn, 8 × 8 pixels, dequantised, scaled to -1 … 1. A TARFlow and a velocity field are trained on them
for --seconds each. Test pictures lose their lower half, are blurred, or shrink to 4 × 4, and get noise. Of each, and
from each of --seeds, the posterior under the TARFlow is sampled by `video.restore.restore` (`smc`), and the mode under
the velocity found by `restored_mode` (FLAIR's scheme). All are restored under the same two priors and from the same
observation, so what differs between seeds is the samplers' own. --output gets a picture. The columns, each a median
and range over pictures and seeds:

PSNR: of the posterior's mean and of the mode, in dB, to the picture itself.
cover: the share of the picture's pixels inside the posterior's central 68 and 95 %.
misfit: root mean square of what is observed less what a picture would show, in units of the noise (1 is right).
ESS: of the particles, at the end. spread: standard deviation of log p(observed) over the seeds, in nats, of each
picture. seconds: of the processor, for each picture.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import torch
from common import argument_parser, markdown_table, median_and_range, prepare, trained
from digit_pixels import SIDE, dequantising
from torch import Tensor, nn

from examples.digits.data import LEVELS, parts
from nflib.continuous import FlowMatching, MLPVelocity, ODEFlow
from nflib.flows import TARFlow
from nflib.montecarlo import HMC
from video.restore import Degradation, blur, downsampling, inpainting, restore, restored_mode

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


def psnr(x: Tensor) -> float:
    """Of an error, where pixels are in -1 … 1."""
    return float(10 * (4 / x.square().mean()).log10())


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
    parser.add_argument("--seconds", type=float, default=90.0, help="of the processor, for each training")
    parser.add_argument("--pictures", type=int, default=6, help="test pictures")
    parser.add_argument("--seeds", type=int, default=3, help="restorations of each, two or more")
    parser.add_argument("--particles", type=int, default=200, help="of the posterior")
    parser.add_argument("--moves", type=int, default=3, help="of the particles, at each temperature")
    parser.add_argument("--blocks", type=int, default=4, help="of the TARFlow")
    parser.add_argument("--noise", type=float, default=0.15, help="standard deviation of what is observed")
    arguments = parser.parse_args()
    if arguments.seeds < 2:
        parser.error("--seeds must be two or more.")
    prepare(arguments)
    data = parts()
    torch.manual_seed(arguments.seed)
    prior = TARFlow(SHAPE, 2, channels=64, num_blocks=arguments.blocks, layers_per_block=2, head_dim=32, dropout=0.2)
    levels, fresh = data["train"].levels, dequantising(scaled)
    trained(prior, levels, arguments.seconds, arguments.seed, augment=fresh, **SETTINGS)
    velocity = ODEFlow(PictureVelocity(256), SHAPE)
    trained(velocity, levels, arguments.seconds, arguments.seed, FlowMatching(), fresh, **SETTINGS)
    generator = torch.Generator().manual_seed(arguments.seed)
    chosen = torch.randperm(len(data["test"].labels), generator=generator)[: arguments.pictures]
    pictures = fresh(data["test"].levels[chosen], generator)
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
        spreads: list[float] = []
        for picture in pictures:
            clean = degradation.operator(picture[None])[0]
            observed = clean + arguments.noise * torch.randn(clean.shape, generator=generator)
            evidence = []
            for seed in range(arguments.seed, arguments.seed + arguments.seeds):
                start = time.process_time()
                samples = restore(
                    prior, observed, degradation, arguments.particles, kernel=HMC(), moves=arguments.moves, seed=seed
                )
                middle = time.process_time()
                mode = restored_mode(velocity, observed, degradation, seed=seed)[0]
                end = time.process_time()
                evidence.append(samples.log_normalizer)
                x, weights = samples.x, samples.weights.to(samples.x)
                mean = (weights.view(-1, 1, 1, 1) * x).sum(0)
                draws = x[torch.multinomial(weights, 3, replacement=True, generator=generator)]
                found.append([psnr(mean - picture), psnr(mode - picture)])
                found[-1] += [covered(picture, x, weights, share) for share in (0.68, 0.95)]
                found[-1] += [_misfit(degradation, observed, value) for value in (picture, draws[0], mode)]
                found[-1] += [samples.effective_sample_size_fraction, middle - start, end - middle]
            spreads.append(statistics.stdev(evidence))
            shown.append([picture, observed, mean, *draws, mode])
        columns = [*zip(*found, strict=True), spreads]
        rows.append([name, *(median_and_range(column) for column in columns)])
        print(*rows[-1], flush=True)
    header = ["degradation", "PSNR, mean", "PSNR, mode", "68 % cover", "95 % cover"]
    header += [f"misfit, {what}" for what in ("picture", "draw", "mode")]
    header += ["ESS", "seconds, posterior", "seconds, mode", "spread"]
    print("\n" + markdown_table(header, rows))
    draw(shown, arguments.output)


def covered(picture: Tensor, x: Tensor, weights: Tensor, share: float) -> float:
    """The share of pixels inside the central interval of this weight."""
    low, high = weighted_quantiles(x, weights, ((1 - share) / 2, (1 + share) / 2))
    return float(((picture >= low) & (picture <= high)).float().mean())


def _misfit(degradation: Degradation, observed: Tensor, picture: Tensor) -> float:
    error = (degradation.operator(picture[None])[0] - observed) / degradation.noise
    return float(error.square().mean().sqrt())


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
