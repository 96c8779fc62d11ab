"""The likelihood of a clip, frame by frame."""

from __future__ import annotations

import sys
from pathlib import Path

from torch import Tensor

from video.commands.options import ModelOptions, read_filled


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
    nats = pipeline.nats_per_dim(read_filled(pipeline, clip), prompt or [""], seed=seed)[0]
    lines = [f"{number:5d}  {value:8.4f}" for number, value in enumerate(nats.tolist(), 1)]
    sys.stdout.write("\n".join(["frame  nats per dimension", *lines, f" mean  {nats.mean():8.4f}"]) + "\n")
    return nats
