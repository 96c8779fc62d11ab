"""A tiny AutoencoderKL, trained on frames; or an autoencoder's decoder, made used to noisy latents."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nflib.training import TrainingConfig, TrainingResult, fit
from video.data import MovingDigits
from video.latents import import_diffusers, load_latents


def tiny_autoencoder(
    in_channels: int = 1, latent_channels: int = 8, channels: tuple[int, ...] = (8, 16, 32, 48), size: int = 32
) -> Any:
    """A small `diffusers.AutoencoderKL`: each of `channels` but the first halves height and width."""
    return import_diffusers().AutoencoderKL(
        in_channels=in_channels,
        out_channels=in_channels,
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        block_out_channels=tuple(channels),
        layers_per_block=1,
        latent_channels=latent_channels,
        norm_num_groups=min(8, *channels),
        sample_size=size,
    )


@dataclass(frozen=True)
class NoisyReconstruction:
    """Squared error of frames decoded from noisy latents, plus a small KL divergence of the posterior from N(0, 1).

    noise: standard deviation of what is added to latents, as a fraction of their own, which is how a flow adds it to
    latents of deviation 1. divergence_weight: of the KL divergence, both per number. In validation too.
    """

    noise: float = 0.15
    divergence_weight: float = 1e-4

    def __call__(
        self, module: nn.Module, batch: dict[str, Tensor], generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        frames, autoencoder = batch["inputs"], module.autoencoder
        posterior: Any = autoencoder.encode(frames).latent_dist  # type: ignore[operator,union-attr]
        scale = self.noise * posterior.mean.detach().std()
        drawn = [torch.randn(posterior.mean.shape, generator=generator, device=frames.device) for _ in range(2)]
        z = posterior.mean + posterior.std * drawn[0] + scale * drawn[1]
        decoded: Tensor = autoencoder.decode(z).sample  # type: ignore[operator,union-attr]
        error = (decoded - frames).square().mean()
        divergence = posterior.kl().mean() / posterior.mean[0].numel()
        return error + self.divergence_weight * divergence, {
            "squared_error": error.detach(),
            "divergence": divergence.detach(),
        }


class Frames:
    """Single frames of moving digits, most of them with an afterglow; a `nflib.training.BatchSource`."""

    def __init__(self, split: str, num_frames: int, seed: int = 0):
        self.clips = MovingDigits(split, num_frames, 1, cuts=0.7, seed=seed)

    def __len__(self) -> int:
        return len(self.clips)

    def batch(self, indices: Tensor) -> dict[str, Tensor]:
        return {"inputs": self.clips.clips(indices).frames[:, 0]}


class _Trained(nn.Module):
    """What `fit` trains and saves: weights alone, whatever the autoencoder's own way of saving."""

    def __init__(self, autoencoder: nn.Module):
        super().__init__()
        self.autoencoder = autoencoder


def train_autoencoder(
    output: str | os.PathLike[str],
    config: TrainingConfig,
    *,
    initial: str | None = None,
    decoder_only: bool = False,
    noise: float = 0.15,
    divergence_weight: float = 1e-4,
    latent_channels: int = 8,
    channels: tuple[int, ...] = (8, 16, 32, 48),
) -> TrainingResult:
    """Train on frames of moving digits; the arguments are those of the command line.

    Writes ``output/autoencoder``, a folder of diffusers whose scaling_factor and shift_factor are those of the training
    frames. decoder_only: the encoder of `initial` stays as it is, and so do its latents: fine-tuning of the decoder on
    noisy latents (TARFlow and STARFlow decode noisy samples so). Raises ValueError for decoder_only without `initial`.
    """
    if decoder_only and initial is None:
        raise ValueError("decoder_only needs an autoencoder to begin with; name its folder by initial.")
    torch.manual_seed(config.seed)
    autoencoder = (
        tiny_autoencoder(latent_channels=latent_channels, channels=channels)
        if initial is None
        else load_latents(initial).autoencoder.requires_grad_(True)
    )
    if decoder_only:
        autoencoder.encoder.requires_grad_(False)
        if autoencoder.quant_conv is not None:
            autoencoder.quant_conv.requires_grad_(False)
    result = fit(
        _Trained(autoencoder),
        Frames("train", 1_000_000, config.seed),
        Frames("validation", 512, config.seed + 1),
        config=config,
        objective=NoisyReconstruction(noise, divergence_weight),
        output=Path(output),
    )
    autoencoder.to("cpu")
    if not decoder_only:
        set_scale(autoencoder, Frames("train", 2048, config.seed + 2).batch(torch.arange(2048))["inputs"])
    autoencoder.save_pretrained(Path(output) / "autoencoder")
    return result


@torch.no_grad()
def set_scale(autoencoder: Any, frames: Tensor) -> None:
    """Set scaling_factor and shift_factor so that the latents of these frames have mean 0 and deviation 1."""
    means = torch.cat([autoencoder.encode(piece).latent_dist.mode() for piece in frames.split(64)])
    autoencoder.register_to_config(scaling_factor=1 / float(means.std()), shift_factor=float(means.mean()))
