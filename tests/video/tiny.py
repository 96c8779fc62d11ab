"""Tiny instances of the parts of a video model, of the same classes as the real ones."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKLWan

from examples.moving_digits.data import WORDS
from examples.moving_digits.train import ANCHORED, FRAME_RATE, LATER, TEXT_LENGTH
from tests.perturb import perturb
from video import STARFlow, STARFlowV
from video.latents.autoencoder import tiny_autoencoder
from video.latents.latents import Latents
from video.pipeline import Pipeline
from video.pipeline_settings import PipelineSettings
from video.text.encoders import Words

SEVEN = "a seven moving up and right, fast"


def tiny_latents(latent_channels: int = 2) -> Latents:
    """32 × 32 to 4 × 4."""
    torch.manual_seed(1)
    autoencoder = tiny_autoencoder(latent_channels=latent_channels, channels=(4, 4, 4, 4)).eval()
    autoencoder.register_to_config(scaling_factor=2.0, shift_factor=0.1)
    return Latents(autoencoder)


def tiny_wan(halves: tuple[bool, ...] = (False, True)) -> AutoencoderKLWan:
    torch.manual_seed(0)
    sizes = {"base_dim": 4, "z_dim": 2, "dim_mult": [1, 1, 1], "num_res_blocks": 1}
    statistics = {"latents_mean": [0.5, -0.5], "latents_std": [2.0, 4.0]}
    return AutoencoderKLWan(**sizes, temperal_downsample=list(halves), **statistics)


def tiny_model(num_frames: int = 4, noise: float = 0.1, *, is_anchored: bool = False) -> Pipeline:
    text = Words(WORDS, TEXT_LENGTH)
    flow = STARFlowV(
        (num_frames, 2, 4, 4),
        2,
        20,
        [1, 1],
        text_length=text.length,
        text_channels=text.channels,
        layer={"head_dim": 20},
        denoiser={"num_layers": 1, "past": 1},
    )
    settings = PipelineSettings((num_frames, 1, 32, 32), noise, FRAME_RATE, LATER, ANCHORED if is_anchored else None)
    return Pipeline(perturb(flow), tiny_latents(), text, settings)


SMALL = {"channels": 40, "layer": {"head_dim": 20}, "text_length": 3, "text_channels": 10}


def small_image_flow(**settings: Any) -> STARFlow:
    arguments = {"event_shape": (2, 4, 4), "layers_per_block": [1, 1, 2]}
    return perturb(STARFlow(**(SMALL | arguments | settings)))


def small_video_flow(**settings: Any) -> STARFlowV:
    arguments = {"event_shape": (3, 2, 2, 4), "layers_per_block": [1, 1], "denoiser": {"num_layers": 2, "past": 1}}
    return perturb(STARFlowV(**(SMALL | arguments | settings)))
