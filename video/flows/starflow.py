"""STARFlow: images, as latents, given text."""

from __future__ import annotations

from typing import Any

from nflib.transforms import ImagePatches
from video.flows.starflow_v import STARFlowV


class STARFlow(STARFlowV):
    """STARFlow, the flow of images ``(C, H, W)``, usually latents, given text (Gu et al. 2025, arXiv 2506.06276).

    It is a `STARFlowV` of one frame; without text, positions are of height and width alone.

    Args:
        event_shape: ``(C, H, W)``; all other arguments are those of `STARFlowV`.

    >>> import torch
    >>> from video import STARFlow
    >>> flow = STARFlow((4, 8, 8), channels=64, layers_per_block=[1, 1, 2], text_length=5, text_channels=16)
    >>> flow.log_prob(torch.zeros(3, 4, 8, 8), torch.zeros(3, 5, 16)).shape
    torch.Size([3])
    """

    @staticmethod
    def _cut(event_shape: tuple[int, ...], patch_size: int) -> tuple[int, Any]:
        return 1, ImagePatches(event_shape, patch_size)

    @staticmethod
    def _positions(text_length: int) -> str:
        return "axial" if text_length else "picture"

    def as_clips(self) -> STARFlowV:
        config = self.config or {}
        layer = {"positions": self._positions(config["text_length"]), **(config["layer"] or {})}
        return self._shared(STARFlowV, event_shape=[1, *config["event_shape"]], layer=layer)
