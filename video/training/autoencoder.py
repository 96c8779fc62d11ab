"""Training of an autoencoder on frames; or of its decoder alone, on noisy latents."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nflib.io import complete_folder
from nflib.training import BatchSource, TrainingConfig, TrainingResult, TrainingState, fit
from video.latents.autoencoder import set_scale, tiny_autoencoder
from video.latents.latents import load_latents

# Of the training frames, from which the scale of latents is taken: so many at most, and so many numbers.
FRAMES_OF_SCALE, NUMBERS_OF_SCALE = 2048, 1 << 26


@dataclass(frozen=True)
class NoisyReconstruction:
    """Squared error of frames decoded from noisy latents, plus a small KL divergence of the posterior from N(0, 1).

    noise: standard deviation of what is added to latents, as a fraction of their own, which is how a flow adds it to
    latents of deviation 1. divergence_weight: of the KL divergence, both per number. In validation too.
    """

    noise: float = 0.15
    divergence_weight: float = 1e-4

    def __call__(
        self, module: nn.Module, batch: dict[str, Tensor], generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        frames, autoencoder = batch["inputs"], module.autoencoder
        posterior: Any = autoencoder.encode(frames).latent_dist  # type: ignore[operator,union-attr]
        scale = self.noise * posterior.mean.detach().std()
        drawn = [torch.randn(posterior.mean.shape, generator=generator, device=frames.device) for _ in range(2)]
        z = posterior.mean + posterior.std * drawn[0] + scale * drawn[1]
        decoded: Tensor = autoencoder.decode(z).sample  # type: ignore[operator,union-attr]
        error = (decoded - frames).square().mean()
        divergence = posterior.kl().mean() / posterior.mean[0].numel()
        return error + self.divergence_weight * divergence, {
            "squared_error": error.detach(),
            "divergence": divergence.detach(),
        }


class _Trained(nn.Module):
    """What `fit` trains and saves: weights alone, whatever the autoencoder's own way of saving."""

    def __init__(self, autoencoder: nn.Module):
        super().__init__()
        self.autoencoder = autoencoder


def train_autoencoder(
    frames: BatchSource,
    validation: BatchSource,
    output: Path,
    config: TrainingConfig,
    *,
    initial: str | None = None,
    decoder_only: bool = False,
    noise: float = 0.15,
    divergence_weight: float = 1e-4,
    callbacks: Sequence[Callable[[TrainingState], None]] = (),
    **architecture: Any,
) -> TrainingResult:
    """Train an `AutoencoderKL` on frames; run again, it goes on where it stopped.

    Args:
        frames: batches of "inputs" ``(B, C, H, W)`` in -1 … 1; validation: more of them.
        output: gets ``autoencoder``, a folder of diffusers whose scaling_factor and shift_factor are those of training
            frames, beside the folders of `nflib.training.fit`.
        config: of the loop.
        initial: an autoencoder to start from, a folder or a name on the hub; default: a `tiny_autoencoder`.
        decoder_only: leave the encoder of `initial`, and so its latents, as they are: fine-tuning of the decoder on
            noisy latents (TARFlow and STARFlow decode noisy samples so).
        noise, divergence_weight: as for `NoisyReconstruction`.
        callbacks: as for `nflib.training.fit`; the flow of their state has the `autoencoder`.
        architecture: as for `tiny_autoencoder`.

    Raises:
        ValueError: decoder_only without `initial`.
    """
    if decoder_only and initial is None:
        raise ValueError("decoder_only needs an autoencoder to begin with; name its folder by initial.")
    torch.manual_seed(config.seed)
    size = frames.batch(torch.zeros(1, dtype=torch.long))["inputs"].numel()
    count = min(FRAMES_OF_SCALE, len(frames), max(NUMBERS_OF_SCALE // size, 1))
    some = frames.batch(torch.arange(count) * len(frames) // count)["inputs"]  # which may be sorted by class
    if initial is None:
        autoencoder = tiny_autoencoder(some.shape[1], **architecture)
    else:
        autoencoder = load_latents(initial).autoencoder.requires_grad_(True)
    if decoder_only:
        autoencoder.encoder.requires_grad_(False)
        if autoencoder.quant_conv is not None:
            autoencoder.quant_conv.requires_grad_(False)
    result = fit(
        _Trained(autoencoder),
        frames,
        validation,
        config=config,
        objective=NoisyReconstruction(noise, divergence_weight),
        output=output,
        callbacks=callbacks,
    )
    autoencoder.to("cpu")
    if not decoder_only:
        set_scale(autoencoder, some)
    with complete_folder(output) as folder:
        autoencoder.save_pretrained(folder / "autoencoder")
    return result
