"""STARFlow-V: clips, as latents, given text, frame after frame."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from video.flows.blocks import LayerSettings
from video.flows.deep_shallow import DeepShallowFlow
from video.flows.denoiser import SETTINGS as DENOISER_SETTINGS
from video.flows.denoiser import Denoiser
from video.flows.patches import VideoPatches
from video.flows.positions import axial_rotary


class STARFlowV(DeepShallowFlow):
    """The video flow of Gu et al. 2025 (arXiv 2511.20462): clips ``(T, C, H, W)`` of any number of frames.

    event_shape: its T is how many frames samples have, and the most that positions are made for; a density takes fewer
    as well, and `video.rollout` generates more. All but the deep map keep to one frame, and the deep one visits
    the frames in order: given its first frames alone, a clip has the density that they have in it. denoiser: settings
    of `video.Denoiser` beside the flow, such as ``{"past": 9}`` (None: there is none); it is kept as `denoiser`, and
    its layers are like the shallow ones. All other arguments as for `STARFlow`.

    >>> import torch
    >>> from video import STARFlowV
    >>> flow = STARFlowV((4, 3, 8, 8), channels=64, layers_per_block=[1, 2], text_length=5, text_channels=16)
    >>> flow.sample(1, torch.zeros(2, 5, 16), seed=0).shape
    torch.Size([2, 1, 4, 3, 8, 8])
    """

    denoiser: Denoiser | None

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
        denoiser: Mapping[str, Any] | None = None,
    ):
        event_shape = tuple(int(n) for n in event_shape)
        if len(event_shape) != 4 or min(event_shape) < 1:
            raise ValueError(f"a clip's event_shape is (frames, channels, height, width), got {event_shape}.")
        unknown = sorted(set(denoiser or {}) - set(DENOISER_SETTINGS))
        if unknown:
            raise ValueError(f"a denoiser has no setting {unknown[0]!r}; it has {', '.join(DENOISER_SETTINGS)}.")
        max_frames, *frame_shape = event_shape
        patches = VideoPatches(frame_shape, patch_size)
        grid = (frame_shape[1] // patch_size, frame_shape[2] // patch_size)
        settings = LayerSettings(channels).but(layer)
        super().__init__(
            patches,
            grid,
            max_frames,
            axial_rotary,
            settings,
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
        self.denoiser = None
        if denoiser is not None:
            self.denoiser = Denoiser(
                patches,
                grid,
                max_frames,
                settings,
                span=self.span,
                text_length=text_length,
                text_channels=text_channels,
                **denoiser,
            )

    def log_prob_of_frames(self, inputs: Tensor, context: Tensor | None = None) -> Tensor:
        """Log-density of each frame given those before it, ``(B, T)``, in nats; their sum is `log_prob`.

        Raises ValueError as `log_prob` does.
        """
        if context is not None and len(context) != len(inputs):
            raise ValueError(f"{len(inputs)} clips need a context of as many rows, got {len(context)}.")
        z, logabsdet = self._transform.by_frames(inputs, self._embedding_net(context))
        noise = z.reshape(-1, self._transform.frame_length, z.shape[-1])
        return self._distribution.log_prob(noise).view_as(logabsdet) + logabsdet
