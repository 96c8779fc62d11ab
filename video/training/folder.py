"""A user's own folder as training data, its latents and prompts encoded once, and a pipeline as the end of it."""

from __future__ import annotations

import dataclasses
import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nflib.devices import usable_device
from nflib.flows import TARFlow
from nflib.io import write_json
from nflib.training import TrainingConfig, TrainingResult, fit
from video.data.cache_folder import begin_cache
from video.data.dataset import ClipFolder
from video.data.folders import read_folder
from video.data.latent_cache import LatentCache, encode_clip_folder
from video.data.prompt_cache import encode_prompts
from video.data.samples import Listing
from video.data.sizes import Bucket, buckets
from video.flows.starflow import STARFlow
from video.flows.starflow_v import STARFlowV
from video.latents.latents import Latents, Pixels
from video.latents.load import load_latents
from video.pipeline import Pipeline
from video.pipeline_settings import PipelineSettings
from video.text.encoders import TextEncoder, Words, load_text
from video.text.labels import Labels
from video.training.autoencoder import AutoencoderOptions, train_autoencoder
from video.training.bits import BitsPerDimension
from video.training.grids import ReconstructionGrid, SampleGrid, is_first_process
from video.training.likelihood import NoisyLikelihood

PIPELINE, LATENTS, PROMPTS, FRAMES = "pipeline", "latents", "prompts", "frames"
SETTINGS, RESULT = "settings.json", "result.json"
PARTS = ("training", "validation")
# A closed vocabulary of more words is no small context any more.
MOST_WORDS = 4096

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FolderOptions:
    """Images and clips of a user's own.

    Args:
        data: a folder of images, clips or tar shards, with captions (metadata.jsonl or metadata.csv, or a .txt beside
            each) or labels (metadata, or a subfolder for each class), if any.
        size: of frames, to which files are resized and cropped: a number of pixels, or height x width, "48x80".
        frame_rate: frames a second, to which clips are resampled.
        mirrored: learn each image and clip mirrored, left to right, as well.
        grey: learn grey frames (default: colours, or what the autoencoder takes).
        validation: share of the files to validate by, which a hash of their names chooses.
    """

    data: Path
    size: str = "64"
    frame_rate: float = 8.0
    mirrored: bool = False
    grey: bool = False
    validation: float = 0.1

    def height_and_width(self) -> tuple[int, int]:
        """Raises ValueError for a size that is none."""
        found = re.fullmatch(r"(\d+)(?:[x×](\d+))?", self.size)
        if found is None:
            raise ValueError(f"size must be a number of pixels, or height x width such as 48x80, got {self.size!r}.")
        return int(found[1]), int(found[2] or found[1])

    def parts(self, condition: str) -> tuple[Listing, Listing]:
        """What to learn and what to validate by; what was left out goes to the log. Raises as `read_folder` does."""
        listing = read_folder(self.data, condition)
        for problem in listing.problems:
            log.warning("%s", problem)
        return listing.split(self.validation)

    def caches(
        self,
        parts: Sequence[Listing],
        shapes: Sequence[Bucket],
        latents: Latents,
        text: Callable[[Sequence[str]], Tensor] | None,
        folder: Path,
    ) -> list[LatentCache]:
        """The latents of both parts, encoded into `folder` unless they are there; files skipped go to the log."""
        caches = []
        for name, part in zip(PARTS, parts, strict=True):
            clips = ClipFolder(
                part,
                shapes,
                frame_rate=self.frame_rate,
                channels=latents.in_channels,
                with_mirrored=self.mirrored and name == PARTS[0],
                text=text,
            )
            # Half precision tells the levels of 8 bits apart.
            dtype = torch.float16 if isinstance(latents, Pixels) else torch.float32
            cache = encode_clip_folder(clips, latents, folder / name, dtype=dtype)
            if cache.skipped:
                log.warning("Of what is for %s: %s", name, cache.report())
            log.info("For %s: %d clips of %d files.", name, len(cache), len(cache.samples.unique()))
            caches.append(cache)
        return caches

    def fixed(self) -> dict[str, Any]:
        """What a run that goes on must share with its beginning; the files themselves are compared elsewhere."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name != "data"}


def train_on_folder(
    folder: FolderOptions,
    output: Path,
    config: TrainingConfig,
    *,
    model: str,
    autoencoder: str | None,
    text: str | None,
    text_length: int | None,
    condition: str,
    frames: Sequence[int],
    largest_aspect: float,
    noise: float | None,
    dropout: float,
    samples: int,
    architecture: Mapping[str, Any],
) -> TrainingResult:
    """Train a flow on a folder, and write the pipeline that it is part of; run again, it goes on where it stopped.

    Arguments as for the command ``train`` (`video.commands.training.train`); frames: the lengths of clips, none for the
    default; architecture: of the flow. Raises FileNotFoundError or ValueError for a folder, parts or settings that do
    not fit, or a run in `output` of other settings.
    """
    family = _family(model)
    latents = _latents(family, autoencoder, folder.grey, config)
    lengths = sorted(set(frames)) or [family.frames]
    if family.frames == 1 and lengths != [1]:
        raise ValueError(f"{model} learns images, each of one frame; choose starflow-v for clips, or leave frames out.")
    if largest_aspect != 1 and not family.has_sizes:
        log.warning(
            "%s has a single size: all images are cropped to %s, whatever their aspect ratio.", model, folder.size
        )
        largest_aspect = 1.0
    patch_size = int(architecture.get("patch_size", family.patch_size))
    if patch_size < 1:
        raise ValueError(f"patch_size must be a positive number, got {patch_size}.")
    shapes = buckets(
        *folder.height_and_width(), latents.spatial_factor * patch_size, lengths, largest_aspect=largest_aspect
    )
    noise = family.noise if noise is None else noise
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout of prompts must be a share in 0 … 1, got {dropout}.")
    clip_shape = (max(lengths), latents.in_channels, *shapes[0][1:])
    settings = PipelineSettings(clip_shape, noise, folder.frame_rate, denoise="score" if noise else "none")
    latent_shape = latents.latent_shape(clip_shape)

    parts = folder.parts(condition)
    encoder = _text(family, parts, text, text_length, config)
    torch.manual_seed(config.seed)
    flow = family.build(latent_shape, encoder, {"patch_size": patch_size, **architecture})
    vocabulary = encoder.words if isinstance(encoder, Words) else encoder.names if isinstance(encoder, Labels) else []
    wanted = folder.fixed() | {
        **{"model": model, "text_length": text_length, "condition": parts[0].condition, "frames": lengths},
        **{"aspect ratio": largest_aspect, "noise": noise, "dropout": dropout, "architecture": dict(architecture)},
        "set of words or labels": vocabulary,
    }
    _begin(output, wanted)
    contexts: Callable[[Sequence[str]], Any] | None = None if isinstance(encoder, Labels) else encoder
    if not vocabulary and contexts is not None:
        prompts = (part.prompt(number) for part in parts for number in range(len(part)))
        contexts = encode_prompts(prompts, encoder, output / PROMPTS)
    caches = folder.caches(parts, shapes, latents, contexts, output / LATENTS)

    unconditional = (contexts or encoder)(["", ""])
    likelihood = NoisyLikelihood(noise, dropout, unconditional, learn_denoiser=False)
    objective = BitsPerDimension(likelihood, isinstance(latents, Pixels))
    grid = SampleGrid(latents, encoder, settings, _prompts(parts[1], samples), objective.unit)
    result = fit(flow, *caches, config=config, objective=objective, output=output, callbacks=[grid])
    if is_first_process():
        Pipeline(flow, latents, encoder, settings).save(output / PIPELINE)
        found = {"bits_per_dimension": result.best_validation_loss, "of": objective.unit, "steps": result.steps}
        counts = {
            name: {"clips": len(cache), "skipped": cache.skipped} for name, cache in zip(PARTS, caches, strict=True)
        }
        write_json(output / RESULT, found | counts)
        log.info("Best: %s bits per dimension of %s. Written %s.", result.best_validation_loss, objective.unit, output)
    return result


def train_autoencoder_on_folder(
    folder: FolderOptions, output: Path, training: TrainingConfig, autoencoder: AutoencoderOptions, samples: int = 16
) -> TrainingResult:
    """Train an autoencoder on images and the frames of clips; run again, it goes on from its last checkpoint.

    What is written: autoencoder, a folder for train; samples, frames beside their reconstructions at each validation;
    logs and checkpoints.

    Args:
        folder: images and clips.
        output: folder for all that is written.
        training: length, learning rate and everything else of the loop.
        autoencoder: what is trained: an AutoencoderKL, or one of the features of a pretrained vision encoder.
        samples: how many frames are shown at each validation; 0 for none.

    Returns:
        A summary.

    Raises:
        FileNotFoundError: files are missing.
        OSError: another run is at work in the folder, or it cannot be written.
        ValueError: files or settings that do not fit, or a run in the folder of other settings.
    """
    latents = autoencoder.latents(1 if folder.grey else 3, training.seed)
    shapes = buckets(*folder.height_and_width(), latents.spatial_factor)
    parts = folder.parts("none")
    _begin(output, folder.fixed() | dataclasses.asdict(autoencoder))
    caches = folder.caches(parts, shapes, Pixels(latents.in_channels), None, output / FRAMES)
    frames, validation = (_Frames(cache) for cache in caches)
    shown = validation.batch(_spread(len(validation), samples))["inputs"]
    grids = [ReconstructionGrid(latents, shown)] if samples else []
    return train_autoencoder(latents, frames, validation, output, training, autoencoder, callbacks=grids)


class _Frames:
    """Clips of one frame as images."""

    def __init__(self, clips: LatentCache):
        self.clips = clips

    def __len__(self) -> int:
        return len(self.clips)

    def batch(self, indices: Tensor) -> dict[str, Tensor]:
        return {"inputs": self.clips.batch(indices)["inputs"].squeeze(1)}


@dataclass(frozen=True)
class _Family:
    """What training needs to know of a family of flows.

    build: (shape of latents, encoder of prompts, architecture) -> flow. frames, noise, patch_size: defaults; of images,
    frames is 1. has_sizes: whether one flow takes several heights and widths. has_text: whether its context is words.
    """

    name: str
    build: Callable[[tuple[int, ...], Any, dict[str, Any]], Any]
    frames: int
    noise: float
    patch_size: int
    is_of_latents: bool
    has_sizes: bool
    has_text: bool


def _tarflow(shape: tuple[int, ...], labels: Any, architecture: dict[str, Any]) -> TARFlow:
    depths = architecture.get("layers_per_block")
    blocks: dict[str, Any] = {} if depths is None else {"num_blocks": len(depths)}
    return TARFlow(shape[1:], num_classes=labels.shape[0], **blocks, **architecture)


def _starflow(shape: tuple[int, ...], text: Any, architecture: dict[str, Any]) -> STARFlowV:
    return STARFlow(shape[1:], **_text_settings(text), **_layered(architecture)).as_clips()


def _starflow_v(shape: tuple[int, ...], text: Any, architecture: dict[str, Any]) -> STARFlowV:
    return STARFlowV(shape, **_text_settings(text), **_layered(architecture))


def _text_settings(text: Any) -> dict[str, Any]:
    return {"text_length": text.shape[0], "text_channels": text.shape[1]} if len(text.shape) == 2 else {}


def _layered(architecture: dict[str, Any]) -> dict[str, Any]:
    """Settings of STARFlow, where those of layers stand together."""
    rest = {name: value for name, value in architecture.items() if name != "head_dim"}
    return rest | ({"layer": {"head_dim": architecture["head_dim"]}} if "head_dim" in architecture else {})


FAMILIES = {
    family.name: family
    for family in (
        _Family("tarflow", _tarflow, 1, 0.05, 4, is_of_latents=False, has_sizes=False, has_text=False),
        _Family("starflow", _starflow, 1, 0.3, 1, is_of_latents=True, has_sizes=True, has_text=True),
        _Family("starflow-v", _starflow_v, 16, 0.3, 1, is_of_latents=True, has_sizes=True, has_text=True),
    )
}


def _family(name: str) -> _Family:
    if name not in FAMILIES:
        raise ValueError(f"model must be one of {', '.join(FAMILIES)}, got {name!r}.")
    return FAMILIES[name]


def _latents(family: _Family, autoencoder: str | None, grey: bool, config: TrainingConfig) -> Latents:
    """The autoencoder in a folder, in that of a run of train_autoencoder or on the hub; pixels of a flow of those."""
    if not family.is_of_latents:
        if autoencoder is not None:
            raise ValueError(f"{family.name} learns pixels: leave autoencoder out, or choose starflow.")
        return Pixels(1 if grey else 3)
    if autoencoder is None:
        raise ValueError(
            f"{family.name} learns latents: name the folder of an autoencoder by --autoencoder, such as the output of "
            "train_autoencoder."
        )
    of_a_run = Path(autoencoder) / "autoencoder"
    latents = load_latents(of_a_run if of_a_run.is_dir() else autoencoder, device=_device(config))
    if grey and latents.in_channels != 1:
        raise ValueError(f"{autoencoder} takes frames of {latents.in_channels} channels, not grey ones.")
    return latents


def _device(config: TrainingConfig) -> str:
    """On which latents and prompts are encoded."""
    if config.accelerator != "auto":
        return str(usable_device(config.accelerator))
    return "cuda" if torch.cuda.is_available() else "cpu"


def _text(
    family: _Family, parts: Sequence[Listing], source: str | None, length: int | None, config: TrainingConfig
) -> TextEncoder:
    """What makes contexts of the prompts of a folder.

    Of no condition it is none, of a flow that takes labels these, of others the encoder in `source`, or all words that
    there are.
    """
    listing = parts[0]
    if source is not None and (listing.condition == "none" or not family.has_text):
        reason = f"{family.name} is not conditioned on text" if not family.has_text else "the data have no prompts"
        raise ValueError(f"{reason}: leave text out.")
    if listing.condition == "none":
        return Labels()
    if not family.has_text:
        if listing.condition != "label":
            raise ValueError(
                f"{family.name} is conditioned on labels, and {listing.folder} has captions: choose condition none, or "
                "the model starflow."
            )
        return Labels(listing.classes)
    if source is not None:
        return load_text(source, length, _device(config))
    prompts = {part.prompt(number) for part in parts for number in range(len(part))}
    said = [re.findall(r"[^\W_]+", prompt.lower()) for prompt in prompts]
    words = sorted({word for prompt in said for word in prompt})
    if len(words) > MOST_WORDS:
        raise ValueError(
            f"the prompts in {listing.folder} have {len(words)} distinct words, too many for a vocabulary of their "
            "own: name an encoder of text by --text."
        )
    return Words(words, max(map(len, said)))


def _prompts(listing: Listing, count: int) -> list[str]:
    """So many prompts to draw samples of: classes in turn, captions of the listing, or the empty one."""
    if listing.condition == "label":
        return [listing.classes[number % len(listing.classes)] for number in range(count)]
    return [listing.prompt(number) for number in _spread(len(listing), count).tolist()]


def _spread(total: int, count: int) -> Tensor:
    """So many of `total` numbers, evenly over all of them."""
    return torch.arange(count) * total // max(count, 1)


def _begin(output: Path, wanted: Mapping[str, Any]) -> None:
    """Keep what a run is made with, or see that a run that goes on is made with the same."""
    if is_first_process():
        output.mkdir(parents=True, exist_ok=True)
        begin_cache(output, SETTINGS, {name: json.dumps(value) for name, value in wanted.items()}, SETTINGS, False)
