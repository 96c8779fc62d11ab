"""Training of a flow on latents of clips with prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from nflib.training import TrainingConfig, TrainingResult, fit
from video.data.clips import ClipSource, encode_clips
from video.flows.starflow_v import STARFlowV
from video.latents.latents import Latents
from video.text.encoders import TextEncoder
from video.training.likelihood import NoisyLikelihood


def train_on_clips(
    flow: STARFlowV,
    latents: Latents,
    text: TextEncoder,
    clips: ClipSource,
    validation: ClipSource,
    output: Path,
    config: TrainingConfig,
    *,
    noise: float = 0.15,
    prompt_dropout: float = 0.1,
    unconditional: Sequence[str] = ("", ""),
    stills: ClipSource | None = None,
    encoded: Mapping[str, Tensor] | None = None,
    learn_denoiser: bool = True,
    emphasis: float = 1.0,
    context_noise: float = 0.0,
) -> TrainingResult:
    """Train a STARFlow-V on any source of clips with prompts; run again, it goes on where it stopped.

    Args:
        flow: is trained in place.
        latents: the autoencoder, by which all clips are encoded once, before training.
        text: encoder of prompts.
        clips: to learn.
        validation: to judge by.
        output: folder, as for `nflib.training.fit`.
        config: of the loop.
        noise: standard deviation added to latents.
        prompt_dropout: share of prompts that are left out, for guidance.
        unconditional: the prompts in their place, of clips and of anchored ones.
        stills: single frames, the same number for each clip, learnt beside it.
        encoded: further clips as `encode_clips` gives them, learnt among the others.
        learn_denoiser: as for `NoisyLikelihood`.
        emphasis: as for `NoisyLikelihood`.
        context_noise: as for `NoisyLikelihood`.

    Raises:
        ValueError: encoded clips of another shape, stills that cannot be shared out, or a setting out of range.
    """
    if emphasis <= 0:
        raise ValueError(f"emphasis must be a positive number, got {emphasis}.")
    if context_noise < 0:
        raise ValueError(f"context_noise must be zero or more, got {context_noise}.")
    data = encode_clips(clips, latents, text, noise=noise, seed=config.seed)
    if encoded is not None:
        for name, part in data.items():
            if encoded[name].shape[1:] != part.shape[1:]:
                raise ValueError(
                    f"clips whose {name} are {tuple(encoded[name].shape[1:])} do not go with clips of "
                    f"{tuple(part.shape[1:])}: make them by a model of the same latents, words and number of frames."
                )
        data = {name: torch.cat([part, encoded[name]]) for name, part in data.items()}
    if stills is not None:
        count = len(data["inputs"])
        if len(stills) % count:
            raise ValueError(f"{len(stills)} stills cannot be shared out evenly among {count} clips.")
        singles = encode_clips(stills, latents, text)
        data["stills"] = singles["inputs"].squeeze(1).unflatten(0, (count, -1))
        data["stills_context"] = singles["context"].unflatten(0, (count, -1))
    return fit(
        flow,
        data,
        encode_clips(validation, latents, text),
        config=config,
        objective=NoisyLikelihood(
            noise, prompt_dropout, text(list(unconditional)), learn_denoiser, emphasis, context_noise
        ),
        output=output,
    )
