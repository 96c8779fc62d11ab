"""Bits per dimension of handwritten digits, given their class: TARFlow beside other flows, at equal training time.

    python benchmarks/image_bits.py --reference ml-tarflow --threads 1

Data: scikit-learn's digits, 8 × 8 pixels of 17 levels, in the parts of `examples.digits.data`: 1,297 to train, 200 to
validate, 300 to test. Bits are -log2 p a dimension of the levels, dequantised by uniform noise (fresh in each batch,
ten draws of each test picture), and so a bound on those of a lossless code; a uniform model has log2 17 = 4.09. All
models are given the class and see the same preprocessing, whose log-determinant is in the figures. Time is that of the
processor, which others' work on the machine leaves alone, without validation. Each method is tried at several settings
for a shorter time, and the one of best validation trained with every seed; its weights, averaged, are those of best
validation. --reference: a checkout of https://github.com/apple/ml-tarflow, whose row is left out without.
"""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, cast

import torch
import zuko
from common import argument_parser, count_parameters, load_reference, markdown_table, median_and_range, prepare
from digit_pixels import PIXELS, SIDE, Gaussianize, dequantised
from nflows.distributions import StandardNormal
from nflows.flows import Flow
from nflows.nn.nets import ResidualNet
from nflows.transforms import (
    CompositeTransform,
    LULinear,
    PiecewiseRationalQuadraticCouplingTransform,
    RandomPermutation,
    Transform,
)
from nflows.utils import create_alternating_binary_mask
from torch import Tensor, nn

from examples.digits.data import NAMES, Digits, parts
from nflib.continuous import RK4, FlowMatching, Heun, MLPVelocity, ODEFlow, Solver
from nflib.flows import TARFlow
from nflib.training import ExponentialMovingAverage

CLASSES = len(NAMES)
BATCH_SIZE = 64
EMA_DECAY = 0.99
WARMUP = 0.05
CHECKS = 40
TEST_DRAWS = 10


@dataclass(frozen=True)
class Setting:
    """One model: how to build it, its log-density of z ``(B, 64)`` given labels, and what its optimiser takes."""

    name: str
    build: Callable[[], nn.Module]
    log_prob: Callable[[nn.Module, Tensor, Tensor], Tensor]
    learning_rate: float
    weight_decay: float
    # Of z, labels and a generator, where it is not minus the log-density that is minimised.
    loss: Callable[[nn.Module, Tensor, Tensor, torch.Generator], Tensor] | None = None
    # Of the test, where that of validation is an estimate.
    exact: Callable[[nn.Module, Tensor, Tensor], Tensor] | None = None


class Trained(NamedTuple):
    """model: of the averaged weights that were best in validation. validation: their bits per dimension."""

    model: nn.Module
    steps: int
    best_step: int
    validation: float


def one_hot(labels: Tensor) -> Tensor:
    return nn.functional.one_hot(labels, CLASSES).float()


def of_rows(model: nn.Module, z: Tensor, labels: Tensor) -> Tensor:
    return model.log_prob(z, labels)  # type: ignore[operator]


def of_nflows(model: nn.Module, z: Tensor, labels: Tensor) -> Tensor:
    return model.log_prob(z, context=one_hot(labels))  # type: ignore[operator]


def of_zuko(model: nn.Module, z: Tensor, labels: Tensor) -> Tensor:
    return model(one_hot(labels)).log_prob(z)


def of_solver(solver: Solver, density: str) -> Callable[[nn.Module, Tensor, Tensor], Tensor]:
    """The log-density of a continuous flow by a solver of its own."""

    def log_prob(model: nn.Module, z: Tensor, labels: Tensor) -> Tensor:
        return model.with_solver(solver, density).log_prob(z, one_hot(labels), 300)  # type: ignore[operator]

    return log_prob


def flow_matching(model: nn.Module, z: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
    return FlowMatching()(cast(ODEFlow, model), {"inputs": z, "context": one_hot(labels)}, generator)[0]


def of_reference(model: nn.Module, z: Tensor, labels: Tensor) -> Tensor:
    """The public code's log-determinants are means over dimensions."""
    noise, _, logdets = model(z.view(-1, 1, SIDE, SIDE), labels)
    log_normal = -0.5 * (noise.square() + math.log(2 * math.pi))
    return log_normal.flatten(1).sum(1) + PIXELS * logdets


def tarflow(conditional: str, num_blocks: int, dropout: float, learning_rate: float = 3e-3) -> Setting:
    """A token is a row of the image; splines, autoregressive inside the row, need fewer maps than affine ones."""

    def build() -> TARFlow:
        spline: dict[str, Any] = {"head_dim": 32, "start_token": True} if conditional == "spline" else {}
        return TARFlow((PIXELS,), SIDE, 64, num_blocks, 2, CLASSES, conditional=conditional, dropout=dropout, **spline)

    return Setting(f"{num_blocks} blocks, dropout {dropout}", build, of_rows, learning_rate, 0.1)


def velocity_field(channels: int, weight_decay: float) -> Setting:
    """A continuous flow by flow matching, judged on the way by Hutchinson's estimate and at the end exactly."""

    def build() -> ODEFlow:
        return ODEFlow(
            MLPVelocity(PIXELS, channels=channels, context_size=CLASSES), (PIXELS,), context_shape=(CLASSES,)
        )

    return Setting(
        f"{channels} channels, weight decay {weight_decay}",
        build,
        of_solver(RK4(4), "hutchinson"),
        2e-3,
        weight_decay,
        flow_matching,
        of_solver(Heun(8), "map"),
    )


def spline_couplings(num_layers: int, hidden: int, dropout: float) -> Setting:
    """nflows' rational-quadratic coupling layers with alternating masks, permutations and linear maps between them."""

    def network(inputs: int, outputs: int) -> nn.Module:
        return ResidualNet(inputs, outputs, hidden, CLASSES, num_blocks=2, dropout_probability=dropout)

    def build() -> nn.Module:
        layers: list[Transform] = []
        for layer in range(num_layers):
            mask = create_alternating_binary_mask(PIXELS, even=layer % 2 == 0)
            layers += [
                RandomPermutation(PIXELS),
                LULinear(PIXELS, identity_init=True),
                PiecewiseRationalQuadraticCouplingTransform(mask, network, num_bins=8, tails="linear", tail_bound=5.0),
            ]
        return Flow(CompositeTransform(layers), StandardNormal([PIXELS]))

    return Setting(f"{num_layers} layers of {hidden}, dropout {dropout}", build, of_nflows, 1e-3, 1.0)


def zuko_spline_flow(num_transforms: int, hidden: int, randperm: bool = True) -> Setting:
    """zuko's autoregressive neural spline flow."""

    def build() -> nn.Module:
        return zuko.flows.NSF(
            PIXELS, CLASSES, transforms=num_transforms, bins=8, hidden_features=(hidden, hidden), randperm=randperm
        )

    order = "random orders" if randperm else "raster order and back"
    return Setting(f"{num_transforms} transforms of {hidden}, {order}", build, of_zuko, 1e-3, 1.0)


def reference_tarflow(module: ModuleType, patch_size: int, channels: int, learning_rate: float) -> Setting:
    """The public TARFlow, which has affine maps and no dropout."""

    def build() -> nn.Module:
        return module.Model(1, SIDE, patch_size, channels, num_blocks=4, layers_per_block=2, num_classes=CLASSES)

    name = f"patches of {patch_size}, {channels} channels, rate {learning_rate}"
    return Setting(name, build, of_reference, learning_rate, 0.1)


def methods(reference: ModuleType | None) -> dict[str, list[Setting]]:
    """Each method's settings that are tried."""
    found = {
        "nflib TARFlow, splines": [tarflow("spline", 2, 0.4), tarflow("spline", 2, 0.3), tarflow("spline", 3, 0.4)],
        "nflib TARFlow, affine": [tarflow("affine", 6, 0.25), tarflow("affine", 4, 0.25)],
        "nflib ODE flow": [velocity_field(256, 0.1), velocity_field(256, 1.0), velocity_field(512, 1.0)],
        "nflows RQ-spline coupling": [
            spline_couplings(8, 128, 0.2),
            spline_couplings(4, 128, 0.2),
            spline_couplings(4, 256, 0.4),
        ],
        "zuko NSF": [zuko_spline_flow(4, 256), zuko_spline_flow(2, 256), zuko_spline_flow(2, 256, randperm=False)],
    }
    if reference is not None:
        found["public TARFlow (ml-tarflow)"] = [
            reference_tarflow(reference, 2, 64, 1e-3),
            reference_tarflow(reference, 2, 64, 3e-3),
            reference_tarflow(reference, 4, 128, 3e-3),
        ]
    return found


def bits_per_dim(setting: Setting, model: nn.Module, preprocess: Gaussianize, x: Tensor, labels: Tensor) -> Tensor:
    """Bits per dimension ``(B,)`` of dequantised images in [0, 17): the bins have width one."""
    z, logabsdet = preprocess(x)
    return -(setting.log_prob(model, z, labels) + logabsdet) / (PIXELS * math.log(2))


@torch.no_grad()
def judged(setting: Setting, model: nn.Module, preprocess: Gaussianize, part: Digits, draws: int) -> float:
    """Mean bits per dimension over so many draws of the noise."""
    generator = torch.Generator().manual_seed(0)
    bits = [
        bits_per_dim(setting, model, preprocess, dequantised(part.levels, generator), part.labels).mean()
        for _ in range(draws)
    ]
    return torch.stack(bits).mean().item()


def batches(part: Digits, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Dequantised images and labels without end, every image once an epoch."""
    while True:
        for rows in torch.randperm(len(part.labels), generator=generator).split(BATCH_SIZE):
            yield dequantised(part.levels[rows], generator), part.labels[rows]


def train(setting: Setting, data: dict[str, Digits], preprocess: Gaussianize, seconds: float, seed: int) -> Trained:
    """Train by AdamW with warm-up and cosine decay over the elapsed share of the time; gradients are clipped to 10.

    Not by `nflib.training.fit`, which counts the time of validation, and that of continuous flows is long.
    """
    torch.manual_seed(seed)
    model = setting.build()
    ema = ExponentialMovingAverage(model, EMA_DECAY)
    groups = [
        {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": setting.weight_decay},
        {"params": [p for p in model.parameters() if p.dim() <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99))
    generator = torch.Generator().manual_seed(seed)
    stream = batches(data["train"], generator)
    best, best_step, best_weights = math.inf, 0, copy.deepcopy(ema.average)
    steps, elapsed, checked = 0, 0.0, 0
    model.train()
    while elapsed < seconds:
        start = time.process_time()
        done = elapsed / seconds
        ramp = done / WARMUP if done < WARMUP else 0.5 * (1 + math.cos(math.pi * (done - WARMUP) / (1 - WARMUP)))
        for group in optimizer.param_groups:
            group["lr"] = setting.learning_rate * max(ramp, 0.01)
        optimizer.zero_grad(set_to_none=True)
        x, labels = next(stream)
        if setting.loss is None:
            loss = bits_per_dim(setting, model, preprocess, x, labels).mean() * PIXELS * math.log(2)
        else:
            loss = setting.loss(model, preprocess(x)[0], labels, generator)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        steps += 1
        ema.update(model)
        elapsed += time.process_time() - start
        if elapsed >= (checked + 1) * seconds / CHECKS:
            checked += 1
            with ema.applied(model):
                figure = judged(setting, model, preprocess, data["validation"], 1)
            if figure < best:
                best, best_step, best_weights = figure, steps, copy.deepcopy(ema.average)
    ema.average = best_weights
    ema.copy_to(model)
    return Trained(model.eval(), steps, best_step, best)


def main() -> None:
    """Try every method's settings, train the best of each with all seeds, and print the table."""
    parser = argument_parser(__doc__)
    parser.add_argument("--reference", type=Path, help="checkout of apple/ml-tarflow")
    parser.add_argument("--methods", nargs="+", help="which to train, by the beginning of their names (default: all)")
    parser.add_argument("--seconds", type=float, default=40.0, help="processor time of each training")
    parser.add_argument("--trial_seconds", type=float, default=20.0, help="and of each setting that is tried")
    parser.add_argument("--num_seeds", type=int, default=3, help="trainings of each method")
    arguments = parser.parse_args()
    prepare(arguments)
    if arguments.reference is None:
        print("No --reference is given: the row of the public TARFlow is left out.\n")
    data = parts()
    preprocess = Gaussianize(data["train"].levels)
    rows = []
    for name, settings in methods(arguments.reference and load_reference(arguments.reference)).items():
        if arguments.methods and not name.startswith(tuple(arguments.methods)):
            continue
        tried = {}
        for setting in settings:
            tried[setting] = train(setting, data, preprocess, arguments.trial_seconds, arguments.seed).validation
            print(f"{name}, {setting.name}: {tried[setting]:.3f} in validation", flush=True)
        setting = min(tried, key=tried.__getitem__)
        runs = [
            train(setting, data, preprocess, arguments.seconds, arguments.seed + number)
            for number in range(arguments.num_seeds)
        ]
        final = replace(setting, log_prob=setting.exact or setting.log_prob)
        test = [judged(final, run.model, preprocess, data["test"], TEST_DRAWS) for run in runs]
        steps, best_step = (
            int(statistics.median(getattr(run, what) for run in runs)) for what in ("steps", "best_step")
        )
        rows.append(
            [
                *(name, setting.name, count_parameters(runs[0].model), steps, best_step),
                f"{statistics.median(run.validation for run in runs):.3f}",
                median_and_range(test),
            ]
        )
        print(*rows[-1], flush=True)
    print(f"\nDigits, {arguments.seconds:g} s of training each, bits per dimension, median (range) of seeds")
    print(markdown_table(["method", "setting", "parameters", "steps", "best step", "validation", "test"], rows))


if __name__ == "__main__":
    main()
