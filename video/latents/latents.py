"""Latents of clips by the autoencoders of diffusers."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Self

import torch
from torch import Tensor, nn

from nflib.optional import require
from video.latents.levels import as_pixels

# That an AutoencoderKLWan of diffusers encodes, after the first.
FRAMES_AT_ONCE = 4
# Pixels are in -1 … 1, but for rounding.
LARGEST_PIXEL = 1.001


class Latents(nn.Module):
    """An autoencoder: clips ``(B, T, C, H, W)`` in -1 … 1 to latents ``(B, t, c, h, w)``, and back.

    Latents have mean 0 and deviation 1. `encode` gives the posterior's mean, in the autoencoder's dtype. For training,
    `encoder_inputs` are what the encoder reads of frames ``(B, C, H, W)``, `posterior` is the distribution of latents
    before they are scaled, and `errors` are those of what is decoded from its draws.

    Args:
        autoencoder: of diffusers; this class takes an `AutoencoderKL`, which codes each frame for itself. Latents are
            ``(z - shift_factor) * scaling_factor``, or ``(z - latents_mean) * scaling_factor / latents_std`` where its
            configuration has these.
        batch_size: frames coded at once.
        later_scale: factor on every latent frame but the first (released STARFlow-Vs).

    Raises:
        ValueError: in use, clips of another shape.
    """

    # Whether numbers are levels, 256 or fewer, and in what they are kept on disk.
    has_levels = False
    kept_dtype = torch.float32
    # What a saved autoencoder's config.json names itself.
    kind = "AutoencoderKL"

    def __init__(self, autoencoder: Any, batch_size: int = 64, later_scale: float = 1.0):
        super().__init__()
        self.autoencoder = autoencoder
        self.batch_size = batch_size
        self.later_scale = later_scale
        self._statistics(torch.zeros(()))

    @classmethod
    def load(cls, source: str | os.PathLike[str], subfolder: str | None = None, **settings: Any) -> Self:
        """Load an autoencoder of this kind; `video.latents.load_latents` loads one of any kind.

        Args:
            source: a folder, or a name on the hub.
            subfolder: where it lies in there.
            settings: further arguments of the constructor.
        """
        family, keywords = getattr(import_diffusers(), cls.kind), {} if subfolder is None else {"subfolder": subfolder}
        return cls(family.from_pretrained(str(source), low_cpu_mem_usage=False, **keywords), **settings)

    @property
    def in_channels(self) -> int:
        return int(self.autoencoder.config.in_channels)

    @property
    def spatial_factor(self) -> int:
        """Pixels to a latent, along height and width."""
        return int(2 ** (len(self.autoencoder.config.block_out_channels) - 1))

    @property
    def temporal_factor(self) -> int:
        """Frames to a latent frame; the first frame has one of its own."""
        return 1

    def latent_shape(self, clip_shape: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
        """The shape ``(t, c, h, w)`` of the latents of clips ``(T, C, H, W)``; ValueError where these do not fit."""
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
        """Latents ``(B, t, c, h, w)`` of clips ``(B, T, C, H, W)`` in -1 … 1; ValueError where these do not fit."""
        clips = as_pixels(clips, LARGEST_PIXEL)
        if clips.dim() != 5:
            raise ValueError(f"expected clips of shape (batch, frames, channels, height, width), got {clips.shape}.")
        shape = self.latent_shape(tuple(clips.shape[1:]))  # type: ignore[arg-type]
        if not len(clips):  # which attention cannot reshape
            return self._like(clips).new_zeros(0, *shape)
        z = self._encode(clips.to(self._like(clips)))
        mean, deviation = self._statistics(z)
        return self._rescaled((z - mean) / deviation, self.later_scale)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Clips ``(B, T, C, H, W)``, clamped to -1 … 1, of latents ``(B, t, c, h, w)``."""
        return torch.cat(list(self.stream([latents])), dim=1)

    @torch.no_grad()
    def stream(self, pieces: Iterable[Tensor]) -> Iterator[Tensor]:
        """`decode` piece by piece: latent frames come in pieces, and so do clips; memory is that of a piece."""
        decode, is_first = self._new_decoder(), True
        for piece in pieces:
            latents = self._rescaled(piece.to(self._like(piece)), 1 / self.later_scale, is_first)
            mean, deviation = self._statistics(latents)
            yield decode(latents * deviation + mean).clamp(-1, 1)
            is_first = False

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the autoencoder as diffusers does."""
        self.autoencoder.save_pretrained(folder)

    def encoder_inputs(self, frames: Tensor) -> Tensor:
        """What the trained encoder reads of frames ``(B, C, H, W)``."""
        return frames

    def posterior(self, inputs: Tensor) -> Any:
        """A `DiagonalGaussianDistribution` of diffusers, over ``(B, c, h, w)``."""
        return self.autoencoder.encode(inputs).latent_dist

    def errors(self, z: Tensor, inputs: Tensor, frames: Tensor) -> dict[str, Tensor]:
        """Mean errors of what is decoded, by name, for training to minimise.

        Args:
            z: draws of the posterior.
            inputs: of `encoder_inputs`.
            frames: ``(B, C, H, W)``.
        """
        return {"squared_error": (self.decode_frames(z) - frames).square().mean()}

    def begin_training(self, frames: Tensor) -> None:
        """Before the training of a new autoencoder: take what it must know of frames ``(B, C, H, W)``."""

    def freeze_encoder(self) -> None:
        """Keep the encoder, and so the latents, as they are in training."""
        for part in (self.autoencoder.encoder, self.autoencoder.quant_conv):
            if part is not None:
                part.requires_grad_(False)

    @torch.no_grad()
    def set_scale(self, frames: Tensor) -> None:
        """Set the scale so that latents of these frames ``(B, C, H, W)`` have mean 0 and deviation 1."""
        self._set_statistics(self._encode(frames.unsqueeze(1)).squeeze(1))

    def _set_statistics(self, z: Tensor) -> None:
        scale = {"scaling_factor": 1 / float(z.std()), "shift_factor": float(z.mean())}
        self.autoencoder.register_to_config(**scale, latents_mean=None, latents_std=None)

    def _rescaled(self, latents: Tensor, scale: float, has_first: bool = True) -> Tensor:
        """Latents with the scale of later frames; has_first: whether their first frame is the clip's."""
        return torch.cat([latents[:, :has_first], latents[:, has_first:] * scale], dim=1) if scale != 1 else latents

    def _like(self, data: Tensor) -> Tensor:
        return next(self.autoencoder.parameters())

    def _latent_channels(self) -> int:
        return int(self.autoencoder.config.latent_channels)

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation of what the autoencoder makes, each one number or one a channel, ``(c, 1, 1)``.

        Raises ValueError for a damaged configuration.
        """
        config = self.autoencoder.config
        scale = config.get("scaling_factor") or 1.0
        mean, deviation = (config.get(name) for name in ("latents_mean", "latents_std"))
        if mean is None or deviation is None:
            return like.new_tensor(config.get("shift_factor") or 0.0), like.new_tensor(1 / scale)
        if len(mean) != self._latent_channels() or len(deviation) != len(mean):
            raise ValueError(
                f"the autoencoder's latents_mean and latents_std have {len(mean)} and {len(deviation)} numbers for "
                f"{self._latent_channels()} channels; fetch its configuration again."
            )
        mean, deviation = (like.new_tensor(value).view(-1, 1, 1) for value in (mean, deviation))
        return mean, deviation / scale

    def _encode(self, clips: Tensor) -> Tensor:
        return self._by_frames(lambda frames: self.posterior(self.encoder_inputs(frames)).mode(), clips)

    def _new_decoder(self) -> Callable[[Tensor], Tensor]:
        """A function that decodes the frames of a clip, called with one piece after the other."""
        return lambda z: self._by_frames(self.decode_frames, z)

    def decode_frames(self, z: Tensor) -> Tensor:
        """Frames of draws of the posterior."""
        frames: Tensor = self.autoencoder.decode(z).sample
        return frames

    def _by_frames(self, function: Callable[[Tensor], Tensor], clips: Tensor) -> Tensor:
        pieces = [function(piece) for piece in clips.flatten(0, 1).split(self.batch_size)]
        return torch.cat(pieces).unflatten(0, clips.shape[:2])


class WanLatents(Latents):
    """`Latents` by an `AutoencoderKLWan`, which codes four frames after the first at a time, causally.

    Clips are coded one at a time. Where its patch_size is not 1 (Wan 2.2), its channels are those of patches of pixels.
    """

    kind = "AutoencoderKLWan"

    @property
    def in_channels(self) -> int:
        return int(self.autoencoder.config.in_channels) // self._patch_size() ** 2

    @property
    def spatial_factor(self) -> int:
        return int(2 ** (len(self.autoencoder.config.dim_mult) - 1)) * self._patch_size()

    @property
    def temporal_factor(self) -> int:
        return int(2 ** sum(self.autoencoder.config.temperal_downsample))

    def posterior(self, inputs: Tensor) -> Any:
        raise ValueError(f"an {self.kind} cannot be trained here; start from an {Latents.kind}.")

    def _patch_size(self) -> int:
        return int(self.autoencoder.config.patch_size or 1)

    def _latent_channels(self) -> int:
        return int(self.autoencoder.config.z_dim)

    def _encode(self, clips: Tensor) -> Tensor:
        # diffusers reads four frames at a time, whatever the factor, and would leave out a rest. No latent frame sees
        # those after its own, so that any may be added.
        added = clips[:, -1:].repeat_interleave(-(clips.shape[1] - 1) % FRAMES_AT_ONCE, 1)
        whole = torch.cat([clips, added], dim=1).transpose(1, 2)
        coded = [self.autoencoder.encode(clip).latent_dist.mode() for clip in whole.split(1)]
        return torch.cat(coded).transpose(1, 2)[:, : 1 + (clips.shape[1] - 1) // self.temporal_factor]

    def _new_decoder(self) -> Callable[[Tensor], Tensor]:
        """As the autoencoder's own `decode`, whose causal convolutions remember the frames before, between calls."""
        from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d, unpatchify

        autoencoder = self.autoencoder
        count = sum(isinstance(part, WanCausalConv3d) for part in autoencoder.decoder.modules())
        memories: dict[int, list[Any]] = {}

        def decode_one(row: int, frame: Tensor) -> Tensor:
            is_first = row not in memories
            memory = memories.setdefault(row, [None] * count)
            x = autoencoder.post_quant_conv(frame)
            x = autoencoder.decoder(x, feat_cache=memory, feat_idx=[0], first_chunk=is_first)
            return unpatchify(x, self._patch_size()) if self._patch_size() > 1 else x

        def decode(z: Tensor) -> Tensor:
            rows = [
                torch.cat([decode_one(row, frame) for frame in clip.transpose(1, 2).split(1, dim=2)], dim=2)
                for row, clip in enumerate(z.split(1))
            ]
            return torch.cat(rows).transpose(1, 2)

        return decode


class Pixels(Latents):
    """Pixels as their own latents, for flows that have no autoencoder.

    Args:
        channels: of frames.
    """

    has_levels = True
    kept_dtype = torch.float16  # which tells the levels apart

    def __init__(self, channels: int = 3):
        nn.Module.__init__(self)
        self.channels = channels
        self.later_scale = 1.0

    @property
    def in_channels(self) -> int:
        return self.channels

    @property
    def spatial_factor(self) -> int:
        return 1

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Nothing is to be written."""

    def _like(self, data: Tensor) -> Tensor:
        return data

    def _latent_channels(self) -> int:
        return self.channels

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        return like.new_zeros(()), like.new_ones(())

    def _encode(self, clips: Tensor) -> Tensor:
        return clips

    def _new_decoder(self) -> Callable[[Tensor], Tensor]:
        return lambda z: z


def import_diffusers() -> Any:
    """diffusers, or ModuleNotFoundError that says how to get it."""
    return require("diffusers", "autoencoders need", extra="video")
