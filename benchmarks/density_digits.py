"""Exact test likelihood of 8 x 8 digits: TARFlow beside nflows and zuko, each given the same wall time in one run.

Data: scikit-learn's digits, 1,797 images with levels 0 ... 16, split at random (fixed seed) into 1,297 / 200 / 300
for training, validation and test, and dequantised with uniform noise, fresh in every training batch and drawn once
for validation and test. No model sees the labels. All models see the same preprocessing, and its log-determinant is
in the figures: bits per dimension of the 17-level data (a uniform model has log2 17 = 4.09). All are trained by the
same loop and differ only in the learning rate, weight decay and dropout that suit each of them.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from common import count_parameters
from torch import Tensor, nn

PIXELS = 64
LEVELS = 17
BATCH_SIZE = 128
EMA_DECAY = 0.99


@dataclass(frozen=True)
class Digits:
    """Levels ``(N, 64)`` for training, and dequantised images ``(N, 64)`` in [0, 17) to judge by."""

    train: Tensor
    validation: Tensor
    test: Tensor

    @classmethod
    def load(cls, seed: int) -> Digits:
        from sklearn.datasets import load_digits

        levels = torch.as_tensor(load_digits().data, dtype=torch.float32)
        generator = torch.Generator().manual_seed(seed)
        levels = levels[torch.randperm(len(levels), generator=generator)]
        noisy = levels + torch.rand(levels.shape, generator=generator)
        return cls(levels[:1297], noisy[1297:1497], noisy[1497:])

    def batches(self, generator: torch.Generator, size: int = BATCH_SIZE) -> Iterator[Tensor]:
        """Dequantised training batches without end, every image once an epoch."""
        while True:
            for rows in torch.randperm(len(self.train), generator=generator).split(size):
                levels = self.train[rows]
                yield levels + torch.rand(levels.shape, generator=generator)


class Logit:
    """``log u/(1-u)`` of the squeezed ``u = alpha + (1 - 2 alpha) x / 17``, then standardised by one number a pixel."""

    def __init__(self, train: Tensor, alpha: float):
        self.alpha = alpha
        raw, _ = self._logit(train + torch.rand(train.shape, generator=torch.Generator().manual_seed(0)))
        self.mean, self.std = raw.mean(0), raw.std(0)

    def _logit(self, x: Tensor) -> tuple[Tensor, Tensor]:
        u = self.alpha + (1 - 2 * self.alpha) * x / LEVELS
        slope = math.log((1 - 2 * self.alpha) / LEVELS) - torch.log(u) - torch.log1p(-u)
        return torch.logit(u), slope

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z, slope = self._logit(x)
        return (z - self.mean) / self.std, (slope - self.std.log()).sum(-1)


class Affine:
    """``x`` standardised by one number a pixel."""

    def __init__(self, train: Tensor, floor: float = 1.0):
        self.mean, self.std = train.mean(0) + 0.5, (train.var(0) + 1 / 12).sqrt()

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return (x - self.mean) / self.std, -self.std.log().sum().expand(len(x))


class Gaussianize:
    """Normal quantiles of each pixel: its histogram over the 17 levels (add-half smoothed) gives the distribution
    function of the dequantised pixel, piecewise linear and exact; returns z and the log-determinant."""

    def __init__(self, train: Tensor, smooth: float = 0.5):
        counts = nn.functional.one_hot(train.long(), LEVELS).sum(0).double() + smooth
        self.mass = counts / counts.sum(-1, keepdim=True)
        self.below = self.mass.cumsum(-1) - self.mass

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        level = x.long().clamp(0, LEVELS - 1)
        mass, below = (t.expand(len(x), -1, -1).gather(-1, level[..., None])[..., 0] for t in (self.mass, self.below))
        z = torch.special.ndtri((below + mass * (x.double() - level)).clamp(1e-9, 1 - 1e-9))
        slope = mass.log() + 0.5 * (z.square() + math.log(2 * math.pi))
        return z.float(), slope.sum(-1).float()


Preprocessing = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass
class Entrant:
    """One model: how to build it, and the settings of the optimiser that suit it."""

    name: str
    build: Callable[[], nn.Module]
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    settings: dict = field(default_factory=dict)


@dataclass
class Result:
    entrant: Entrant
    parameters: int
    steps: int
    seconds: float
    best_step: int
    validation: float
    test: Tensor
    history: list = field(default_factory=list)


def bits_per_dim(model: nn.Module, preprocess: Preprocessing, x: Tensor) -> Tensor:
    """Bits per dimension ``(B,)`` of dequantised images in [0, 17): the bins have width one."""
    z, logabsdet = preprocess(x)
    return -(log_density(model, z) + logabsdet) / (PIXELS * math.log(2))


def log_density(model: nn.Module, z: Tensor) -> Tensor:
    return model.log_prob(z) if hasattr(model, "log_prob") else model().log_prob(z)


def train(
    entrant: Entrant,
    data: Digits,
    preprocess: Preprocessing,
    seconds: float,
    seed: int,
    clock=time.perf_counter,
) -> Result:
    """AdamW with warm-up and cosine decay over the elapsed share of the time, gradients clipped to norm 1; weights are
    averaged exponentially, and those of the best validation figure are the ones tested."""
    torch.manual_seed(seed)
    model = entrant.build()
    averaged = copy.deepcopy(model).requires_grad_(False).eval()
    decayed = [p for p in model.parameters() if p.dim() > 1]
    plain = [p for p in model.parameters() if p.dim() <= 1]
    groups = [
        {"params": decayed, "weight_decay": entrant.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99))
    batches = data.batches(torch.Generator().manual_seed(seed), entrant.settings.get("batch", BATCH_SIZE))
    best, best_state, best_step, history = math.inf, averaged.state_dict(), 0, []
    start = clock()
    steps, next_check, elapsed = 0, 0.0, 0.0
    while elapsed < seconds:
        share = elapsed / seconds
        rate = (
            entrant.learning_rate
            * min(
                1.0,
                share / 0.03,
            )
            * 0.5
            * (1 + math.cos(math.pi * share))
        )
        rate = max(rate, entrant.learning_rate * 1e-2)
        for group in optimizer.param_groups:
            group["lr"] = rate
        model.train()
        z, logabsdet = preprocess(next(batches))
        loss = -log_density(model, z).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0 * PIXELS if False else entrant.settings.get("clip", 10.0))
        optimizer.step()
        steps += 1
        update_average(averaged, model, min(EMA_DECAY, steps / (steps + 10)))
        elapsed = clock() - start
        if elapsed >= next_check or elapsed >= seconds:
            with torch.no_grad():
                figure = bits_per_dim(averaged, preprocess, data.validation).mean().item()
            history.append(
                (
                    round(elapsed, 1),
                    steps,
                    round(figure, 4),
                    round((loss.item() - logabsdet.mean().item()) / PIXELS / math.log(2), 3),
                )
            )
            if figure < best:
                best, best_step = figure, steps
                best_state = copy.deepcopy(averaged.state_dict())
            elapsed = clock() - start
            next_check = elapsed + seconds / 60
    averaged.load_state_dict(best_state)
    with torch.no_grad():
        test = bits_per_dim(averaged, preprocess, data.test)
    return Result(entrant, count_parameters(model), steps, elapsed, best_step, best, test, history)


@torch.no_grad()
def update_average(averaged: nn.Module, model: nn.Module, decay: float) -> None:
    """Move the averaged parameters towards the model's, and copy buffers such as batch-norm statistics."""
    for mean, p in zip(averaged.parameters(), model.parameters(), strict=True):
        mean.lerp_(p, 1 - decay)
    for mean, b in zip(averaged.buffers(), model.buffers(), strict=True):
        mean.copy_(b)


def tarflow(patch_size=1, channels=64, num_blocks=4, layers_per_block=2, pos=1e-2, outstd=0.0, **kw) -> nn.Module:
    from nflib.flows import TARFlow

    class Wrap(nn.Module):
        def __init__(self):
            super().__init__()
            self.f = TARFlow(
                (1, 8, 8),
                patch_size=patch_size,
                channels=channels,
                num_blocks=num_blocks,
                layers_per_block=layers_per_block,
                **kw,
            )

        def log_prob(self, z):
            return self.f.log_prob(z.view(-1, 1, 8, 8))

    return Wrap()


def masked_autoregressive(hidden=256, layers=8, dropout=0.0, bn=True, blocks=2, **kw) -> nn.Module:
    from nflows.flows import MaskedAutoregressiveFlow

    return MaskedAutoregressiveFlow(
        features=PIXELS,
        hidden_features=hidden,
        num_layers=layers,
        num_blocks_per_layer=blocks,
        dropout_probability=dropout,
        batch_norm_between_layers=bn,
        **kw,
    )


def rational_quadratic_coupling(
    hidden=128, layers=8, dropout=0.2, bins=8, blocks=2, linear=True, tail=5.0
) -> nn.Module:
    from nflows.distributions import StandardNormal
    from nflows.flows import Flow
    from nflows.nn.nets import ResidualNet
    from nflows.transforms import (
        CompositeTransform,
        LULinear,
        PiecewiseRationalQuadraticCouplingTransform,
        RandomPermutation,
    )
    from nflows.utils import create_alternating_binary_mask

    def network(inputs: int, outputs: int) -> nn.Module:
        return ResidualNet(inputs, outputs, hidden_features=hidden, num_blocks=blocks, dropout_probability=dropout)

    parts = []
    for layer in range(layers):
        parts.append(RandomPermutation(PIXELS))
        if linear:
            parts.append(LULinear(PIXELS, identity_init=True))
        mask = create_alternating_binary_mask(PIXELS, even=layer % 2 == 0)
        parts.append(
            PiecewiseRationalQuadraticCouplingTransform(mask, network, num_bins=bins, tails="linear", tail_bound=tail)
        )
    return Flow(CompositeTransform(parts), StandardNormal([PIXELS]))


def spline_autoregressive(hidden=(256, 256), transforms=4, bins=8, **kw) -> nn.Module:
    import zuko

    return zuko.flows.NSF(features=PIXELS, transforms=transforms, bins=bins, hidden_features=hidden, **kw)
