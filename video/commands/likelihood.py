"""The likelihood of a clip, frame by frame."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from torch import Tensor

from video.commands.options import ModelOptions
from video.media import read_clip

log = logging.getLogger(__name__)


def likelihood(clip: Path, model: ModelOptions, prompt: list[str] | None = None, seed: int = 0) -> Tensor:
    """Print the negative log-density of a clip, in nats per dimension of its noisy latents, frame by frame.

    Args:
        clip: a video, GIF or image.
        model: which one.
        prompt: given which; default: without one.
        seed: of the noise on the latents.

    Returns:
        Nats per dimension ``(latent frames,)``.

    Raises:
        FileNotFoundError: files are missing.
        ValueError: files or settings that do not fit, or several prompts.
    """
    if prompt and len(prompt) > 1:
        raise ValueError(f"a likelihood is given one prompt, got {len(prompt)}.")
    pipeline = model.load()
    frames = read_clip(clip, pipeline.settings.clip_shape[1:], pipeline.settings.frame_rate).unsqueeze(0)
    filled = pipeline.filled(frames)
    if (left := frames.shape[1] - filled.shape[1]) > 0:
        log.info("%s: the last frames, %d of %d, fill no latent frame and are left out.", clip, left, frames.shape[1])
    nats = pipeline.nats_per_dim(filled, prompt or [""], seed=seed)[0]
    lines = [f"{number:5d}  {value:8.4f}" for number, value in enumerate(nats.tolist(), 1)]
    sys.stdout.write("\n".join(["frame  nats per dimension", *lines, f" mean  {nats.mean():8.4f}"]) + "\n")
    return nats
