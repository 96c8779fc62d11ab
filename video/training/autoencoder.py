"""Training of an autoencoder on frames; or of its decoder alone, on noisy latents."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from nflib.io import complete_folder
from nflib.processes import is_first_process
from nflib.training import BatchSource, TrainingConfig, TrainingResult, TrainingState, fit
from video.latents.autoencoder import tiny_autoencoder
from video.latents.features import FeatureAutoencoder, FeatureLatents
from video.latents.latents import Latents
from video.latents.load import AUTOENCODER, load_latents
from video.latents.vision import load_patch_features
from video.training.run import check_validated

# Of the training frames, from which the scale of latents is taken: so many at most, and so many numbers.
FRAMES_OF_SCALE, NUMBERS_OF_SCALE = 2048, 1 << 26
LATENT_CHANNELS, LATENT_CHANNELS_OF_FEATURES = 8, 32
# Options of an autoencoder of a vision encoder's features alone.
OF_FEATURES = ("patch_pixels", "decoder_channels", "decoder_layers")


@dataclass(frozen=True)
class AutoencoderOptions:
    """Options of an autoencoder and of its training.

    Args:
        features: a vision encoder of transformers (DINOv2, SigLIP, ViT), a folder or a name on the hub: latents are of
            its features (FAE), and it stays as it is; default: an AutoencoderKL.
        initial: an autoencoder to start from: a folder or a name on the hub; its architecture then holds.
        decoder_only: leave its encoder, and so its latents, as they are: fine-tune the decoder on noisy latents, as
            TARFlow and STARFlow draw them.
        noise: standard deviation added to latents, as a fraction of theirs.
        divergence_weight: weight of the KL divergence of the latents from N(0, 1).
        pixel_weight: weight of the squared error of pixels, beside the errors of features.
        latent_channels: channels of the latents; default 8, or 32 with features.
        channels: of the levels of an AutoencoderKL; each but the first halves height and width.
        patch_pixels: with features, pixels along the side of a latent, to which frames are resized for the encoder;
            default: its patch size, as they are.
        decoder_channels: with features, width of the two decoders.
        decoder_layers: with features, layers of each.

    Raises:
        ValueError: sizes that are not positive, or noise or weights that are negative.
    """

    features: str | None = None
    initial: str | None = None
    decoder_only: bool = False
    noise: float = 0.15
    divergence_weight: float = 1e-4
    pixel_weight: float = 1.0
    latent_channels: int | None = None
    channels: list[int] = field(default_factory=lambda: [32, 64, 96, 128])
    patch_pixels: int | None = None
    decoder_channels: int = 384
    decoder_layers: int = 4

    def __post_init__(self) -> None:
        for name in ("latent_channels", *OF_FEATURES):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} must be a positive number, got {value}.")
        for name in ("noise", "divergence_weight", "pixel_weight"):
            if not 0 <= (weight := getattr(self, name)) < math.inf:
                raise ValueError(f"{name} must be zero or more, got {weight}.")
        if not self.channels or min(self.channels) < 1:
            raise ValueError(f"channels must give each level a positive number of them, got {self.channels}.")

    def latents(self, in_channels: int, seed: int) -> Latents:
        """The autoencoder that is to be trained.

        Args:
            in_channels: of frames; an `initial` autoencoder has its own.
            seed: of new weights.

        Raises:
            FileNotFoundError: an encoder or autoencoder cannot be read.
            ValueError: it is of another kind, or options do not go together.
        """
        torch.manual_seed(seed)
        if self.initial is not None:
            if own := self._said("features", "latent_channels", "channels", *OF_FEATURES):
                raise ValueError(f"the initial autoencoder has its own {own}: leave {own} out, or initial.")
            latents = load_latents(self.initial)
            latents.autoencoder.requires_grad_(True)
            if self.decoder_only:
                latents.freeze_encoder()
            return latents
        if self.decoder_only:
            raise ValueError("decoder_only needs an autoencoder to begin with; name its folder by initial.")
        if self.features is None:
            if other := self._said(*OF_FEATURES):
                raise ValueError(f"{other}: only of an autoencoder of features; name its encoder by features.")
            count = LATENT_CHANNELS if self.latent_channels is None else self.latent_channels
            return Latents(tiny_autoencoder(in_channels, count, tuple(self.channels)))
        if self._said("channels"):
            raise ValueError("channels: only of an AutoencoderKL; with features, say decoder_channels.")
        vision = load_patch_features(self.features)
        if in_channels not in (1, vision.in_channels):
            raise ValueError(f"{self.features} takes frames of {vision.in_channels} channels, not of {in_channels}.")
        autoencoder = FeatureAutoencoder(
            vision.channels,
            vision.num_heads,
            LATENT_CHANNELS_OF_FEATURES if self.latent_channels is None else self.latent_channels,
            in_channels,
            vision.patch_size if self.patch_pixels is None else self.patch_pixels,
            self.decoder_channels,
            self.decoder_layers,
        )
        return FeatureLatents(vision, autoencoder)

    def _said(self, *names: str) -> str:
        """Those of these options that are not as by default."""
        default = AutoencoderOptions()
        return ", ".join(name for name in names if getattr(self, name) != getattr(default, name))


@dataclass(frozen=True)
class NoisyReconstruction:
    """The objective of autoencoders: errors of what is decoded from noisy latents, plus a small KL divergence.

    The divergence is that of the posterior from N(0, 1). Noise is added in validation too.

    Args:
        latents: of which the autoencoder is trained.
        noise: standard deviation of what is added to latents, as a fraction of their own, which is how a flow adds it
            to latents of deviation 1.
        divergence_weight: of the KL divergence, per number.
        pixel_weight: of the squared error of frames, per number.
    """

    latents: Latents
    noise: float = 0.15
    divergence_weight: float = 1e-4
    pixel_weight: float = 1.0

    def __call__(
        self, module: nn.Module, batch: dict[str, Tensor], generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        frames = batch["inputs"]
        latents = self.latents.to(frames.device)  # what is not trained as well
        inputs = latents.encoder_inputs(frames)
        posterior = latents.posterior(inputs)
        scale = self.noise * posterior.mean.detach().std()
        drawn = [torch.randn(posterior.mean.shape, generator=generator, device=frames.device) for _ in range(2)]
        z = posterior.mean + posterior.std * drawn[0] + scale * drawn[1]
        errors = latents.errors(z, inputs, frames)
        divergence = posterior.kl().mean() / posterior.mean[0].numel()
        weights = {"squared_error": self.pixel_weight}
        total = torch.stack([weights.get(name, 1.0) * error for name, error in errors.items()]).sum()
        figures = {name: error.detach() for name, error in errors.items()} | {"divergence": divergence.detach()}
        return total + self.divergence_weight * divergence, figures


class _Trained(nn.Module):
    """What `fit` trains and saves: weights alone, whatever the autoencoder's own way of saving."""

    def __init__(self, autoencoder: nn.Module):
        super().__init__()
        self.autoencoder = autoencoder


def train_autoencoder(
    latents: Latents,
    frames: BatchSource,
    validation: BatchSource,
    output: Path,
    config: TrainingConfig,
    options: AutoencoderOptions,
    *,
    callbacks: Sequence[Callable[[TrainingState], None]] = (),
) -> TrainingResult:
    """Train an autoencoder on frames; run again, it goes on where it stopped.

    Args:
        latents: the autoencoder, of `options.latents`; is trained in place.
        frames: batches of "inputs" ``(B, C, H, W)`` in -1 … 1.
        validation: more of them, to judge by.
        output: gets ``autoencoder``, a folder for `video.latents.load_latents` with the scale of latents of training
            frames, beside the folders of `nflib.training.fit`.
        config: of the loop.
        options: of training.
        callbacks: as for `nflib.training.fit`.

    Raises:
        ComputationError: no validation was finite.
    """
    size = frames.batch(torch.zeros(1, dtype=torch.long))["inputs"].numel()
    count = min(FRAMES_OF_SCALE, len(frames), max(NUMBERS_OF_SCALE // size, 1))
    some = frames.batch(torch.arange(count) * len(frames) // count)["inputs"]  # which may be sorted by class
    if options.initial is None:
        latents.begin_training(some)
    result = fit(
        _Trained(latents.autoencoder),
        frames,
        validation,
        config=config,
        objective=NoisyReconstruction(latents, options.noise, options.divergence_weight, options.pixel_weight),
        output=output,
        callbacks=callbacks,
    )
    check_validated(result)
    latents.eval()
    if not options.decoder_only:
        latents.set_scale(some.to(next(latents.parameters()).device))
    latents.to("cpu")
    if is_first_process():
        with complete_folder(output) as folder:
            latents.save(folder / AUTOENCODER)
    return result
