"""Latents of the features that a pretrained vision encoder has of frames (FAE)."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from typing import Any, Self

import torch
from torch import Tensor, nn

from nflib.io import Pretrained, complete_folder
from nflib.io.hub import local_folder
from nflib.networks import Rotary, grid_coordinates
from video.latents.latents import Latents
from video.latents.vision import PatchFeatures, load_patch_features

VISION = "vision"
# From which means and deviations of features are taken: each has many patches.
FRAMES_OF_SCALE = 256


class PatchTransformer(nn.Module):
    """A transformer over the cells of a grid, ``(B, in_channels, h, w)`` to ``(B, out_channels, h, w)``.

    Any height and width goes.

    Args:
        in_channels: of what it reads.
        out_channels: of what it gives.
        channels: width, a multiple of 4.
        num_layers: of the transformer.
    """

    def __init__(self, in_channels: int, out_channels: int, channels: int, num_layers: int):
        super().__init__()
        if channels < 4 or channels % 4:
            raise ValueError(f"a decoder's channels must be a multiple of 4, got {channels}.")
        self.channels = channels
        self.proj_in = nn.Linear(in_channels, channels)
        num_heads = math.gcd(channels, max(channels // 64, 1))
        self.layers = nn.Sequential(
            *(
                nn.TransformerEncoderLayer(
                    channels, num_heads, 4 * channels, 0.0, "gelu", batch_first=True, norm_first=True
                )
                for _ in range(num_layers)
            )
        )
        self.norm = nn.LayerNorm(channels)
        self.proj_out = nn.Linear(channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        # Sines and cosines of row and column.
        places = Rotary(grid_coordinates((height, width)).to(x.device), self.channels).phase.flatten(1)
        hidden = self.proj_in(x.flatten(2).mT) + places.to(x.dtype)
        return self.proj_out(self.norm(self.layers(hidden))).mT.unflatten(2, (height, width))


class FeatureAutoencoder(Pretrained):
    """An autoencoder of a vision encoder's features (FAE): to low-dimensional latents, back, and on to pixels.

    The encoder is one layer of self-attention and a linear map, since features know of their picture already; one
    transformer decodes latents to features, a second one features to pixels. After "One Layer Is Enough: Adapting
    Pretrained Visual Encoders for Image Generation" (Gao, Chen, Chen and Gu 2025, arXiv:2512.07829), which trains
    the second decoder apart, and with losses of perception and of an adversary.

    Args:
        feature_channels: of the features.
        feature_heads: of the attention over them.
        latent_channels: of latents, one of which stands for a patch.
        in_channels: of frames.
        patch_pixels: pixels of a frame along the side of a patch.
        channels: width of each decoder.
        num_layers: of each decoder.
    """

    feature_mean: Tensor
    feature_deviation: Tensor
    latent_mean: Tensor
    latent_deviation: Tensor

    def __init__(
        self,
        feature_channels: int,
        feature_heads: int,
        latent_channels: int,
        in_channels: int,
        patch_pixels: int,
        channels: int,
        num_layers: int,
    ):
        super().__init__()
        self.in_channels = in_channels
        self.latent_channels = latent_channels
        self.patch_pixels = patch_pixels
        self.norm = nn.LayerNorm(feature_channels)
        self.attention = nn.MultiheadAttention(feature_channels, feature_heads, batch_first=True)
        self.to_posterior = nn.Linear(feature_channels, 2 * latent_channels)
        self.feature_decoder = PatchTransformer(latent_channels, feature_channels, channels, num_layers)
        self.pixel_decoder = PatchTransformer(feature_channels, in_channels * patch_pixels**2, channels, num_layers)
        for name, count in (("feature", feature_channels), ("latent", latent_channels)):
            self.register_buffer(f"{name}_mean", torch.zeros(count, 1, 1))
            self.register_buffer(f"{name}_deviation", torch.ones(count, 1, 1))

    def encoder_parts(self) -> Iterator[nn.Module]:
        """What makes latents of features."""
        yield from (self.norm, self.attention, self.to_posterior)

    def encode(self, features: Tensor) -> Tensor:
        """Means and log-variances ``(B, 2 c, h, w)`` of latents, of features ``(B, D, h, w)`` of deviation 1."""
        tokens = features.flatten(2).mT
        normed = self.norm(tokens)
        tokens = tokens + self.attention(normed, normed, normed, need_weights=False)[0]
        return self.to_posterior(tokens).mT.unflatten(2, features.shape[-2:])

    def decode(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Features ``(B, D, h, w)`` of deviation 1, and frames ``(B, C, H, W)``, of latents ``(B, c, h, w)``."""
        features = self.feature_decoder(z)
        return features, nn.functional.pixel_shuffle(self.pixel_decoder(features), self.patch_pixels)


class FeatureLatents(Latents):
    """`Latents` of a vision encoder's features, by a `FeatureAutoencoder`, frame by frame.

    Args:
        vision: the encoder, which stays as it is.
        autoencoder: of its features.
        batch_size: frames coded at once.
        later_scale: as of `Latents`.
    """

    kind = FeatureAutoencoder.__name__

    def __init__(
        self, vision: PatchFeatures, autoencoder: FeatureAutoencoder, batch_size: int = 64, later_scale: float = 1.0
    ):
        super().__init__(autoencoder, batch_size, later_scale)
        self.vision = vision

    @classmethod
    def load(cls, source: str | os.PathLike[str], subfolder: str | None = None, **settings: Any) -> Self:
        folder = local_folder(source, ["*"]) / (subfolder or "")
        return cls(load_patch_features(folder / VISION), FeatureAutoencoder.from_pretrained(folder), **settings)

    @property
    def in_channels(self) -> int:
        return int(self.autoencoder.in_channels)

    @property
    def spatial_factor(self) -> int:
        return int(self.autoencoder.patch_pixels)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the autoencoder, with the vision encoder inside."""
        with complete_folder(folder) as temporary:
            self.autoencoder.save_pretrained(temporary)
            self.vision.save(temporary / VISION)

    def encoder_inputs(self, frames: Tensor) -> Tensor:
        features = self._features(frames)
        return (features - self.autoencoder.feature_mean) / self.autoencoder.feature_deviation

    def posterior(self, inputs: Tensor) -> Any:
        from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

        return DiagonalGaussianDistribution(self.autoencoder.encode(inputs))

    def errors(self, z: Tensor, inputs: Tensor, frames: Tensor) -> dict[str, Tensor]:
        features, decoded = self.autoencoder.decode(z)
        return {
            "squared_error": (decoded - frames).square().mean(),
            "feature_error": (features - inputs).square().mean(),
            "feature_cosine_error": 1 - nn.functional.cosine_similarity(features, inputs, dim=1).mean(),
        }

    def freeze_encoder(self) -> None:
        for part in self.autoencoder.encoder_parts():
            part.requires_grad_(False)

    @torch.no_grad()
    def begin_training(self, frames: Tensor) -> None:
        """Take the mean and deviation of features from frames."""
        some = frames[:: math.ceil(len(frames) / FRAMES_OF_SCALE)]
        features = torch.cat([self._features(piece) for piece in some.split(self.batch_size)])
        self.autoencoder.feature_mean.copy_(features.mean((0, 2, 3)).view(-1, 1, 1))
        self.autoencoder.feature_deviation.copy_(features.std((0, 2, 3)).clamp_min(1e-6).view(-1, 1, 1))

    def _set_statistics(self, z: Tensor) -> None:
        self.autoencoder.latent_mean.copy_(z.mean((0, 2, 3)).view(-1, 1, 1))
        self.autoencoder.latent_deviation.copy_(z.std((0, 2, 3)).view(-1, 1, 1))

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        return self.autoencoder.latent_mean, self.autoencoder.latent_deviation

    def _latent_channels(self) -> int:
        return int(self.autoencoder.latent_channels)

    def decode_frames(self, z: Tensor) -> Tensor:
        frames: Tensor = self.autoencoder.decode(z)[1]
        return frames

    def _features(self, frames: Tensor) -> Tensor:
        height, width = (side // self.spatial_factor for side in frames.shape[-2:])
        features: Tensor = self.vision(frames, height, width)
        return features
