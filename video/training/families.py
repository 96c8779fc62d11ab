"""The families of flows that a folder can train, and what training must know of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from nflib.flows import Flow, TARFlow
from video.flows.starflow import STARFlow
from video.flows.starflow_v import STARFlowV
from video.text.encoders import TextEncoder


@dataclass(frozen=True)
class Family:
    """A family of flows.

    build: (shape of latents, encoder of prompts, architecture) -> flow. frames, noise, patch_size: defaults; of images,
    frames is 1. has_sizes: whether one flow takes several heights and widths. has_text: whether its context is words,
    rather than labels.
    """

    build: Callable[[tuple[int, ...], TextEncoder, dict[str, Any]], Flow]
    frames: int
    noise: float
    patch_size: int
    is_of_latents: bool
    has_sizes: bool
    has_text: bool


def _tarflow(shape: tuple[int, ...], labels: TextEncoder, architecture: dict[str, Any]) -> Flow:
    depths = architecture.get("layers_per_block")
    blocks: dict[str, Any] = {} if depths is None else {"num_blocks": len(depths)}
    return TARFlow(shape[1:], num_classes=labels.shape[0], **blocks, **architecture)


def _starflow(shape: tuple[int, ...], text: TextEncoder, architecture: dict[str, Any]) -> Flow:
    return STARFlow(shape[1:], **_text_settings(text), **_layered(architecture)).as_clips()


def _starflow_v(shape: tuple[int, ...], text: TextEncoder, architecture: dict[str, Any]) -> Flow:
    return STARFlowV(shape, **_text_settings(text), **_layered(architecture))


def _text_settings(text: TextEncoder) -> dict[str, Any]:
    return {"text_length": text.shape[0], "text_channels": text.shape[1]} if len(text.shape) == 2 else {}


def _layered(architecture: dict[str, Any]) -> dict[str, Any]:
    """Settings of STARFlow, where those of layers stand together."""
    rest = {name: value for name, value in architecture.items() if name != "head_dim"}
    return rest | ({"layer": {"head_dim": architecture["head_dim"]}} if "head_dim" in architecture else {})


FAMILIES = {
    "tarflow": Family(_tarflow, 1, 0.05, 4, is_of_latents=False, has_sizes=False, has_text=False),
    "starflow": Family(_starflow, 1, 0.3, 1, is_of_latents=True, has_sizes=True, has_text=True),
    "starflow-v": Family(_starflow_v, 16, 0.3, 1, is_of_latents=True, has_sizes=True, has_text=True),
}


@dataclass(frozen=True)
class FlowOptions:
    """A new flow; what is not said of the architecture has the default of its family.

    Args:
        model: tarflow (images, pixels), starflow (images, latents; the default) or starflow-v (clips, latents).
        patch_size: pixels, or latents, along the side of a token; default 4 of tarflow, 1 of others.
        channels: width of the transformers.
        layers_per_block: layers of each autoregressive map, of starflow the last one deep, and given the prompt.
        head_dim: channels of an attention head.
    """

    model: str | None = None
    patch_size: int | None = None
    channels: int | None = None
    layers_per_block: list[int] | None = None
    head_dim: int | None = None

    @property
    def name(self) -> str:
        """Of the family."""
        return self.model or "starflow"

    @property
    def family(self) -> Family:
        """Raises ValueError where there is none of that name."""
        if self.name not in FAMILIES:
            raise ValueError(f"model must be one of {', '.join(FAMILIES)}, got {self.name!r}.")
        return FAMILIES[self.name]

    @property
    def said(self) -> dict[str, Any]:
        """What is said."""
        return {name: value for name, value in vars(self).items() if value is not None}

    @property
    def architecture(self) -> dict[str, Any]:
        """All that the family is built with."""
        return {"patch_size": self.family.patch_size} | {k: v for k, v in self.said.items() if k != "model"}
