"""The parts of a pipeline, in one folder: clips to noisy latents and back, prompts to contexts of the flow."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from nflib.contexts import map_context
from nflib.decoding import Decoder
from nflib.flows import Flow
from nflib.io import complete_folder
from video.flows.decoding import FramesAtOnce
from video.flows.images import as_clips
from video.latents.latents import Latents, Pixels
from video.latents.levels import snapped
from video.latents.load import AUTOENCODER, load_latents
from video.pipeline_settings import SETTINGS, PipelineSettings, aspect_size
from video.rollout import Span, spans
from video.text.encoders import TextEncoder, load_text

SHIPPED = Path(__file__).parent / "shipped"
MOVING_DIGITS = "moving-digits"
# In the output of a run.
PIPELINE = "pipeline"
# Latents have deviation 1.
LARGEST_LATENT = 1000.0


class Parts:
    """A flow with the autoencoder and text encoder that it was trained with.

    Args:
        flow: as for `video.Pipeline`.
        latents: as for `video.Pipeline`.
        text: as for `video.Pipeline`.
        settings: as for `video.Pipeline`.
    """

    def __init__(self, flow: Flow, latents: Latents, text: TextEncoder, settings: PipelineSettings):
        self.flow = as_clips(flow).eval()
        self.latents = latents
        self.text = text
        self.settings = settings
        self._decoding: Decoder | None = None

    @classmethod
    def load(cls, folder: str | os.PathLike[str] | None = None, device: str = "cpu") -> Self:
        """Load a pipeline.

        Args:
            folder: where it was saved, the output of a run that ended in it, or the name of one that is shipped:
                "digits", or "moving-digits", the default.
            device: where it is put.

        Raises:
            FileNotFoundError: a part is missing.
            ValueError: parts are damaged, or do not go together.
        """
        if folder is None and not (SHIPPED / MOVING_DIGITS / SETTINGS).is_file():
            raise FileNotFoundError(f"no model is shipped in {SHIPPED}; name the folder of one with --model.")
        folder = SHIPPED / MOVING_DIGITS if folder is None else Path(folder)
        places = [folder, folder / PIPELINE] + [SHIPPED / folder] * (len(folder.parts) == 1)
        folder = next((place for place in places if (place / SETTINGS).is_file()), folder)
        settings = PipelineSettings.load(folder)
        parts = cls(
            Flow.from_pretrained(folder / "flow", device),
            load_latents(folder / AUTOENCODER, device=device, later_scale=settings.later_scale)
            if (folder / AUTOENCODER).is_dir()
            else Pixels(settings.clip_shape[1]),
            load_text(folder / "text", device=device),
            settings,
        )
        check_parts(parts.flow, parts.latents, parts.text, settings, str(folder))
        return parts

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write all parts into `folder`, whole or not at all; returns the folder.

        Raises:
            OSError: the folder cannot be written, or has parts of another model that this one lacks.
            ValueError: parts do not go together.
        """
        return save_parts(self.flow, self.latents, self.text, self.settings, folder)

    @property
    def decoding(self) -> Decoder:
        """How the flow is inverted where nothing else is said (default: `FramesAtOnce`)."""
        return self._decoding or FramesAtOnce(self.flow.frame_length)

    @decoding.setter
    def decoding(self, decoder: Decoder) -> None:
        self._decoding = decoder

    @property
    def window(self) -> int:
        """Latent frames that the flow has positions for."""
        return int(self.flow.max_frames)

    def with_settings(self, **changes: Any) -> Self:
        """This pipeline with other settings, such as another noise on what it encodes."""
        other = copy.copy(self)
        other.settings = replace(self.settings, **changes)
        return other

    def at_aspect(self, aspect_ratio: str) -> Self:
        """This pipeline for frames of as many pixels and another aspect ratio, such as "16:9", on the same weights.

        Raises:
            ValueError: no aspect ratio, or a flow of one size alone.
        """
        frames, channels, *sides = self.settings.clip_shape
        if not self.flow.has_sizes:
            raise ValueError(f"this model makes images of {sides[1]} × {sides[0]} alone: leave the aspect ratio out.")
        size = aspect_size(
            math.sqrt(math.prod(sides)), aspect_ratio, self.latents.spatial_factor * self.flow.patch_size
        )
        other = self.with_settings(clip_shape=(frames, channels, *size), aspect_ratio=aspect_ratio)
        if list(size) != sides:
            latent_shape = self.latents.latent_shape(other.settings.clip_shape)
            other.flow = self.flow.resized((self.window, *latent_shape[1:])).eval()
        return other

    @torch.no_grad()
    def encode(self, clips: Tensor, generator: torch.Generator) -> Tensor:
        """Noisy latents ``(B, t, c, h, w)`` of clips ``(B, T, C, H, W)``, as the flow was trained on.

        Args:
            clips: in -1 … 1.
            generator: of the noise.

        Raises:
            ValueError: clips that are not in -1 … 1, or do not fit the autoencoder.
        """
        return self.settings.noisy(self._latents_of(clips), generator)

    @torch.no_grad()
    def condition(self, prompts: Sequence[str], window: Span | None = None, *, is_image: bool = False) -> Any:
        """The flow's context of prompts, phrased as in its training; None for a flow that takes none.

        Args:
            prompts: one a clip; the empty one is that of the unconditional branch.
            window: that the context is for, where it continues a clip: prompts are then rewritten by the settings.
            is_image: whether the clips are images.

        Raises:
            ValueError: prompts that the text encoder does not know.
        """
        if window is not None:
            rewritten = self.settings.anchored_prompt if window.is_anchored else self.settings.later_prompt
            prompts = [rewritten(prompt) for prompt in prompts]
        context = self.text([self.settings.phrase(prompt, is_image=is_image) for prompt in prompts])
        return map_context(self._own, context)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Clips ``(B, T, C, H, W)`` in -1 … 1 of latents; raises ValueError where these, or they, overflow."""
        return torch.cat(list(self._decoded([latents])), dim=1)

    def _decoded(self, pieces: Iterable[Tensor]) -> Iterator[Tensor]:
        """`decode` of latents that come piece by piece."""

        def checked(values: Tensor, is_sound: Tensor) -> Tensor:
            overflown = len(values) - int(is_sound.flatten(1).all(1).sum())
            if overflown:
                raise ValueError(
                    f"{overflown} of {len(values)} clips overflow, far from what the model was trained on; take less "
                    "guidance, or another seed."
                )
            return values

        # Comparisons with what is not a number are false.
        latents = (checked(piece, piece.abs() < LARGEST_LATENT) for piece in pieces)
        for clips in self.latents.stream(latents):
            clips = checked(clips, clips.isfinite())
            levels, scale = self.settings.levels, self.settings.pixel_scale
            yield clips if levels is None else snapped(clips, levels, scale)

    def filled(self, clips: Tensor) -> Tensor:
        """Clips ``(B, T, C, H, W)`` without the trailing frames that do not complete a latent frame."""
        return clips[:, : self._num_frames(self._num_latent_frames(clips.shape[1]))]

    def _windows(self, num_frames: int, num_known: int, overlap: int | None) -> Iterator[Span]:
        overlap = self.settings.overlap if overlap is None else overlap
        windows = spans(num_frames, num_known, self.window, overlap, is_anchored=self.settings.anchored is not None)
        if self.window == 1 < num_frames:
            raise ValueError(f"{num_frames} frames cannot be had: this model makes images, of one frame each.")
        if num_frames > self.window and (self.window // 2 if overlap is None else overlap) == 0:
            raise ValueError(
                f"{num_frames} frames are more than the {self.window} of one window: allow an overlap of windows, or "
                "ask for fewer."
            )
        return windows

    def _latents_of(self, clips: Tensor) -> Tensor:
        return self._own(self.latents.encode(clips))

    def _num_latent_frames(self, num_frames: int) -> int:
        """How many latent frames so many frames complete."""
        return 1 + (num_frames - 1) // self.latents.temporal_factor

    def _num_frames(self, num_latent_frames: int) -> int:
        """The frames of so many latent ones."""
        return num_latent_frames and 1 + (num_latent_frames - 1) * self.latents.temporal_factor

    def _own(self, values: Tensor) -> Tensor:
        """Numbers as the flow takes them, on its device; data of a flow in half precision are in single precision."""
        weight = next(self.flow.parameters())
        if values.is_floating_point():
            values = values.to(torch.promote_types(weight.dtype, torch.float32))
        return values.to(weight.device)


def save_parts(
    flow: Flow,
    latents: Latents,
    text: TextEncoder,
    settings: PipelineSettings,
    folder: str | os.PathLike[str],
    dtype: torch.dtype | None = None,
) -> Path:
    """Write the parts of a pipeline into a folder, whole or not at all; returns the folder.

    Args:
        flow: as for `video.Pipeline`.
        latents: as for `video.Pipeline`.
        text: as for `video.Pipeline`.
        settings: as for `video.Pipeline`.
        folder: made unless it is there.
        dtype: of the flow's weights (default: their own).

    Raises:
        OSError: the folder cannot be written, or has parts of another model that this one lacks.
        ValueError: parts do not go together.
    """
    check_parts(flow, latents, text, settings, "the model")
    folder = Path(folder)
    with complete_folder(folder) as temporary:
        flow.save_pretrained(temporary / "flow", dtype)
        latents.save(temporary / AUTOENCODER)
        text.save(temporary / "text")
        settings.save(temporary)
        if (folder / AUTOENCODER).exists() and not (temporary / AUTOENCODER).exists():
            raise FileExistsError(
                f"{folder} holds an {AUTOENCODER}, which this model has none of; choose another folder."
            )
    return folder


def check_parts(flow: Any, latents: Latents, text: TextEncoder, settings: PipelineSettings, name: str) -> None:
    """Raise ValueError where parts of a pipeline do not go together.

    Args:
        flow: as for `video.Pipeline`.
        latents: as for `video.Pipeline`.
        text: as for `video.Pipeline`.
        settings: as for `video.Pipeline`.
        name: of the pipeline, for the message.
    """
    flow = as_clips(flow)
    expected, own = latents.latent_shape(settings.clip_shape), tuple(flow.event_shape)
    if expected[1:] != own[1:]:
        raise ValueError(f"{name} is inconsistent: its autoencoder makes latents {expected}, its flow takes {own}.")
    if settings.levels is not None and not latents.has_levels:
        raise ValueError(f"{name} is inconsistent: its settings have levels of pixels, its flow is one of latents.")
    if tuple(text.shape) != flow.text_shape:
        raise ValueError(
            f"{name} is inconsistent: its text is of {_words(text.shape)}, its flow takes {_words(flow.text_shape)}."
        )


def _words(shape: Sequence[int]) -> str:
    """Of a text's shape."""
    return f"{shape[0]} classes" if len(shape) == 1 else f"{shape[0]} words of {shape[1]} channels"
