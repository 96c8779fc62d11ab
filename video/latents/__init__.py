"""Latents of clips: by autoencoders of diffusers, or of the features of a pretrained vision encoder."""

from video.latents.features import FeatureAutoencoder, FeatureLatents
from video.latents.latents import Latents, Pixels, WanLatents
from video.latents.load import load_latents
from video.latents.vision import PatchFeatures

__all__ = ["FeatureAutoencoder", "FeatureLatents", "Latents", "PatchFeatures", "Pixels", "WanLatents", "load_latents"]
