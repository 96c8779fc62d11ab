"""A user's own folder as training data, its latents and prompts encoded once, and a pipeline as the end of it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from nflib.devices import usable_device
from nflib.io import write_json
from nflib.processes import is_first_process
from nflib.training import TrainingResult, alone, fit
from nflib.training.config import TrainingConfig
from video.data.options import PARTS, FolderOptions
from video.data.prompt_cache import encode_prompts
from video.data.samples import Listing
from video.data.sizes import buckets
from video.parts import PIPELINE
from video.pipeline import Pipeline
from video.training.bits import BitsPerDimension
from video.training.families import FlowOptions
from video.training.grids import SampleGrid
from video.training.likelihood import NoisyLikelihood
from video.training.run import begin_run, check_samples, check_validated, spread
from video.training.starts import NewFlow, SavedFlow, Start

LATENTS, PROMPTS, RESULT = "latents", "prompts", "result.json"

log = logging.getLogger(__name__)


def train(
    data: FolderOptions,
    output: Path,
    training: TrainingConfig,
    flow: FlowOptions,
    initial: str | None = None,
    autoencoder: str | None = None,
    condition: str = "auto",
    text: str | None = None,
    text_length: int | None = None,
    frames: int | list[int] | None = None,
    largest_aspect: float = 1.0,
    noise: float | None = None,
    prompt_dropout: float = 0.1,
    samples: int = 16,
) -> TrainingResult:
    """Train a flow on a folder of images or clips; run again, it goes on from its last checkpoint.

    What is written: pipeline, a model for generate; latents and prompts, encoded once; samples, a grid at each
    validation; logs, checkpoints, and result.json. The loss is in bits per dimension.

    Args:
        data: images and clips.
        output: folder for all that is written.
        training: length, learning rate and everything else of the loop.
        flow: its family and architecture.
        initial: a saved or converted model to start from, or the output of such a run: its flow, autoencoder, text
            encoder and phrasing then hold, and its size, frames, frame rate and noise are the defaults; a learned
            denoiser stays as it is.
        autoencoder: whose latents are learnt: a folder of diffusers (AutoencoderKL, AutoencoderKLWan), a name on the
            hub, or the output of train_autoencoder.
        condition: caption, label, none, or auto: the first of these that the data have. To tarflow labels are classes,
            to others words.
        text: encoder of prompts: a folder of transformers with a tokenizer (T5 or another), or a name on the hub;
            default: a vocabulary of all words that the data have.
        text_length: tokens to which prompts are padded and cut, with text; default: as saved, or 128.
        frames: of a clip, one number or several, of which each clip is cut by the largest that it has; default 16 of
            starflow-v.
        largest_aspect: of the longer side to the shorter one, up to which aspect ratios have shapes of their own, of
            about the same area; 1: all is cropped to one shape, as for tarflow it is in any case.
        noise: standard deviation of the noise on pixels in -1 … 1, or on latents, of deviation 1; default 0.05 or 0.3.
            Without any, pixels are dequantised uniformly.
        prompt_dropout: share of prompts or labels left out in training, which guidance takes.
        samples: how many are drawn at each validation; 0 for none.

    Returns:
        A summary.

    Raises:
        FileNotFoundError: files are missing.
        OSError: another run is at work in the folder, or it cannot be written.
        ValueError: files or settings that do not fit, or a run in the folder of other settings.
        ComputationError: no validation was finite.
    """
    check_samples(samples)
    device = _device(training)
    start: Start
    if initial is None:
        start = NewFlow(flow, autoencoder, text, text_length, data.grey, device)
    else:
        others = {"autoencoder": autoencoder, "text": text, "text_length": text_length, **flow.said}
        start = SavedFlow(initial, others, data.grey, device)
    latents = start.latents
    data.check_levels(latents.has_levels)
    data = start.completed(data)
    lengths = sorted({frames} if isinstance(frames, int) else set(frames or ())) or [start.frames]
    if start.frames == 1 and lengths != [1]:
        raise ValueError(
            f"{start.name} learns images, each of one frame; choose starflow-v for clips, or leave frames out."
        )
    if largest_aspect != 1 and not start.has_sizes:
        log.warning(
            "%s has a single size: all images are cropped to %s, whatever their aspect ratio.", start.name, data.size
        )
        largest_aspect = 1.0
    multiple = latents.spatial_factor * start.patch_size
    shapes = buckets(*data.height_and_width(), multiple, lengths, largest_aspect=largest_aspect)
    noise = start.noise if noise is None else noise
    if not 0 <= prompt_dropout < 1:
        raise ValueError(f"prompt_dropout must be a share from 0 to less than 1, got {prompt_dropout}.")
    clip_shape = (max(lengths), latents.in_channels, *shapes[0][1:])
    levels = data.levels if latents.has_levels else None
    settings = start.settings(clip_shape, noise, data.rate, levels)
    if settings.phrasing.frame_rate and lengths[0] == 1 != lengths[-1]:
        raise ValueError(f"{start.name} is told whether it sees images or clips: learn frames of 1, or of more.")
    latent_shape = latents.latent_shape(clip_shape)

    parts = data.parts(start.condition(condition))
    encoder = start.encoder(parts, settings)
    torch.manual_seed(training.seed)
    trained = start.flow(latent_shape, encoder)
    wanted = data.fixed() | start.fixed()
    wanted |= {"condition": parts[0].condition, "frames": lengths, "aspect ratio": largest_aspect, "noise": noise}
    wanted |= {"dropout": prompt_dropout, "set of words or labels": encoder.vocabulary}
    with alone(output):
        begin_run(output, wanted, {} if initial is None else {"initial": initial})
        phrase = partial(settings.phrase, is_image=lengths == [1])
        known: Callable[[Sequence[str]], Any] = encoder
        if encoder.is_costly:
            prompts = {"", *(part.prompt(number) for part in parts for number in range(len(part)))}
            known = encode_prompts(map(phrase, prompts), encoder, output / PROMPTS)

        def contexts(prompts: Sequence[str]) -> Any:
            return known([phrase(prompt) for prompt in prompts])

        caches = data.caches(parts, shapes, latents, contexts, output / LATENTS)

        likelihood = NoisyLikelihood(noise, prompt_dropout, contexts(["", ""]), learn_denoiser=False)
        objective = BitsPerDimension(likelihood, levels, settings.pixel_scale)
        start.fit(trained, caches[0], settings)
        grid = SampleGrid(latents, encoder, settings, _prompts(parts[1], samples), objective.unit)
        result = fit(trained, *caches, config=training, objective=objective, output=output, callbacks=[grid])
        check_validated(result)
        if is_first_process():
            Pipeline(trained, latents, encoder, settings).save(output / PIPELINE)
            found = {"bits_per_dimension": result.best_validation_loss, "of": objective.unit, "steps": result.steps}
            counts = {
                name: {"clips": len(cache), "skipped": cache.skipped} for name, cache in zip(PARTS, caches, strict=True)
            }
            write_json(output / RESULT, found | counts)
            best = f"{result.best_validation_loss:.4g} bits per dimension of {objective.unit}"
            log.info("Best: %s. Written %s.", best, output)
        return result


def _device(config: TrainingConfig) -> str:
    """On which latents and prompts are encoded."""
    if config.accelerator != "auto":
        return str(usable_device(config.accelerator))
    return "cuda" if torch.cuda.is_available() else "cpu"


def _prompts(listing: Listing, count: int) -> list[str]:
    """So many prompts to draw samples of: classes in turn, captions of the listing, or the empty one."""
    if listing.condition == "label":
        return [listing.classes[number % len(listing.classes)] for number in range(count)]
    return [listing.prompt(number) for number in spread(len(listing), count).tolist()]
