"""What a run starts from: the flow, autoencoder and text encoder that it is to make a pipeline of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch

from nflib.flows import Flow
from nflib.io import fingerprint
from video.data.latent_cache import LatentCache
from video.data.options import MOST_LEVELS, FolderOptions
from video.data.samples import Listing
from video.latents.latents import Latents, Pixels
from video.latents.levels import step
from video.latents.load import AUTOENCODER, load_latents
from video.pipeline import Pipeline
from video.pipeline_settings import PipelineSettings
from video.text.encoders import TextEncoder, Words, load_text
from video.text.labels import Labels
from video.training.families import FlowOptions
from video.training.run import spread

# A closed vocabulary of more words is no small context any more.
MOST_WORDS = 4096
# To so many images splines of single pixels are fitted; of fewer, each is taken again, with noise of its own.
FITTED = 10_000


class Start(Protocol):
    """What a run starts from: a new flow or a saved one.

    Attributes:
        name: for messages.
        frames: default of a clip's frames; 1 of images.
        noise: default standard deviation.
        patch_size: of the flow.
        has_sizes: whether it takes several heights and widths.
        latents: the autoencoder.
    """

    name: str
    frames: int
    noise: float
    patch_size: int
    has_sizes: bool
    latents: Latents

    def completed(self, data: FolderOptions) -> FolderOptions:
        """The data with the sizes of the start, where they say none."""

    def condition(self, wanted: str) -> str:
        """What the flow can be told of the data."""

    def encoder(self, parts: Sequence[Listing], settings: PipelineSettings) -> TextEncoder:
        """What makes contexts of the prompts of the data."""

    def flow(self, latent_shape: tuple[int, ...], encoder: TextEncoder) -> Flow:
        """Of latents of this shape, by torch's random numbers if it is new."""

    def fit(self, flow: Flow, images: LatentCache, settings: PipelineSettings) -> None:
        """Before training, fit what of a new flow is fitted to single pixels, if anything is."""

    def settings(
        self, clip_shape: tuple[int, int, int, int], noise: float, frame_rate: float, levels: int | None
    ) -> PipelineSettings:
        """Of the pipeline that the run ends in; levels: of pixels, which are dequantised without noise."""

    def fixed(self) -> dict[str, Any]:
        """What a run that goes on must share with its beginning; autoencoders are compared elsewhere."""


class NewFlow:
    """A start from a new flow, of any architecture.

    Args:
        options: its family and architecture.
        autoencoder: in a folder, in that of a run of train_autoencoder or on the hub; None for a flow of pixels.
        text: encoder of prompts, in a folder or on the hub; None for a vocabulary or labels of the data.
        text_length: tokens to which its prompts are padded and cut.
        grey: whether frames are grey.
        device: on which latents and prompts are encoded.

    Raises:
        FileNotFoundError, ValueError: parts that are missing, or do not go together.
    """

    def __init__(
        self,
        options: FlowOptions,
        autoencoder: str | None,
        text: str | None,
        text_length: int | None,
        grey: bool,
        device: str,
    ):
        if text is None and text_length is not None:
            raise ValueError("text_length is of an encoder of text: name one by text, or leave text_length out.")
        family, self.options, self.name = options.family, options, options.name
        self.frames, self.noise, self.has_sizes = family.frames, family.noise, family.is_of_latents
        self.patch_size = options.multiple
        self.latents = self._latents(autoencoder, grey, device)
        self._text, self._text_length, self._device = text, text_length, device

    def completed(self, data: FolderOptions) -> FolderOptions:
        return data.completed()

    def condition(self, wanted: str) -> str:
        return wanted

    def encoder(self, parts: Sequence[Listing], settings: PipelineSettings) -> TextEncoder:
        """Of no condition none, of a flow that takes labels these, of others the encoder named, or all words."""
        listing, has_text = parts[0], self.options.family.is_of_latents
        if self._text is not None and (listing.condition == "none" or not has_text):
            reason = "the data have no prompts" if has_text else f"{self.name} is not conditioned on text"
            raise ValueError(f"{reason}: leave text out.")
        if listing.condition == "none":
            return Labels()
        if not has_text:
            if listing.condition != "label":
                raise ValueError(
                    f"{self.name} is conditioned on labels, and {listing.folder} has captions: choose condition none, "
                    "or the model starflow."
                )
            return Labels(listing.classes)
        if self._text is not None:
            return load_text(self._text, self._text_length, self._device)
        prompts = {part.prompt(number) for part in parts for number in range(len(part))}
        try:
            return Words.of_prompts(prompts, MOST_WORDS)
        except ValueError as error:
            raise ValueError(f"{listing.folder}: {error} Name an encoder of text by --text.") from error

    def flow(self, latent_shape: tuple[int, ...], encoder: TextEncoder) -> Flow:
        return self.options.family.build(latent_shape, encoder, self.options.architecture)

    def fit(self, flow: Flow, images: LatentCache, settings: PipelineSettings) -> None:
        if not self.options.gaussianize:
            return
        generator = torch.Generator().manual_seed(0)
        pixels = images.batch(spread(len(images), FITTED))["inputs"].squeeze(1)
        bounds = None
        if settings.levels is not None:
            bounds = (-1 - step(settings.levels) / 2, 1 + step(settings.levels) / 2)
        flow.fit_marginals(settings.noisy(pixels, generator), bounds)  # type: ignore[operator]

    def settings(
        self, clip_shape: tuple[int, int, int, int], noise: float, frame_rate: float, levels: int | None
    ) -> PipelineSettings:
        return PipelineSettings(clip_shape, noise, frame_rate, **_of_noise(noise, levels))

    def fixed(self) -> dict[str, Any]:
        return {"model": self.name, "text_length": self._text_length, "architecture": self.options.said}

    def _latents(self, autoencoder: str | None, grey: bool, device: str) -> Latents:
        if not self.options.family.is_of_latents:
            if autoencoder is not None:
                raise ValueError(f"{self.name} learns pixels: leave autoencoder out, or choose starflow.")
            return Pixels(1 if grey else 3)
        if autoencoder is None:
            raise ValueError(
                f"{self.name} learns latents: name the folder of an autoencoder by --autoencoder, such as the output "
                "of train_autoencoder."
            )
        of_a_run = Path(autoencoder) / AUTOENCODER
        latents = load_latents(of_a_run if of_a_run.is_dir() else autoencoder, device=device)
        return of_colour(latents, autoencoder, grey)


class SavedFlow:
    """A start from a saved or converted pipeline, all of whose parts are kept.

    Args:
        folder: its own, or the output of a run that has ended in it.
        others: what is left out, by name, since the pipeline has its own.
        grey: whether frames are grey.
        device: on which latents and prompts are encoded.

    Raises:
        FileNotFoundError, ValueError: a pipeline that is missing or damaged, or something said that it decides.
    """

    def __init__(self, folder: str, others: Mapping[str, Any], grey: bool, device: str):
        for name, value in others.items():
            if value is not None:
                raise ValueError(f"the initial model has its own {name}: leave {name} out, or initial.")
        self._pipeline = pipeline = Pipeline.load(folder, device)
        self.name, self.noise = folder, pipeline.settings.noise
        # Before they are trained; the path may be another's some day, and the model have moved.
        self._fingerprint = fingerprint(pipeline.flow.state_dict().values())
        self.frames = pipeline.settings.clip_shape[0] if pipeline.flow.max_frames > 1 else 1
        self.patch_size, self.has_sizes = pipeline.flow.patch_size, pipeline.flow.has_sizes
        self.latents = of_colour(pipeline.latents, folder, grey)

    def completed(self, data: FolderOptions) -> FolderOptions:
        settings = self._pipeline.settings
        levels = settings.file_levels or settings.levels or MOST_LEVELS
        return data.completed("x".join(map(str, settings.clip_shape[2:])), settings.frame_rate, levels)

    def condition(self, wanted: str) -> str:
        shape = self._pipeline.flow.text_shape
        if shape != (0,):
            return "label" if wanted == "auto" and len(shape) == 1 else wanted
        if wanted not in ("auto", "none"):
            raise ValueError(f"{self.name} is conditioned on nothing: leave condition out.")
        return "none"

    def encoder(self, parts: Sequence[Listing], settings: PipelineSettings) -> TextEncoder:
        text = self._pipeline.text
        if not text.is_costly:
            try:
                for prompt in {part.prompt(number) for part in parts for number in range(len(part))}:
                    text([settings.phrase(prompt)])
            except ValueError as error:
                raise ValueError(f"{parts[0].folder} does not fit {self.name}: {error}") from error
        return text

    def flow(self, latent_shape: tuple[int, ...], encoder: TextEncoder) -> Flow:
        """Resized if need be, in single precision; a denoiser stays as it is."""
        flow = self._pipeline.flow
        shape = (max(latent_shape[0], self._pipeline.window), *latent_shape[1:])
        flow = flow if shape == tuple(flow.event_shape) else flow.resized(shape)
        if flow.denoiser is not None:
            flow.denoiser.requires_grad_(False)
        own: Flow = flow.saved.float()
        return own

    def fit(self, flow: Flow, images: LatentCache, settings: PipelineSettings) -> None:
        """All is kept."""

    def settings(
        self, clip_shape: tuple[int, int, int, int], noise: float, frame_rate: float, levels: int | None
    ) -> PipelineSettings:
        own = self._pipeline.settings
        if getattr(self._pipeline.flow.saved, "has_bounds", False) and (noise or (levels or 0) < (own.levels or 0)):
            raise ValueError(
                f"{self.name} has pixels of {own.levels} levels between bounds, which noise and coarser levels exceed: "
                "leave noise and levels out."
            )
        aspect_ratio = own.aspect_ratio if clip_shape[2:] == own.clip_shape[2:] else None
        return replace(
            own,
            clip_shape=clip_shape,
            noise=noise,
            frame_rate=frame_rate,
            aspect_ratio=aspect_ratio,
            **_of_noise(noise, levels),
        )

    def fixed(self) -> dict[str, Any]:
        return {"initial": self._fingerprint}


def _of_noise(noise: float, levels: int | None) -> dict[str, Any]:
    """Settings of a pipeline that follow from the noise in training, and from the levels of pixels, if any."""
    if noise:
        return {"denoise": "score", "levels": None, "pixel_scale": 1.0, "file_levels": levels}
    return {"denoise": "none", "levels": levels, "file_levels": levels}


def of_colour(latents: Latents, name: str, grey: bool) -> Latents:
    """The latents of that name, unless they are not of grey frames where these are wanted: raises ValueError."""
    if grey and latents.in_channels != 1:
        raise ValueError(f"{name} takes frames of {latents.in_channels} channels, not grey ones.")
    return latents
