"""Latents of clips by autoencoders of diffusers."""

from video.latents.latents import Latents, Pixels, WanLatents, load_latents

__all__ = ["Latents", "Pixels", "WanLatents", "load_latents"]
