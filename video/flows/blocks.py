"""The transformers of STARFlow's blocks, and of its denoiser, built from one set of settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from nflib.flows.tarflow import MLPS, NORMS
from nflib.networks import CausalTransformer, HeadwiseNorm, RMSNorm, SoftClip
from nflib.networks.layers import transformer_layers
from video.flows.positions import POSITIONS


@dataclass(frozen=True)
class LayerSettings:
    """Settings of the transformers in a STARFlow, and of their layers.

    Args:
        channels: width.
        head_dim: width of an attention head, a multiple of 4; where positions are axial 20 or more.
        expansion: width of the layers' MLPs over `channels`.
        num_heads: default ``channels / head_dim``.
        num_key_value_heads: fewer than num_heads share key and value heads among query heads (default: as many).
        norm: "layer_norm" or "rms_norm".
        mlp: "gelu" or "gated".
        query_key_norm: an RMS norm of each head's queries and keys.
        post_norm: an RMS norm after attention and MLP.
        final_norm: an RMS norm before the output layer.
        bias: of linear maps in the layers.
        positions: rotary, "axial" (height, width, time), "picture" (height, width) or "line" (counted along the
            sequence).
        dropout: share of the layers' updates that training drops.

    Raises:
        ValueError: settings that do not fit.
    """

    channels: int
    head_dim: int = 64
    expansion: float = 4
    num_heads: int | None = None
    num_key_value_heads: int | None = None
    norm: str = "layer_norm"
    mlp: str = "gelu"
    query_key_norm: bool = False
    post_norm: bool = False
    final_norm: bool = True
    bias: bool = True
    positions: str = "axial"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        choices = {"norm": tuple(NORMS), "mlp": tuple(MLPS), "positions": tuple(POSITIONS)}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}.")
        if self.channels < 1 or self.head_dim < 1:
            raise ValueError(f"channels ({self.channels}) and head_dim ({self.head_dim}) must be positive.")

    def but(self, changes: Mapping[str, Any] | None) -> LayerSettings:
        """These settings with some changed by name; raises ValueError for a name that is none."""
        changes = changes or {}
        known = [field.name for field in dataclasses.fields(self)]
        unknown = sorted(set(changes) - set(known))
        if unknown:
            raise ValueError(f"layers have no setting {unknown[0]!r}; they have {', '.join(known)}.")
        return dataclasses.replace(self, **changes)

    def make_norm(self) -> nn.Module:
        return NORMS[self.norm](self.channels)

    def make_post_norm(self) -> nn.Module:
        return RMSNorm(self.channels) if self.post_norm else nn.Identity()

    def make_final_norm(self) -> nn.Module:
        return RMSNorm(self.channels) if self.final_norm else nn.Identity()

    def make_mlp(self) -> nn.Module:
        return MLPS[self.mlp](self.channels, self.expansion, self.bias)

    def attention(self) -> dict[str, Any]:
        """The arguments of an attention, but for its rotary positions."""
        head_norm: Callable[[int], nn.Module] = lambda width: HeadwiseNorm(RMSNorm(self.head_dim), self.head_dim)  # noqa: E731
        return {
            "head_dim": self.head_dim,
            "num_heads": self.num_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "query_key_norm": head_norm if self.query_key_norm else None,
            "bias": self.bias,
        }


class TextPrefix(nn.Module):
    """Text embeddings ``(B, text_length, text_channels)`` as tokens ``(B, text_length, channels)`` before the others.

    Args:
        text_length: tokens of the text.
        text_channels: width of the text's tokens.
        channels: width of the transformer.
        projects: by a linear map; without, text_channels must equal channels.

    Raises:
        ValueError: widths that do not fit; in use, a context of another shape.
    """

    def __init__(self, text_length: int, text_channels: int, channels: int, projects: bool = True):
        super().__init__()
        if not projects and text_channels != channels:
            raise ValueError(
                f"text of {text_channels} channels does not fit a block of {channels} without a projection."
            )
        self.text_shape = (text_length, text_channels)
        self.projection = nn.Linear(text_channels, channels) if projects else nn.Identity()

    def forward(self, context: Any) -> Tensor:
        if not isinstance(context, Tensor) or tuple(context.shape[1:]) != self.text_shape:
            got = tuple(context.shape) if isinstance(context, Tensor) else type(context).__name__
            raise ValueError(f"expected text of shape (batch, {self.text_shape[0]}, {self.text_shape[1]}), got {got}.")
        # As tokens are cast, whatever the encoder of the text computes in.
        weight = getattr(self.projection, "weight", None)
        return self.projection(context if weight is None else context.to(weight.dtype))


def causal_network(
    num_layers: int,
    token_size: int,
    layer: LayerSettings,
    rotary: nn.Module,
    *,
    prefix: TextPrefix | None = None,
    soft_clip: float = 0.0,
) -> CausalTransformer:
    """The causal transformer of one block, with a learned start token.

    Args:
        num_layers: of the transformer.
        token_size: numbers of a token; twice as many parameters are given for it.
        layer: settings of the layers.
        rotary: positions.
        prefix: tokens of the text before the others.
        soft_clip: bound on the size of parameters; 0 for none.
    """
    layers = transformer_layers(
        num_layers,
        layer.channels,
        expansion=layer.expansion,
        norm=NORMS[layer.norm],
        mlp=MLPS[layer.mlp],
        rotary=rotary,
        post_norm=RMSNorm if layer.post_norm else None,
        dropout=layer.dropout,
        **layer.attention(),
    )
    return CausalTransformer(
        token_size,
        2 * token_size,
        layer.channels,
        layers,
        prefix=prefix,
        final_norm=layer.make_final_norm(),
        clip=SoftClip(soft_clip) if soft_clip else None,
        start_token=True,
    )
