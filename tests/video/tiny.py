"""Tiny instances of the parts of a video model, of the same classes as the real ones."""

from __future__ import annotations

import torch

from examples.moving_digits.data import WORDS
from examples.moving_digits.train import ANCHORED, FRAME_RATE, LATER, TEXT_LENGTH
from tests.video.recorded import perturbed
from video.flows.starflow_v import STARFlowV
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
    return Pipeline(perturbed(flow), tiny_latents(), text, settings)
