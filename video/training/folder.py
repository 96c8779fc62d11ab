"""An autoencoder of a user's own folder: its images, and the frames of its clips."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from torch import Tensor

from nflib.io import fingerprint
from nflib.training import TrainingConfig, TrainingResult, alone
from video.data.latent_cache import LatentCache
from video.data.options import FolderOptions
from video.data.sizes import buckets
from video.latents.latents import Pixels
from video.training.autoencoder import AutoencoderOptions, train_autoencoder
from video.training.grids import ReconstructionGrid
from video.training.run import begin_run, check_samples, spread
from video.training.starts import of_colour

FRAMES = "frames"


def train_autoencoder_on_folder(
    folder: FolderOptions, output: Path, training: TrainingConfig, autoencoder: AutoencoderOptions, samples: int = 16
) -> TrainingResult:
    """Train an autoencoder on a folder of images and clips; run again, it goes on from its last checkpoint.

    What is written: autoencoder, a folder for train; samples, frames beside their reconstructions at each validation;
    logs and checkpoints.

    Args:
        folder: images and clips.
        output: folder for all that is written.
        training: length, learning rate and everything else of the loop.
        autoencoder: what is trained: an AutoencoderKL, or one of the features of a pretrained vision encoder.
        samples: how many frames are shown at each validation; 0 for none.

    Returns:
        A summary.

    Raises:
        FileNotFoundError: files are missing.
        OSError: another run is at work in the folder, or it cannot be written.
        ValueError: files or settings that do not fit, or a run in the folder of other settings.
        ComputationError: no validation was finite.
    """
    check_samples(samples)
    folder.check_levels(has_levels=False)
    latents = autoencoder.latents(1 if folder.grey else 3, training.seed)
    if autoencoder.initial is not None:
        latents = of_colour(latents, autoencoder.initial, folder.grey)
    shapes = buckets(*folder.height_and_width(), latents.spatial_factor)
    parts = folder.parts("none")
    # What is begun with is told by its weights: at its path another may lie some day.
    former = {name: path for name in ("initial", "features") if (path := getattr(autoencoder, name)) is not None}
    given = latents if autoencoder.initial is not None else getattr(latents, "vision", latents)
    weights = dict.fromkeys(former, fingerprint(given.state_dict().values()))
    with alone(output):
        begin_run(output, folder.fixed() | dataclasses.asdict(autoencoder) | weights, former)
        caches = folder.caches(parts, shapes, Pixels(latents.in_channels), None, output / FRAMES)
        frames, validation = (_Frames(cache) for cache in caches)
        grids = []
        if samples:
            grids.append(ReconstructionGrid(latents, validation.batch(spread(len(validation), samples))["inputs"]))
        return train_autoencoder(latents, frames, validation, output, training, autoencoder, callbacks=grids)


class _Frames:
    """Clips of one frame as images."""

    def __init__(self, clips: LatentCache):
        self.clips = clips

    def __len__(self) -> int:
        return len(self.clips)

    def batch(self, indices: Tensor) -> dict[str, Tensor]:
        return {"inputs": self.clips.batch(indices)["inputs"].squeeze(1)}
