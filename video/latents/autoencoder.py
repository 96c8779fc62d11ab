"""A tiny AutoencoderKL."""

from __future__ import annotations

import math
from typing import Any

from video.latents.latents import import_diffusers


def tiny_autoencoder(
    in_channels: int = 1, latent_channels: int = 8, channels: tuple[int, ...] = (8, 16, 32, 48), size: int = 32
) -> Any:
    """A new, small `diffusers.AutoencoderKL`.

    Args:
        in_channels: of frames.
        latent_channels: of latents.
        channels: of its levels; each but the first halves height and width.
        size: of the frames, pixels, as its configuration names it.
    """
    return import_diffusers().AutoencoderKL(
        in_channels=in_channels,
        out_channels=in_channels,
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        block_out_channels=tuple(channels),
        layers_per_block=1,
        latent_channels=latent_channels,
        norm_num_groups=math.gcd(8, *channels),
        sample_size=size,
    )
