"""Training of flows on latents of clips or on pixels, and of autoencoders."""

from video.training.autoencoder import AutoencoderOptions, NoisyReconstruction, train_autoencoder
from video.training.bits import BitsPerDimension
from video.training.clips import train_on_clips
from video.training.families import FlowOptions
from video.training.flow import train
from video.training.folder import train_autoencoder_on_folder
from video.training.likelihood import NoisyLikelihood

__all__ = [
    "AutoencoderOptions",
    "BitsPerDimension",
    "FlowOptions",
    "NoisyLikelihood",
    "NoisyReconstruction",
    "train",
    "train_autoencoder",
    "train_autoencoder_on_folder",
    "train_on_clips",
]
