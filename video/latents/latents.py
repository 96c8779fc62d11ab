"""Latents of clips by the autoencoders of diffusers: from the hub, or from a local folder."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from video.errors import first_line

# What a saved autoencoder's config.json names itself.
KINDS = ("AutoencoderKL", "AutoencoderKLWan")


class Latents(nn.Module):
    """Clips ``(B, T, C, H, W)`` in -1 … 1 to latents ``(B, t, c, h, w)`` of mean 0 and deviation 1, and back.

    autoencoder: of diffusers; this class takes an `AutoencoderKL`, which codes each frame for itself. Its
    scaling_factor and shift_factor are ``latents = (z - shift) * scaling``. `encode` gives the posterior's mean, in the
    autoencoder's dtype; coded are at most `batch_size` frames at once. Raises ValueError for clips of another shape.
    """

    def __init__(self, autoencoder: Any, batch_size: int = 64):
        super().__init__()
        self.autoencoder = autoencoder
        self.batch_size = batch_size

    @property
    def in_channels(self) -> int:
        return int(self.autoencoder.config.in_channels)

    @property
    def spatial_factor(self) -> int:
        """Pixels to a latent, along height and width."""
        return int(2 ** (len(self.autoencoder.config.block_out_channels) - 1))

    @property
    def temporal_factor(self) -> int:
        """Frames to a latent frame, but for the first, which has one of its own."""
        return 1

    def latent_shape(self, clip_shape: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
        """Of clips ``(T, C, H, W)``; raises ValueError for those that cannot be coded."""
        frames, channels, height, width = clip_shape
        factor, steps = self.spatial_factor, self.temporal_factor
        if channels != self.in_channels or height % factor or width % factor or not (height and width):
            raise ValueError(
                f"frames of {channels} × {height} × {width} do not fit this autoencoder: it takes {self.in_channels} "
                f"channels, and heights and widths that are multiples of {factor}; crop or resize them."
            )
        if frames < 1 or (frames - 1) % steps:
            raise ValueError(
                f"clips of {frames} frames do not fit this autoencoder: it takes 1 frame and multiples of {steps} more."
            )
        return 1 + (frames - 1) // steps, self._latent_channels(), height // factor, width // factor

    @torch.no_grad()
    def encode(self, clips: Tensor) -> Tensor:
        """The latents of clips."""
        if clips.dim() != 5:
            raise ValueError(f"expected clips of shape (batch, frames, channels, height, width), got {clips.shape}.")
        self.latent_shape(tuple(clips.shape[1:]))  # type: ignore[arg-type]
        return self._encode(clips.to(self._like()))

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """The clips of latents, clamped to -1 … 1."""
        return self._decode(latents.to(self._like())).clamp(-1, 1)

    def _like(self) -> Tensor:
        return next(self.autoencoder.parameters())

    def _latent_channels(self) -> int:
        return int(self.autoencoder.config.latent_channels)

    def _encode(self, clips: Tensor) -> Tensor:
        config = self.autoencoder.config
        mean = self._by_frames(lambda frames: self.autoencoder.encode(frames).latent_dist.mode(), clips)
        return (mean - (config.shift_factor or 0.0)) * config.scaling_factor

    def _decode(self, latents: Tensor) -> Tensor:
        config = self.autoencoder.config
        latents = latents / config.scaling_factor + (config.shift_factor or 0.0)
        return self._by_frames(lambda frames: self.autoencoder.decode(frames).sample, latents)

    def _by_frames(self, function: Callable[[Tensor], Tensor], clips: Tensor) -> Tensor:
        pieces = [function(piece) for piece in clips.flatten(0, 1).split(self.batch_size)]
        return torch.cat(pieces).unflatten(0, clips.shape[:2])


class WanLatents(Latents):
    """The same by an `AutoencoderKLWan`, which codes four frames after the first at a time, causally.

    Its latents_mean and latents_std, one a channel, take the place of the scaling factor; coded is one clip at a time.
    """

    @property
    def in_channels(self) -> int:
        return int(getattr(self.autoencoder.config, "in_channels", 3))

    @property
    def spatial_factor(self) -> int:
        return int(2 ** (len(self.autoencoder.config.dim_mult) - 1)) * int(self.autoencoder.config.patch_size or 1)

    @property
    def temporal_factor(self) -> int:
        return int(2 ** sum(self.autoencoder.config.temperal_downsample))

    def _latent_channels(self) -> int:
        return int(self.autoencoder.config.z_dim)

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        config = self.autoencoder.config
        mean, deviation = (like.new_tensor(value).view(-1, 1, 1) for value in (config.latents_mean, config.latents_std))
        return mean, deviation

    def _encode(self, clips: Tensor) -> Tensor:
        mean, deviation = self._statistics(clips)
        coded = [self.autoencoder.encode(clip.transpose(1, 2)).latent_dist.mode() for clip in clips.split(1)]
        return (torch.cat(coded).transpose(1, 2) - mean) / deviation

    def _decode(self, latents: Tensor) -> Tensor:
        mean, deviation = self._statistics(latents)
        latents = (latents * deviation + mean).transpose(1, 2)
        return torch.cat([self.autoencoder.decode(one).sample for one in latents.split(1)]).transpose(1, 2)


def load_latents(source: str | os.PathLike[str], subfolder: str | None = None, device: str = "cpu") -> Latents:
    """The autoencoder of a hub name ("stabilityai/sd-vae-ft-mse") or a local folder, in evaluation mode.

    subfolder: where it lies in there ("vae"). Raises FileNotFoundError where there is none or the hub cannot be
    reached, ValueError for an autoencoder of another kind or a damaged one.
    """
    diffusers = import_diffusers()
    keywords = {} if subfolder is None else {"subfolder": subfolder}
    try:
        config = diffusers.AutoencoderKL.load_config(str(source), **keywords)
        kind = config.get("_class_name")
        if kind not in KINDS:
            raise ValueError(f"{source} holds a {kind}, not one of {', '.join(KINDS)}.")
        autoencoder = getattr(diffusers, kind).from_pretrained(str(source), low_cpu_mem_usage=False, **keywords)
    except OSError as error:
        where = "the folder" if Path(source).exists() else "a folder or hub name"
        raise FileNotFoundError(
            f"no autoencoder can be read from {where} {str(source)!r} ({first_line(error)}); give the folder that "
            "save_pretrained wrote, or a name on the hub while it can be reached."
        ) from error
    autoencoder = autoencoder.to(device).eval().requires_grad_(False)
    return WanLatents(autoencoder) if kind == "AutoencoderKLWan" else Latents(autoencoder)


def import_diffusers() -> Any:
    """diffusers, or ModuleNotFoundError that says how to get it."""
    try:
        import diffusers
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError('autoencoders take diffusers: pip install "nflib[video]".') from error
    return diffusers
