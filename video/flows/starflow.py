"""STARFlow: images, as latents, given text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nflib.transforms import ImagePatches
from video.flows.blocks import LayerSettings
from video.flows.deep_shallow import DeepShallowFlow
from video.flows.positions import axial_rotary, picture_rotary


class STARFlow(DeepShallowFlow):
    """The scalable transformer autoregressive flow of Gu et al. 2025 (arXiv 2506.06276): images ``(C, H, W)``.

    The event is cut into ``patch_size × patch_size`` patches. Each entry of layers_per_block is an autoregressive map
    of so many layers; the last, deep one is alone given the text, ``(B, text_length, text_channels)``, before its
    tokens (text_length 0: no text; project_text: by a linear map). Blocks alternate in direction, from a reversed one
    if `reverse_first`. channels: the width; layer: further settings of all layers, by name (`video.flows.blocks.
    LayerSettings`); top: settings of the deep map's layers that differ. Positions are rotary, the image covering an
    area of span² (default: its number of patches). scale: "softplus" or "exponential", of raw scales that, like the
    shifts, are bounded by ±soft_clip (0: not at all). Raises ValueError for settings that do not fit.

    >>> import torch
    >>> from video import STARFlow
    >>> flow = STARFlow((4, 8, 8), channels=64, layers_per_block=[1, 1, 2], text_length=5, text_channels=16)
    >>> flow.log_prob(torch.zeros(3, 4, 8, 8), torch.zeros(3, 5, 16)).shape
    torch.Size([3])
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        patch_size: int = 1,
        channels: int = 256,
        layers_per_block: Sequence[int] = (2, 2, 2, 8),
        *,
        text_length: int = 0,
        text_channels: int = 0,
        project_text: bool = True,
        layer: Mapping[str, Any] | None = None,
        top: Mapping[str, Any] | None = None,
        span: float | None = None,
        reverse_first: bool = True,
        scale: str = "softplus",
        soft_clip: float = 4.0,
    ):
        event_shape = tuple(int(n) for n in event_shape)
        patches = ImagePatches(event_shape, patch_size)
        grid = (event_shape[1] // patch_size, event_shape[2] // patch_size)
        super().__init__(
            patches,
            grid,
            1,
            axial_rotary if text_length else picture_rotary,
            LayerSettings(channels).but(layer),
            layers_per_block=layers_per_block,
            text_length=text_length,
            text_channels=text_channels,
            project_text=project_text,
            top=top,
            span=span,
            reverse_first=reverse_first,
            scale=scale,
            soft_clip=soft_clip,
        )
