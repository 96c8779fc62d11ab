"""The one architecture of STARFlow and STARFlow-V: shallow maps inside each frame under one deep, conditional map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nflows.transforms import CompositeTransform, IdentityTransform, Transform
from torch import Tensor, nn

from nflib.flows.tarflow import SCALES
from nflib.interfaces import Decoder, Inversion
from nflib.networks import TransformerLayer
from nflib.transforms import Autoregressive, Framewise, Reverse, TransformerAffineAutoregressive
from video.flows.blocks import LayerSettings, TextPrefix, causal_network
from video.flows.positions import POSITIONS, axial_coordinates


class DeepShallow(Transform):
    """The map of STARFlow, ``x -> tokens -> shallow maps -> u -> deep map -> z`` (arXiv 2506.06276, sec. 3.2).

    The flow is causal over frames, whatever comes later, and `encode` gives the u of a clip's first frames without the
    others.

    Args:
        patches: turns events into tokens ``(B, frames * frame_length, C)``.
        shallow: maps that keep to a frame.
        order: in which the deep map visits the tokens; it keeps frames in order.
        deep: the map over all frames, alone given the context.
        frame_length: tokens of a frame.
        max_frames: frames that the deep map has positions for.

    Raises:
        ValueError: in use, more than max_frames frames.
    """

    def __init__(
        self,
        patches: Any,
        shallow: Framewise,
        order: Transform,
        deep: Autoregressive,
        frame_length: int,
        max_frames: int,
    ):
        super().__init__()
        self.patches = patches
        self.shallow = shallow
        self.order = order
        self.deep = deep
        self.frame_length = frame_length
        self.max_frames = max_frames

    @property
    def uses_context(self) -> bool:
        return self.deep.uses_context

    @property
    def frame_shape(self) -> tuple[int, ...]:
        """``(C, H, W)``."""
        return tuple(self.patches.input_shape((self.frame_length, self.deep.token_size)))[-3:]

    def input_shape(self, output_shape: Sequence[int]) -> tuple[int, ...]:
        return self.patches.input_shape(output_shape)

    def forward(self, inputs: Tensor, context: Any = None) -> tuple[Tensor, Tensor]:
        z, logabsdet = self.by_frames(inputs, context)
        return z, logabsdet.sum(-1)

    def by_frames(self, inputs: Tensor, context: Any = None) -> tuple[Tensor, Tensor]:
        """What `forward` gives, but the logabsdet of each frame given those before it, ``(B, frames)``."""
        u, logabsdet = self._encode_by_frames(inputs)
        self._check_length(u)
        z, deep_logabsdet = self.deep.by_numbers(u, context)
        of_frames = deep_logabsdet.flatten(1).unflatten(1, (logabsdet.shape[1], -1)).sum(-1)
        return self.order.inverse(z)[0], logabsdet + of_frames

    def inverse(self, inputs: Tensor, context: Any = None) -> tuple[Tensor, Tensor]:
        inversion = self.invert(inputs, context)
        return inversion.tokens, inversion.logabsdet

    def invert(
        self,
        inputs: Tensor,
        context: Any = None,
        decoder: Decoder | None = None,
        prefix: Tensor | None = None,
    ) -> Inversion:
        """As `nflib.transforms.invert`; prefix: the first tokens u that the deep map visits, where they are given."""
        self._check_length(inputs)
        deep = self.deep.invert(self.order(inputs)[0], context, decoder, prefix)
        return deep.then(self.decode(deep.tokens, decoder))

    def encode(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """The tokens u ``(B, frames * frame_length, C)`` that the deep map visits, in its order, and logabsdet."""
        u, logabsdet = self._encode_by_frames(inputs)
        return u, logabsdet.sum(-1)

    def _encode_by_frames(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        tokens, _ = self.patches(inputs)
        tokens, logabsdet = self.shallow.by_frames(tokens)
        return self.order(tokens)[0], logabsdet

    def decode(self, u: Tensor, decoder: Decoder | None = None) -> Inversion:
        """The inverse of `encode`, for any number of frames."""
        inversion = self.shallow.invert(self.order.inverse(u)[0], None, decoder)
        return inversion._replace(tokens=self.patches.inverse(inversion.tokens)[0])

    def _check_length(self, tokens: Tensor) -> None:
        if tokens.shape[1] > self.max_frames * self.frame_length:
            raise ValueError(
                f"{tokens.shape[1] / self.frame_length:g} frames are more than the {self.max_frames} of this flow's "
                "positions: generate longer clips by video.rollout, or get a flow for more by resized()."
            )


def deep_shallow(
    patches: Any,
    grid: tuple[int, int],
    max_frames: int,
    layer: LayerSettings,
    *,
    layers_per_block: Sequence[int],
    text_length: int,
    text_channels: int,
    project_text: bool,
    top: Mapping[str, Any] | None,
    span: float,
    reverse_first: bool,
    scale: str,
    soft_clip: float,
) -> DeepShallow:
    """`DeepShallow` by transformers over frames of ``grid`` patches; arguments as for `video.STARFlowV`."""
    depths = list(layers_per_block)
    if not depths or min(depths) < 1:
        raise ValueError(f"layers_per_block must give each block at least 1 layer, got {depths}.")
    if scale not in SCALES:
        raise ValueError(f"scale must be one of {', '.join(SCALES)}, got {scale!r}.")
    if text_length < 0 or (text_length and text_channels < 1):
        raise ValueError(f"text of {text_length} tokens of {text_channels} channels is none; give positive numbers.")
    frame_length, token_size = patches.token_shape

    def block(depth: int, settings: LayerSettings, frames: int, words: int) -> TransformerAffineAutoregressive:
        coordinates = axial_coordinates(words, frames, *grid, span)
        network = causal_network(
            depth,
            token_size,
            settings,
            POSITIONS[settings.positions](coordinates, settings.head_dim),
            prefix=TextPrefix(words, text_channels, settings.channels, project_text) if words else None,
            soft_clip=soft_clip,
        )
        return TransformerAffineAutoregressive(network, SCALES[scale]())

    shallow: list[Transform] = []
    for index, depth in enumerate(depths[:-1]):
        transform: Transform = block(depth, layer, 1, 0)
        is_reversed = (index % 2 == 0) == reverse_first
        shallow.append(CompositeTransform([Reverse(), transform, Reverse()]) if is_reversed else transform)
    is_reversed = (len(depths) % 2 == 1) == reverse_first
    return DeepShallow(
        patches,
        Framewise(CompositeTransform(shallow), frame_length),
        Reverse(frame_length) if is_reversed else IdentityTransform(),
        block(depths[-1], layer.but(top), max_frames, text_length),
        frame_length,
        max_frames,
    )


def share_weights(source: nn.Module, target: nn.Module) -> None:
    """Make the parameters of `target`, a module with parts of the same names, those of `source`.

    Layers that are computed once more for the backward pass are so in both.
    """
    for name, parameter in source.named_parameters(remove_duplicate=False):
        path, _, leaf = name.rpartition(".")
        setattr(target.get_submodule(path), leaf, parameter)
    for name, part in source.named_modules():
        if isinstance(part, TransformerLayer):
            twin: Any = target.get_submodule(name)
            twin.recomputes = part.recomputes
