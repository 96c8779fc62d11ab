"""A tiny AutoencoderKL, and the scale of an autoencoder's latents."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from video.latents.latents import import_diffusers


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


@torch.no_grad()
def set_scale(autoencoder: Any, frames: Tensor) -> None:
    """Set scaling_factor and shift_factor so that the latents of these frames have mean 0 and deviation 1."""
    means = torch.cat([autoencoder.encode(piece).latent_dist.mode() for piece in frames.split(64)])
    autoencoder.register_to_config(scaling_factor=1 / float(means.std()), shift_factor=float(means.mean()))
