"""Training of flows on latents of clips, and of autoencoders."""

from video.training.autoencoder import NoisyReconstruction, train_autoencoder
from video.training.clips import train_on_clips
from video.training.likelihood import NoisyLikelihood

__all__ = ["NoisyLikelihood", "NoisyReconstruction", "train_autoencoder", "train_on_clips"]
