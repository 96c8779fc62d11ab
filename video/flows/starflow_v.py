"""STARFlow-V: clips, as latents, given text, frame after frame."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Self, TypeVar

import torch
from torch import Tensor

from nflib.flows import Flow
from nflib.transforms import Guidance, ProductGuidance
from video.flows.blocks import LayerSettings
from video.flows.deep_shallow import DeepShallow, deep_shallow, share_weights
from video.flows.denoiser import SETTINGS as DENOISER_SETTINGS
from video.flows.denoiser import Denoiser
from video.flows.patches import FrameNoise, VideoPatches

Family = TypeVar("Family", bound="STARFlowV")


class STARFlowV(Flow):
    """STARFlow-V, the flow of clips ``(T, C, H, W)``, usually latents, given text (Gu et al. 2025, arXiv 2511.20462).

    Clips may have any number of frames. All but the deep map keep to one frame, and the deep one visits the frames in
    order: given its first frames alone, a clip has the density that they have in it. Weights fit any size.

    Args:
        event_shape: ``(T, C, H, W)``; T is how many frames samples have, and the most that positions are made for; a
            density takes fewer as well, and `video.rollout` generates more.
        patch_size: frames are cut into ``patch_size × patch_size`` patches.
        channels: width of the transformers.
        layers_per_block: each entry is an autoregressive map of so many layers; the last, deep one is alone given the
            text, ``(B, text_length, text_channels)``, before its tokens.
        text_length: tokens of the text; 0 for no text.
        text_channels: width of the text's tokens.
        project_text: whether these are projected to `channels` by a linear map; without, both must be equal.
        layer: further settings of all layers, by name (`video.flows.blocks.LayerSettings`).
        top: settings of the deep map's layers that differ.
        span: positions are rotary, and a frame covers an area of span² (default: its number of patches).
        reverse_first: whether blocks, which alternate in direction, begin with a reversed one.
        scale: "softplus" or "exponential", how scales are made of the network's raw numbers.
        soft_clip: bound on the size of raw scales and shifts; 0 for none.
        denoiser: settings of `video.Denoiser` beside the flow, such as ``{"past": 9}`` (None: there is none); it is
            kept as `denoiser`, and its layers are like the shallow ones.

    Raises:
        ValueError: settings that do not fit.

    >>> import torch
    >>> from video import STARFlowV
    >>> flow = STARFlowV((4, 3, 8, 8), channels=64, layers_per_block=[1, 2], text_length=5, text_channels=16)
    >>> flow.sample(1, torch.zeros(2, 5, 16), seed=0).shape
    torch.Size([2, 1, 4, 3, 8, 8])
    """

    has_sizes = True  # that are one flow's, on the same weights
    text_shape: tuple[int, ...]
    """``(length, channels)`` of the text, or ``(0,)`` without."""
    denoiser: Denoiser | None
    _transform: DeepShallow
    _distribution: FrameNoise

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
        unknown = sorted(set(denoiser or {}) - set(DENOISER_SETTINGS))
        if unknown:
            raise ValueError(f"a denoiser has no setting {unknown[0]!r}; it has {', '.join(DENOISER_SETTINGS)}.")
        max_frames, patches = self._cut(tuple(int(n) for n in event_shape), patch_size)
        grid = (int(event_shape[-2]) // patch_size, int(event_shape[-1]) // patch_size)
        span = math.sqrt(math.prod(grid)) if span is None else span
        settings = LayerSettings(channels, positions=self._positions(text_length)).but(layer)
        transform = deep_shallow(
            patches,
            grid,
            max_frames,
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
        super().__init__(transform, FrameNoise(max_frames, *patches.token_shape))
        self.span, self.patch_size = span, patch_size
        self.text_shape = (text_length, text_channels) if text_length else (0,)
        self.denoiser = None
        if denoiser is not None:
            self.denoiser = Denoiser(
                patches,
                grid,
                max_frames,
                settings,
                span=span,
                text_length=text_length,
                text_channels=text_channels,
                **denoiser,
            )

    @staticmethod
    def _cut(event_shape: tuple[int, ...], patch_size: int) -> tuple[int, Any]:
        """How many frames an event has, and what cuts it into patches."""
        if len(event_shape) != 4 or min(event_shape) < 1:
            raise ValueError(f"a clip's event_shape is (frames, channels, height, width), got {event_shape}.")
        return event_shape[0], VideoPatches(event_shape[1:], patch_size)

    @staticmethod
    def _positions(text_length: int) -> str:
        """What layers have where their settings do not say."""
        return "axial"

    @property
    def max_frames(self) -> int:
        """How many frames there are positions for."""
        return self._transform.max_frames

    @property
    def frame_length(self) -> int:
        """How many tokens a frame has."""
        return self._transform.frame_length

    @property
    def frame_shape(self) -> tuple[int, ...]:
        return self._transform.frame_shape

    def guidance(self, weight: float) -> Guidance:
        """Classifier-free guidance of this weight, as this family takes it; for `guided`."""
        return ProductGuidance(weight)

    def noise(self, num_frames: int) -> FrameNoise:
        """The base distribution of clips of so many frames."""
        return self._distribution.of(num_frames)

    def resized(self, event_shape: Sequence[int]) -> Self:
        """This flow for events of another height, width or number of frames: on the very same weights, shared.

        Positions are made anew, over the same span, so that frames of any size cover the same area.
        """
        return self._shared(type(self), event_shape=list(event_shape))

    def as_clips(self) -> STARFlowV:
        """This flow as one of clips, on the same weights."""
        return self

    @property
    def saved(self) -> STARFlowV:
        """What is saved, and trained."""
        return self

    def _shared(self, family: type[Family], **changes: Any) -> Family:
        """A flow on the very same weights."""
        with torch.device("meta"):  # weights that are replaced at once need no memory
            other = family(**{**(self.config or {}), "span": self.span, **changes})
        share_weights(self, other)
        weight = next(self.parameters())
        return other.to(device=weight.device, dtype=weight.dtype).train(self.training)

    def log_prob_of_frames(self, inputs: Tensor, context: Tensor | None = None) -> Tensor:
        """Log-density of each frame given those before it, ``(B, T)``, in nats; their sum is `log_prob`.

        Raises ValueError as `log_prob` does.
        """
        inputs = self._as_own_dtype(inputs)
        z, logabsdet = self._transform.by_frames(inputs, self._encoded(context, len(inputs)))
        noise = z.reshape(-1, self._transform.frame_length, z.shape[-1])
        return self._distribution.log_prob(noise).view_as(logabsdet) + logabsdet
