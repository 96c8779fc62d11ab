"""The families of flows that a folder can train, and what training must know of each."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from nflib.flows import Flow, TARFlow
from video.flows.images import GaussianizedTARFlow
from video.flows.starflow import STARFlow
from video.flows.starflow_v import STARFlowV
from video.text.encoders import TextEncoder


@dataclass(frozen=True)
class Family:
    """What training must know of a family of flows.

    Args:
        build: (shape of latents, encoder of prompts, architecture) -> flow.
        frames: default of a clip's frames; 1 of images.
        noise: default standard deviation.
        patch_size: default.
        is_of_latents: whether it learns latents of an autoencoder, of several heights and widths and given words,
            rather than pixels of one size, given labels.
    """

    build: Callable[[tuple[int, ...], TextEncoder, dict[str, Any]], Flow]
    frames: int
    noise: float
    patch_size: int
    is_of_latents: bool


def _tarflow(shape: tuple[int, ...], labels: TextEncoder, architecture: dict[str, Any]) -> Flow:
    settings = {"num_classes": labels.shape[0], **architecture}
    is_gaussianized = settings.pop("gaussianize", False)
    if isinstance(settings.get("layers_per_block"), list):
        settings["num_blocks"] = len(settings["layers_per_block"])
    family = GaussianizedTARFlow if is_gaussianized else TARFlow
    return family(shape[1:], **settings)


def _starflow(shape: tuple[int, ...], text: TextEncoder, architecture: dict[str, Any]) -> Flow:
    return STARFlow(shape[1:], **_text_settings(text), **_layered(architecture)).as_clips()


def _starflow_v(shape: tuple[int, ...], text: TextEncoder, architecture: dict[str, Any]) -> Flow:
    return STARFlowV(shape, **_text_settings(text), **_layered(architecture))


def _text_settings(text: TextEncoder) -> dict[str, Any]:
    return {"text_length": text.shape[0], "text_channels": text.shape[1]} if len(text.shape) == 2 else {}


def _layered(architecture: dict[str, Any]) -> dict[str, Any]:
    """Settings of STARFlow, where those of layers stand together."""
    layer = {name: architecture[name] for name in ("head_dim", "dropout") if name in architecture}
    rest = {name: value for name, value in architecture.items() if name not in layer}
    return rest | ({"layer": layer} if layer else {})


FAMILIES = {
    "tarflow": Family(_tarflow, 1, 0.05, 4, is_of_latents=False),
    "starflow": Family(_starflow, 1, 0.3, 1, is_of_latents=True),
    "starflow-v": Family(_starflow_v, 16, 0.3, 1, is_of_latents=True),
}


@dataclass(frozen=True)
class FlowOptions:
    """A new flow; what is not said of the architecture has the default of its family.

    Args:
        model: tarflow (images, pixels), starflow (images, latents; the default) or starflow-v (clips, latents).
        patch_size: pixels, or latents, along the side of a token; default 4 of tarflow, 1 of others. Of tarflow it may
            be a height and a width: "[1, 8]" makes a token of each row of 8.
        channels: width of the transformers.
        layers_per_block: a list of the layers of each autoregressive map, such as "[2, 2, 8]"; of starflow the last one
            is deep, and given the prompt. Of tarflow it may be one number, for all maps.
        head_dim: channels of an attention head; of starflow-v, and of starflow with prompts, a multiple of 4, 20 or
            more, and of starflow without prompts a multiple of 4.
        conditional: of tarflow, how pixels are mapped: affine, or spline, quadratic, binned or mixture, which suit
            small or flat pictures.
        gaussianize: of tarflow, first map each pixel by a fixed spline, so that its values are normal numbers.
        dropout: share of the layers' updates that training drops.
    """

    model: str | None = None
    patch_size: int | list[int] | None = None
    channels: int | None = None
    layers_per_block: int | list[int] | None = None
    head_dim: int | None = None
    conditional: str | None = None
    gaussianize: bool | None = None
    dropout: float | None = None

    @property
    def name(self) -> str:
        """The name of the family."""
        return self.model or "starflow"

    @property
    def family(self) -> Family:
        """The family; raises ValueError for an unknown name."""
        if self.name not in FAMILIES:
            raise ValueError(f"model must be one of {', '.join(FAMILIES)}, got {self.name!r}.")
        return FAMILIES[self.name]

    @property
    def said(self) -> dict[str, Any]:
        """The options that are given, by name."""
        return {name: value for name, value in vars(self).items() if value is not None}

    @property
    def architecture(self) -> dict[str, Any]:
        """All that the family is built with; raises ValueError for what it does not have."""
        for name in ("conditional", "gaussianize"):
            if self.family.is_of_latents and getattr(self, name) is not None:
                raise ValueError(f"{name} is a setting of tarflow alone: leave it out.")
        if self.family.is_of_latents and isinstance(self.patch_size, list):
            raise ValueError(f"patches of {self.name} are square: give patch_size as one number.")
        if self.family.is_of_latents and isinstance(self.layers_per_block, int):
            raise ValueError(f'layers_per_block of {self.name} is a list, such as "[2, 2, 8]", whose last map is deep.')
        return {"patch_size": self.family.patch_size} | {k: v for k, v in self.said.items() if k != "model"}

    @property
    def multiple(self) -> int:
        """The number of which the sides of pixels, or latents, are multiples; ValueError for patches of no size."""
        patch_size = self.architecture["patch_size"]
        sides = [patch_size] if isinstance(patch_size, int) else patch_size
        if len(sides) > 2 or not sides or min(sides) < 1:
            raise ValueError(f"patch_size must be a positive number, or a height and a width, got {patch_size}.")
        return math.lcm(*sides)
