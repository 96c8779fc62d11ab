"""Latents of clips by autoencoders of diffusers."""

from video.latents.latents import Latents, WanLatents, load_latents

__all__ = ["Latents", "WanLatents", "load_latents"]
