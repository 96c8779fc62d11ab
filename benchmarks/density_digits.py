"""Exact test likelihood of 8 x 8 digits: TARFlow beside nflows and zuko, each given the same wall time in one run.

    python benchmarks/density_digits.py --seconds 90

Data: scikit-learn's digits, 1,797 images with levels 0 ... 16, split at random (fixed seed) into 1,297 / 200 / 300
for training, validation and test, and dequantised with uniform noise, fresh in every training batch and drawn once
for validation and test. No model sees the labels. All models see the same preprocessing, and its log-determinant is
in the figures: bits per dimension of the 17-level data (a uniform model has log2 17 = 4.09). All are trained by the
same loop; they differ in learning rate, weight decay and dropout, which were tuned for each.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import zuko
from common import argument_parser, count_parameters, markdown_table, prepare
from nflows.distributions import StandardNormal
from nflows.flows import Flow, MaskedAutoregressiveFlow
from nflows.nn.nets import ResidualNet
from nflows.transforms import (
    CompositeTransform,
    LULinear,
    PiecewiseRationalQuadraticCouplingTransform,
    RandomPermutation,
    Transform,
)
from nflows.utils import create_alternating_binary_mask
from sklearn.datasets import load_digits
from torch import Tensor, nn

from nflib.flows import TARFlow

PIXELS, LEVELS = 64, 17
BATCH_SIZE = 64
EMA_DECAY = 0.99
WARMUP = 0.05


@dataclass(frozen=True)
class Digits:
    """Levels ``(N, 64)`` for training, and dequantised images ``(N, 64)`` in [0, 17) to judge by."""

    train: Tensor
    validation: Tensor
    test: Tensor

    @classmethod
    def load(cls, seed: int) -> Digits:
        levels = torch.as_tensor(load_digits().data, dtype=torch.float32)
        generator = torch.Generator().manual_seed(seed)
        levels = levels[torch.randperm(len(levels), generator=generator)]
        noisy = levels + torch.rand(levels.shape, generator=generator)
        return cls(levels[:1297], noisy[1297:1497], noisy[1497:])

    def batches(self, generator: torch.Generator) -> Iterator[Tensor]:
        """Dequantised training batches without end, every image once an epoch."""
        while True:
            for rows in torch.randperm(len(self.train), generator=generator).split(BATCH_SIZE):
                levels = self.train[rows]
                yield levels + torch.rand(levels.shape, generator=generator)


class Gaussianize:
    """Normal quantiles of each pixel; returns z and the log-determinant.

    The histogram of a pixel over the 17 levels, add-half smoothed, gives the distribution function of the dequantised
    pixel, which is piecewise linear and exact.
    """

    def __init__(self, train: Tensor, smoothing: float = 0.5):
        counts = nn.functional.one_hot(train.long(), LEVELS).sum(0).double() + smoothing
        self.mass = counts / counts.sum(-1, keepdim=True)
        self.below = self.mass.cumsum(-1) - self.mass

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        level = x.long().clamp(0, LEVELS - 1)
        mass, below = (t.expand(len(x), -1, -1).gather(-1, level[..., None])[..., 0] for t in (self.mass, self.below))
        z = torch.special.ndtri((below + mass * (x.double() - level)).clamp(1e-9, 1 - 1e-9))
        slope = mass.log() + 0.5 * (z.square() + math.log(2 * math.pi))
        return z.float(), slope.sum(-1).float()


@dataclass(frozen=True)
class Entrant:
    """One model: how to build it, and the settings of the optimiser that suit it."""

    build: Callable[[], nn.Module]
    learning_rate: float
    weight_decay: float


def spline_couplings(num_layers: int, hidden: int = 128, dropout: float = 0.2) -> list[Transform]:
    """nflows' rational-quadratic coupling layers with alternating masks, permutations and linear maps between them."""

    def network(inputs: int, outputs: int) -> nn.Module:
        return ResidualNet(inputs, outputs, hidden_features=hidden, num_blocks=2, dropout_probability=dropout)

    parts: list[Transform] = []
    for layer in range(num_layers):
        mask = create_alternating_binary_mask(PIXELS, even=layer % 2 == 0)
        parts += [
            RandomPermutation(PIXELS),
            LULinear(PIXELS, identity_init=True),
            PiecewiseRationalQuadraticCouplingTransform(mask, network, num_bins=8, tails="linear", tail_bound=5.0),
        ]
    return parts


def tarflow(conditional: str) -> TARFlow:
    """A token is a row of the image; splines, autoregressive inside the row, need fewer maps than affine ones."""
    settings: dict[str, Any] = {"num_blocks": 6, "dropout": 0.25}
    if conditional == "spline":
        settings = {"num_blocks": 2, "dropout": 0.4, "head_dim": 32, "start_token": True}
    return TARFlow((PIXELS,), patch_size=8, channels=64, layers_per_block=2, conditional=conditional, **settings)


ENTRANTS = {
    "nflib TARFlow, splines": Entrant(lambda: tarflow("spline"), 3e-3, 0.1),
    "nflib TARFlow, affine": Entrant(lambda: tarflow("affine"), 3e-3, 0.1),
    "nflows MaskedAutoregressiveFlow": Entrant(
        lambda: MaskedAutoregressiveFlow(PIXELS, 256, 8, 2, dropout_probability=0.2, batch_norm_between_layers=True),
        1e-3,
        0.1,
    ),
    "nflows rational-quadratic coupling": Entrant(
        lambda: Flow(CompositeTransform(spline_couplings(8)), StandardNormal([PIXELS])), 1e-3, 1.0
    ),
    "zuko NSF": Entrant(
        lambda: zuko.flows.NSF(PIXELS, transforms=4, bins=8, hidden_features=(256, 256), randperm=True), 1e-3, 1.0
    ),
}


def log_density(model: nn.Module, z: Tensor) -> Tensor:
    """Of a flow that has `log_prob`, as ours and nflows', or that is called for a distribution, as zuko's."""
    return model.log_prob(z) if hasattr(model, "log_prob") else model().log_prob(z)


def bits_per_dim(model: nn.Module, preprocess: Gaussianize, x: Tensor) -> Tensor:
    """Bits per dimension ``(B,)`` of dequantised images in [0, 17): the bins have width one."""
    z, logabsdet = preprocess(x)
    return -(log_density(model, z) + logabsdet) / (PIXELS * math.log(2))


@torch.no_grad()
def update_average(averaged: nn.Module, model: nn.Module, decay: float) -> None:
    """Move the averaged parameters towards the model's, and copy buffers such as batch-norm statistics."""
    for mean, parameter in zip(averaged.parameters(), model.parameters(), strict=True):
        mean.lerp_(parameter, 1 - decay)
    for mean, buffer in zip(averaged.buffers(), model.buffers(), strict=True):
        mean.copy_(buffer)


def train(entrant: Entrant, data: Digits, seconds: float, seed: int) -> tuple[nn.Module, int, int, float]:
    """The best averaged model by validation, the steps done, the step of the best one, and its validation figure.

    AdamW with warm-up and cosine decay over the elapsed share of the time, gradients clipped to norm 10.
    """
    torch.manual_seed(seed)
    preprocess = Gaussianize(data.train)
    model = entrant.build()
    averaged = copy.deepcopy(model).eval()
    groups = [
        {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": entrant.weight_decay},
        {"params": [p for p in model.parameters() if p.dim() <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99))
    batches = data.batches(torch.Generator().manual_seed(seed))
    best, best_step, best_state = math.inf, 0, copy.deepcopy(averaged.state_dict())
    steps, next_check, start = 0, seconds / 60, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        done = elapsed / seconds
        ramp = done / WARMUP if done < WARMUP else 0.5 * (1 + math.cos(math.pi * (done - WARMUP) / (1 - WARMUP)))
        for group in optimizer.param_groups:
            group["lr"] = entrant.learning_rate * max(ramp, 0.01)
        model.train()
        z, _ = preprocess(next(batches))
        optimizer.zero_grad(set_to_none=True)
        (-log_density(model, z).mean()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        steps += 1
        update_average(averaged, model, min(EMA_DECAY, steps / (steps + 10)))
        if elapsed >= next_check:
            with torch.no_grad():
                figure = bits_per_dim(averaged, preprocess, data.validation).mean().item()
            if figure < best:
                best, best_step, best_state = figure, steps, copy.deepcopy(averaged.state_dict())
            next_check += seconds / 60
    averaged.load_state_dict(best_state)
    return averaged, steps, best_step, best


def main() -> None:
    """Train every entrant and print the table."""
    parser = argument_parser(__doc__)
    parser.add_argument("--models", nargs="+", choices=ENTRANTS, default=list(ENTRANTS), help="which to train")
    parser.add_argument("--seconds", type=float, default=90.0, help="wall time of each training")
    arguments = parser.parse_args()
    prepare(arguments)
    data = Digits.load(arguments.seed)
    preprocess = Gaussianize(data.train)
    rows = []
    for name in arguments.models:
        entrant = ENTRANTS[name]
        model, steps, best_step, validation = train(entrant, data, arguments.seconds, arguments.seed)
        with torch.no_grad():
            test = bits_per_dim(model, preprocess, data.test)
        error = test.std().item() / math.sqrt(len(test))
        figures = [f"{validation:.3f}", f"{test.mean().item():.3f}", f"{error:.3f}"]
        rows.append([name, count_parameters(model), steps, best_step, *figures])
        print(*rows[-1], flush=True)
    print(f"\nDigits, {arguments.seconds:g} s of training each, bits per dimension")
    header = ["model", "parameters", "steps", "best step", "validation", "test", "standard error"]
    print(markdown_table(header, rows))


if __name__ == "__main__":
    main()
