"""Training of an autoencoder on a folder of images or clips."""

from __future__ import annotations

from pathlib import Path

from nflib.training import TrainingResult
from nflib.training.config import TrainingConfig
from video.data.options import FolderOptions
from video.training.folder import train_autoencoder_on_folder


def train_autoencoder(
    data: FolderOptions,
    output: Path,
    training: TrainingConfig,
    initial: str | None = None,
    decoder_only: bool = False,
    noise: float = 0.15,
    divergence_weight: float = 1e-4,
    latent_channels: int = 8,
    channels: list[int] = [32, 64, 96, 128],  # noqa: B006 jsonargparse shows it, nobody changes it
    samples: int = 16,
) -> TrainingResult:
    """Train an AutoencoderKL on images and the frames of clips; run again, it goes on from its last checkpoint.

    What is written: autoencoder, a folder of diffusers, for train; samples, frames beside their reconstructions at each
    validation; logs and checkpoints.

    Args:
        data: images and clips.
        output: folder for all that is written.
        training: length, learning rate and everything else of the loop.
        initial: an autoencoder to start from: a folder or a name on the hub; its architecture then holds.
        decoder_only: leave its encoder, and so its latents, as they are: fine-tune the decoder on noisy latents.
        noise: standard deviation added to latents, as a fraction of theirs.
        divergence_weight: weight of the KL divergence of the latents from N(0, 1).
        latent_channels: channels of the latents.
        channels: of the levels; each but the first halves height and width.
        samples: how many frames are shown at each validation; 0 for none.

    Returns:
        A summary.

    Raises:
        FileNotFoundError: files are missing.
        OSError: another run is at work in the folder, or it cannot be written.
        ValueError: files or settings that do not fit, or a run in the folder of other settings.
    """
    return train_autoencoder_on_folder(
        data,
        output,
        training,
        initial=initial,
        decoder_only=decoder_only,
        noise=noise,
        divergence_weight=divergence_weight,
        latent_channels=latent_channels,
        channels=tuple(channels),
        samples=samples,
    )
