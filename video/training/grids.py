"""What a run shows while it trains: a grid of samples, and how likely clips are that it does not learn."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from nflib.processes import is_first_process
from nflib.training import TrainingState
from video.latents.latents import Latents
from video.media import grid, write_clip
from video.pipeline import Pipeline
from video.pipeline_settings import PipelineSettings
from video.text.encoders import TextEncoder

FOLDER = "samples"

log = logging.getLogger(__name__)


def write_grid(clips: Tensor, path: Path, columns: int | None = None) -> Path:
    """Write clips as one PNG: each a row of its frames, or images in a square.

    Args:
        clips: ``(B, T, C, H, W)`` in -1 … 1.
        path: of the PNG.
        columns: pictures in a row (default: as said).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    frames = clips.shape[1] if clips.shape[1] > 1 else None
    return write_clip(grid(clips.flatten(0, 1).unsqueeze(1), columns or frames), path)


def grid_path(state: TrainingState) -> Path:
    """Where the grid of a step is written."""
    return state.output / FOLDER / f"step-{state.step:09d}.png"


@dataclass(frozen=True)
class SampleGrid:
    """A callback of `nflib.training.fit`: with each validation, its bits per dimension in the log, and samples as PNG.

    Samples are drawn by the averaged weights, always from the same seed. Where they overflow, as they may early on, the
    log says so instead.

    Args:
        latents: of the pipeline that the flow is to be part of.
        text: of that pipeline.
        settings: of that pipeline.
        prompts: one a sample; none for no grid.
        unit: what the bits are of.
    """

    latents: Latents
    text: TextEncoder
    settings: PipelineSettings
    prompts: Sequence[str]
    unit: str

    def __call__(self, state: TrainingState) -> None:
        if state.validation_loss is None or not is_first_process():
            return
        told = f"step {state.step}: {state.validation_loss:.4f} bits per dimension of {self.unit}"
        if not self.prompts:
            log.info("%s.", told)
            return
        try:
            with state.averaged() as flow:
                pipeline = Pipeline(flow, self.latents, self.text, self.settings)  # type: ignore[arg-type]
                clips = pipeline.generate(self.prompts, seed=0)
            log.info("%s; samples in %s.", told, write_grid(clips, grid_path(state)))
        except ValueError as error:
            log.warning("%s; no samples: %s", told, error)


@dataclass(frozen=True)
class ReconstructionGrid:
    """A callback of `nflib.training.fit` for autoencoders: at each validation, frames beside their reconstructions.

    Args:
        latents: the autoencoder.
        frames: ``(B, C, H, W)`` in -1 … 1, which it does not learn.
    """

    latents: Latents
    frames: Tensor

    @torch.no_grad()
    def __call__(self, state: TrainingState) -> None:
        if state.validation_loss is None or not is_first_process():
            return
        with state.averaged() as module:
            latents, frames = self.latents, self.frames.to(next(module.parameters()).device)
            inputs = latents.encoder_inputs(frames)
            z = latents.posterior(inputs).mode()
            decoded, errors = latents.decode_frames(z).clamp(-1, 1), latents.errors(z, inputs, frames)
        psnr = 10 * math.log10(4 / max(float((decoded - frames).square().mean()), 1e-12))
        path = write_grid(torch.stack([frames, decoded], 1), grid_path(state), columns=8)
        told = ", ".join(f"{name.replace('_', ' ')} {float(error):.4g}" for name, error in errors.items())
        shown = "step %d: loss %.4g, PSNR %.1f dB, %s; frames and their reconstructions in %s."
        log.info(shown, state.step, state.validation_loss, psnr, told, path)
