"""TARFlow: a stack of causal-transformer affine maps that visit the patches in alternating order."""

from collections.abc import Sequence
from functools import partial
from numbers import Integral

from nflows.transforms import CompositeTransform, Transform
from torch import nn

from nflib.events import as_shape
from nflib.flows.flow import Flow
from nflib.networks import (
    CausalTransformer,
    ClassEmbedding,
    ImagePrefix,
    LearnedPositions,
    RMSNorm,
    Rotary,
    SinusoidalPositions,
    SoftClip,
    TokenPrefix,
    VectorEmbedding,
    grid_coordinates,
)
from nflib.networks.layers import MLP, GatedMLP, transformer_layers
from nflib.networks.norms import LayerNorm
from nflib.transforms import ExponentialScale, ImagePatches, Reverse, SoftplusScale, VectorPatches
from nflib.transforms.conditionals import autoregressive_map, base_distribution, conditional_names

NORMS = {"layer_norm": LayerNorm, "rms_norm": RMSNorm}
SCALES = {"exponential": ExponentialScale, "softplus": SoftplusScale}
MLPS = {"gelu": MLP, "gated": GatedMLP}
POSITIONS = ("learned", "sinusoidal", "rotary")


class TARFlow(Flow):
    """The transformer autoregressive flow of Zhai et al. 2024 (arXiv 2412.06329), for images and vectors.

    Args:
        event_shape: ``(C, H, W)`` for an image, cut into patches; any other shape is cut in raster order into tokens.
            A number D stands for a vector ``(D,)``.
        patch_size: side of an image's square patches, or (height, width); otherwise how many numbers a token has.
        channels: width of the transformers.
        num_blocks: how many autoregressive maps; every second one visits the tokens in reverse order.
        layers_per_block: depth of each transformer, one number for all or one for each block.
        num_classes: number of classes, if the context is a class label: integers ``(B,)``, -1 for none (default: 0, no
            labels).
        context_shape: shape of any other context: a vector ``(D,)``; a sequence ``(L, D)`` (L None: of any length; it
            may come as a pair with a padding mask ``(B, L)``, True at padding); an image ``(C, H, W)``.
        context_patch_size: side of the square patches of a context that is an image.
        head_dim: channels of each attention head.
        expansion: hidden channels of an MLP, as a multiple of channels.
        scale: how the network's output becomes a scale: "exponential" or "softplus".
        norm: "layer_norm" or "rms_norm".
        positions: position encoding, "learned", "sinusoidal" or "rotary" (2-D over an image's patches).
        mlp: "gelu" or "gated".
        start_token: a learned token that is read before the first one; without it, the first token gets parameters of
            zero, the identity of affine maps. Default: only where the first token would learn nothing otherwise, being
            the only one or conditioned on a context_shape.
        final_norm: one more norm before the output layer (the released TARFlows have none).
        soft_clip: bound on the network's output, by a tanh; 0 for none.
        dropout: share of the numbers of each layer's residual updates that is dropped in training.
        conditional: how the numbers of a token are mapped given the tokens before: "affine"; or, richer and slower to
            invert, a rational-quadratic "spline", a "quadratic" spline, bins of constant density ("binned") or a
            "mixture" of normals, which are given the numbers before them in their own token, too; "circular" splines
            map angles in radians, in [-pi, pi). One name, or (other than affine) one for each number of a token.
        num_bins: pieces, bins or components of a conditional that is not affine.

    Raises:
        ValueError: a setting is unknown or out of range, or settings do not fit together.

    >>> import torch
    >>> flow = TARFlow(event_shape=(1, 8, 8), patch_size=2, channels=64, num_blocks=4, layers_per_block=2)
    >>> flow.log_prob(torch.zeros(3, 1, 8, 8)).shape
    torch.Size([3])
    """

    def __init__(
        self,
        event_shape: Sequence[int] | int,
        patch_size: int | Sequence[int] = 1,
        channels: int = 128,
        num_blocks: int = 4,
        layers_per_block: int | Sequence[int] = 2,
        num_classes: int = 0,
        *,
        context_shape: Sequence[int | None] | int | None = None,
        context_patch_size: int = 4,
        head_dim: int = 64,
        expansion: float = 4,
        scale: str = "exponential",
        norm: str = "layer_norm",
        positions: str = "learned",
        mlp: str = "gelu",
        start_token: bool | None = None,
        final_norm: bool = True,
        soft_clip: float = 0.0,
        dropout: float = 0.0,
        conditional: str | Sequence[str] = "affine",
        num_bins: int = 8,
    ):
        event_shape = as_shape(event_shape)
        context_shape = _context_shape(context_shape)
        if not event_shape:
            raise ValueError("a TARFlow's events have at least one dimension, got the event_shape ().")
        patches: ImagePatches | VectorPatches
        if len(event_shape) == 3:
            patches = ImagePatches(event_shape, patch_size)
        else:
            patches = VectorPatches(event_shape, patch_size)
        if start_token is None:
            start_token = patches.token_shape[0] == 1 or context_shape is not None
        names = conditional_names(conditional, patches.token_shape[1])
        blocks = autoregressive_blocks(
            patches.token_shape,
            channels=channels,
            num_blocks=num_blocks,
            layers_per_block=layers_per_block,
            num_classes=num_classes,
            context_shape=context_shape,
            context_patch_size=context_patch_size,
            head_dim=head_dim,
            expansion=expansion,
            scale=scale,
            norm=norm,
            positions=positions,
            mlp=mlp,
            start_token=start_token,
            final_norm=final_norm,
            soft_clip=soft_clip,
            dropout=dropout,
            conditional=names,
            num_bins=num_bins,
            grid=patches.grid,
        )
        super().__init__(
            CompositeTransform([patches, *blocks]),
            base_distribution(names, patches.token_shape[0]),
            context_shape=() if num_classes else context_shape,
        )


def autoregressive_blocks(
    token_shape: tuple[int, int],
    *,
    channels: int,
    num_blocks: int,
    layers_per_block: int | Sequence[int],
    num_classes: int = 0,
    context_shape: Sequence[int | None] | None = None,
    context_patch_size: int = 4,
    head_dim: int = 64,
    expansion: float = 4,
    scale: str = "exponential",
    norm: str = "layer_norm",
    positions: str = "learned",
    mlp: str = "gelu",
    start_token: bool = False,
    final_norm: bool = True,
    soft_clip: float = 0.0,
    dropout: float = 0.0,
    conditional: str | Sequence[str] = "affine",
    num_bins: int = 8,
    grid: Sequence[int] | None = None,
) -> list[Transform]:
    """The transforms of a TARFlow, which map tokens ``(B, *token_shape)``, as blocks for a flow of your own.

    Args:
        token_shape: ``(T, C)``, number of tokens and numbers of a token.
        channels: width of the transformers.
        num_blocks: how many autoregressive maps; every second one visits the tokens in reverse order.
        layers_per_block: depth of each transformer, one number for all or one for each block.
        num_classes: this and all further arguments as for `TARFlow`, but for the following.
        start_token: none by default.
        grid: how the tokens are arranged, such as ``(rows, columns)``, for rotary positions (default: in a line).

    Returns:
        The transforms, in the order in which data passes through them.

    Raises:
        ValueError: as for `TARFlow`.

    >>> from nflows.transforms import CompositeTransform
    >>> from nflib.distributions import StandardNormal
    >>> blocks = autoregressive_blocks((6, 2), channels=32, num_blocks=2, layers_per_block=1, head_dim=16)
    >>> flow = Flow(CompositeTransform(blocks), StandardNormal((6, 2)))
    >>> flow.sample(3).shape
    torch.Size([3, 6, 2])
    """
    num_tokens, token_size = token_shape
    depths = depths_of_blocks(layers_per_block, num_blocks)
    if channels < 1 or head_dim < 1 or num_classes < 0:
        raise ValueError(
            f"channels ({channels}) and head_dim ({head_dim}) must be positive, and num_classes ({num_classes}) "
            "not negative."
        )
    if channels % min(head_dim, channels):
        raise ValueError(f"channels ({channels}) must be a multiple of head_dim ({head_dim}).")
    head_dim = min(head_dim, channels)
    make_norm = _choose(NORMS, "norm", norm)
    make_mlp = _choose(MLPS, "mlp", mlp)
    make_scale = _choose(SCALES, "scale", scale)
    if positions not in POSITIONS:
        raise ValueError(f"positions must be one of {', '.join(POSITIONS)}, got {positions!r}.")
    names = conditional_names(conditional, token_size)
    if num_classes and context_shape is not None:
        raise ValueError("a context is class labels (num_classes) or of a context_shape, not both.")
    length = num_tokens - 1 + start_token

    def network(depth: int, reverse: bool, features_per_token: int, parameters_per_token: int) -> CausalTransformer:
        rotary: nn.Module | None = None
        added: nn.Module | None = None
        if positions == "rotary":
            coordinates = grid_coordinates(grid or (num_tokens,))
            coordinates = coordinates.flip(0) if reverse else coordinates
            rotary = Rotary(coordinates, head_dim)
        elif positions == "learned":
            added = LearnedPositions(length, channels)
        else:
            added = SinusoidalPositions(length, channels)
        return CausalTransformer(
            features_per_token,
            parameters_per_token,
            channels,
            transformer_layers(
                depth,
                channels,
                head_dim=head_dim,
                expansion=expansion,
                norm=make_norm,
                mlp=make_mlp,
                rotary=rotary,
                dropout=dropout,
            ),
            positions=added,
            **_conditioned(num_classes, _context_shape(context_shape), context_patch_size, channels),
            final_norm=make_norm(channels) if final_norm else None,
            clip=SoftClip(soft_clip) if soft_clip else None,
            start_token=start_token,
        )

    blocks: list[Transform] = []
    for index, depth in enumerate(depths):
        reverse = index % 2 == 1
        block = autoregressive_map(
            names[::-1] if reverse else names,
            partial(network, depth, reverse),
            num_bins=num_bins,
            dropout=dropout,
            scale=make_scale(),
        )
        order = Reverse(within_tokens="affine" not in names)
        blocks += [order, block, order] if reverse else [block]
    return blocks


def _conditioned(
    num_classes: int, shape: Sequence[int | None] | None, patch_size: int, channels: int
) -> dict[str, nn.Module]:
    """The part of a transformer that reads the context."""
    if num_classes:
        return {"embedding": ClassEmbedding(num_classes, channels)}
    if shape is None:
        return {}
    if len(shape) == 1:
        return {"embedding": VectorEmbedding(shape[0], channels)}  # type: ignore[arg-type]
    if len(shape) == 2:
        return {"prefix": TokenPrefix(shape[1], channels)}  # type: ignore[arg-type]
    return {"prefix": ImagePrefix(shape, patch_size, channels)}  # type: ignore[arg-type]


def _context_shape(shape: Sequence[int | None] | int | None) -> tuple[int | None, ...] | None:
    """The shape of a context as a tuple of integers; raises ValueError for one that no part reads."""
    if shape is None:
        return None
    sizes = tuple(shape) if isinstance(shape, Sequence) else (shape,)
    given = sizes[1:] if len(sizes) == 2 and sizes[0] is None else sizes
    if not 1 <= len(sizes) <= 3 or not all(isinstance(n, Integral) and n >= 1 and n is not True for n in given):
        raise ValueError(
            f"context_shape must be (size,), (length or None, size) or (channels, height, width), got {shape!r}."
        )
    return tuple(None if n is None else int(n) for n in sizes)


def _choose(table: dict[str, type[nn.Module]], setting: str, name: str) -> type[nn.Module]:
    if name not in table:
        raise ValueError(f"{setting} must be one of {', '.join(table)}, got {name!r}.")
    return table[name]


def depths_of_blocks(layers_per_block: int | Sequence[int], num_blocks: int) -> list[int]:
    """The layers of each block, of one number for all or one for each; raises ValueError where a block has none."""
    depths = list(layers_per_block) if isinstance(layers_per_block, Sequence) else [layers_per_block] * num_blocks
    if num_blocks < 1 or len(depths) != num_blocks or min(depths) < 1:
        raise ValueError(f"layers_per_block {layers_per_block} must give each of {num_blocks} blocks at least 1 layer.")
    return depths
