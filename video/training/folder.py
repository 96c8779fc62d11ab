"""An autoencoder of a user's own folder: its images, and the frames of its clips."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from nflib.training import TrainingConfig, TrainingResult
from video.data.latent_cache import LatentCache
from video.data.options import FolderOptions
from video.data.sizes import buckets
from video.latents.latents import Pixels
from video.training.autoencoder import train_autoencoder
from video.training.grids import ReconstructionGrid
from video.training.run import begin_run, spread

FRAMES = "frames"


def train_autoencoder_on_folder(
    folder: FolderOptions, output: Path, config: TrainingConfig, *, samples: int = 16, **settings: Any
) -> TrainingResult:
    """Train an `AutoencoderKL` on the images and the frames of clips of a folder; run again, it goes on.

    settings: of `video.training.train_autoencoder`. Raises as `video.training.train` does.
    """
    pixels = Pixels(1 if folder.grey else 3)
    shapes = buckets(*folder.height_and_width(), 2 ** (len(settings["channels"]) - 1))
    parts = folder.parts("none")
    begin_run(output, folder.fixed() | settings)
    training, validation = (_Frames(cache) for cache in folder.caches(parts, shapes, pixels, None, output / FRAMES))
    shown = validation.batch(spread(len(validation), samples))["inputs"]
    grids = [ReconstructionGrid(shown)] if samples else []
    return train_autoencoder(training, validation, output, config, callbacks=grids, **settings)


class _Frames:
    """Clips of one frame as images."""

    def __init__(self, clips: LatentCache):
        self.clips = clips

    def __len__(self) -> int:
        return len(self.clips)

    def batch(self, indices: Tensor) -> dict[str, Tensor]:
        return {"inputs": self.clips.batch(indices)["inputs"].squeeze(1)}
