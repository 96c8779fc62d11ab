"""Where flows of digits live in benchmarks: pixels, or latents of the video package's autoencoder."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from pathlib import Path as Folder
from typing import Protocol

import torch
from common import processor_clock, quiet
from digit_pixels import PIXELS, SIDE, Gaussianize, dequantised
from torch import Tensor
from torch.distributions import Normal

from examples.digits.data import LEVELS, Digits
from nflib.continuous import LinearPath, Path
from nflib.flows import Flow
from nflib.training.data import TensorSource
from video.training import AutoencoderOptions, train_autoencoder

# Share of levels that are no rounded decoding.
STRAY = 0.01


class Space(Protocol):
    """Where flows of pictures live.

    size: numbers z of a picture. bits_are: what `bits` gives, by name. path: of the velocities. teacher_noise: width of
    what the TARFlow's z get more than others.
    """

    size: int
    bits_are: Sequence[str]
    path: Path
    teacher_noise: float

    def rows(self, part: Digits) -> Tensor:
        """What training starts from."""
        ...

    def draw(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Of rows, fresh z ``(B, size)``."""
        ...

    def levels(self, z: Tensor) -> Tensor:
        """Levels ``(B, 64)`` of z."""
        ...

    def bits(self, flow: Flow, part: Digits) -> list[float]:
        """Bits of pictures, drawn once each."""
        ...


class Pixels(Space):
    """Pixels, dequantised and Gaussianised one by one."""

    size = PIXELS
    bits_are = ("bits",)
    path = LinearPath()

    def __init__(self, train: Digits, noise: float):
        self.preprocess, self.teacher_noise = Gaussianize(train.levels), noise

    def rows(self, part: Digits) -> Tensor:
        return part.levels

    def draw(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        return self.preprocess(dequantised(rows, generator))[0]

    def levels(self, z: Tensor) -> Tensor:
        """The inverse of `Gaussianize`, rounded down."""
        uniform = torch.special.ndtr(z.double())
        upper = (self.preprocess.below + self.preprocess.mass)[None]
        return (uniform[..., None] >= upper).sum(-1).clamp(max=LEVELS - 1).float()

    @torch.no_grad()
    def bits(self, flow: Flow, part: Digits) -> list[float]:
        z, logabsdet = self.preprocess(dequantised(part.levels, torch.Generator().manual_seed(0)))
        return [_bits_a_number(flow.log_prob(z) + logabsdet, PIXELS)]


class LatentPictures(Space):
    """Latents of the video package's AutoencoderKL, trained on the pictures, with normal noise of a width.

    With that noise an encoding is a distribution q(z | x), and what is decoded, with normal errors of a width of its
    own for each pixel, is p(x | z) of the levels x: so -log2 p(x) is at most the mean over q of ``-log2 p(x | z) p(z) /
    q(z | x)``, with p(z) of the flow. Bits of z alone compare flows on one autoencoder.
    """

    bits_are = ("bits of a latent", "bits of a pixel, at most")
    # The noise is in the latents already.
    teacher_noise = 0.0
    # Noise of 1e-5 is left at the data: the path of flow matching in latent space (Dao et al. 2023, arXiv:2307.08698).
    path = LinearPath(sigma_min=1e-5)

    def __init__(self, data: dict[str, Digits], noise: float, seconds: float, seed: int):
        options = AutoencoderOptions(channels=[32, 64], latent_channels=2, noise=noise)
        self.latents, self.noise = options.latents(1, seed), noise
        frames = {name: TensorSource({"inputs": data[name].pictures()[:, 0]}) for name in ("train", "validation")}
        config = quiet(seed, max_seconds=seconds, batch_size=64, learning_rate=2e-3)
        with tempfile.TemporaryDirectory() as folder, processor_clock():
            train_autoencoder(self.latents, frames["train"], frames["validation"], Folder(folder), config, options)
        self.latents.requires_grad_(False)
        _, channels, height, width = self.latents.latent_shape((1, 1, SIDE, SIDE))
        self.grid = height, width, channels
        self.size = math.prod(self.grid)
        self.widths = self._widths(data["train"])

    def rows(self, part: Digits) -> Tensor:
        """Means ``(N, size)``, pixel of the latents after pixel."""
        return self.latents.encode(part.pictures()).movedim(2, -1).flatten(1)

    def draw(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        return rows + self.noise * torch.randn(rows.shape, generator=generator)

    def levels(self, z: Tensor) -> Tensor:
        return self._decoded(z).round()

    @torch.no_grad()
    def bits(self, flow: Flow, part: Digits) -> list[float]:
        means = self.rows(part)
        z = self.draw(means, torch.Generator().manual_seed(0))
        prior, posterior = flow.log_prob(z), Normal(means, self.noise).log_prob(z).sum(1)
        picture = log_mass(self._decoded(z), part.levels, self.widths).sum(1)
        return [_bits_a_number(prior, self.size), _bits_a_number(picture + prior - posterior, PIXELS)]

    def _decoded(self, z: Tensor) -> Tensor:
        frames = self.latents.decode(z.view(-1, 1, *self.grid).movedim(-1, 2))
        return (frames.flatten(1) + 1) * ((LEVELS - 1) / 2)

    def _widths(self, part: Digits) -> Tensor:
        """Of the errors of each pixel, those that suit the pictures best, ``(64,)``."""
        decoded = self._decoded(self.draw(self.rows(part), torch.Generator().manual_seed(1)))
        widths = torch.logspace(-1.5, 1, 51, dtype=torch.float64)
        fits = torch.stack([log_mass(decoded, part.levels, width).mean(0) for width in widths])
        return widths[fits.argmax(0)]


def log_mass(mean: Tensor, levels: Tensor, width: Tensor) -> Tensor:
    """log P of levels: the share of a normal that is rounded to each, the outer ones with its tails, and a stray rest.

    The rest is for what no decoding comes near to, such as a mark in a margin that was always empty.
    """
    normal = Normal(mean.double(), width)
    below = torch.where(levels > 0, normal.cdf(levels - 0.5), 0.0)
    up_to = torch.where(levels < LEVELS - 1, normal.cdf(levels + 0.5), 1.0)
    return torch.log((1 - STRAY) * (up_to - below) + STRAY / LEVELS)


def _bits_a_number(log_prob: Tensor, count: int) -> float:
    return float(-log_prob.mean()) / (count * math.log(2))
