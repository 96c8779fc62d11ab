"""What a run starts from: the flow, autoencoder and text encoder that it is to make a pipeline of."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nflib.flows import Flow
from video.data.samples import Listing
from video.latents.latents import Latents, Pixels, load_latents
from video.pipeline_settings import PipelineSettings
from video.text.encoders import TextEncoder, Words, load_text
from video.text.labels import Labels
from video.training.families import FlowOptions

# A closed vocabulary of more words is no small context any more.
MOST_WORDS = 4096


class NewFlow:
    """A flow of an architecture of one's own.

    Args:
        options: which.
        autoencoder: in a folder, in that of a run of train_autoencoder or on the hub; None for a flow of pixels.
        text: encoder of prompts likewise; text_length: of its prompts.
        grey: whether frames are.
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
        self.options, self.family, self.name = options, options.family, options.model
        self.architecture = options.architecture()
        self.patch_size = int(self.architecture["patch_size"])
        if self.patch_size < 1:
            raise ValueError(f"patch_size must be a positive number, got {self.patch_size}.")
        self.latents = self._latents(autoencoder, grey, device)
        self._text, self._text_length, self._device = text, text_length, device

    def encoder(self, parts: Sequence[Listing]) -> TextEncoder:
        """What makes contexts of the prompts of a folder.

        Of no condition it is none, of a flow that takes labels these, of others the encoder that was named, or all
        words that there are.
        """
        listing, has_text = parts[0], self.family.has_text
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
        """Of latents of this shape and contexts of this encoder, by torch's random numbers."""
        return self.family.build(latent_shape, encoder, self.architecture)

    def settings(self, clip_shape: tuple[int, int, int, int], noise: float, frame_rate: float) -> PipelineSettings:
        return PipelineSettings(clip_shape, noise, frame_rate, denoise="score" if noise else "none")

    def fixed(self) -> dict[str, Any]:
        """What a run that goes on must share with its beginning; autoencoders are compared elsewhere."""
        return {"model": self.name, "text_length": self._text_length, "architecture": self.architecture}

    def _latents(self, autoencoder: str | None, grey: bool, device: str) -> Latents:
        if not self.family.is_of_latents:
            if autoencoder is not None:
                raise ValueError(f"{self.name} learns pixels: leave autoencoder out, or choose starflow.")
            return Pixels(1 if grey else 3)
        if autoencoder is None:
            raise ValueError(
                f"{self.name} learns latents: name the folder of an autoencoder by --autoencoder, such as the output "
                "of train_autoencoder."
            )
        of_a_run = Path(autoencoder) / "autoencoder"
        latents = load_latents(of_a_run if of_a_run.is_dir() else autoencoder, device=device)
        if grey and latents.in_channels != 1:
            raise ValueError(f"{autoencoder} takes frames of {latents.in_channels} channels, not grey ones.")
        return latents
