"""The tables that the tests run through: a named constructor for every transform, and for every flow."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from nflows.distributions import ConditionalDiagonalNormal
from nflows.distributions import StandardNormal as NFlowsStandardNormal
from nflows.nn.nets import ResidualNet
from nflows.transforms import CompositeTransform, PiecewiseRationalQuadraticCouplingTransform, Transform
from torch import Tensor, nn

from nflib import Flow
from nflib.decoding import Decoder
from nflib.distributions import StandardNormal
from nflib.flows import TARFlow, autoregressive_blocks
from nflib.networks import (
    AdaptiveLayerNorm,
    CausalTransformer,
    ClassEmbedding,
    GatedMLP,
    HeadwiseNorm,
    LearnedPositions,
    RMSNorm,
    Rotary,
    SinusoidalPositions,
    SoftClip,
    grid_coordinates,
)
from nflib.networks.layers import transformer_layers
from nflib.networks.norms import LayerNorm
from nflib.transforms import (
    AutoregressiveTokenMap,
    ByParts,
    CircularRationalQuadraticSpline,
    ExponentialScale,
    Framewise,
    GaussianizeMarginals,
    GuidedAutoregressive,
    ImagePatches,
    IndependentTokenMap,
    LinearGuidance,
    NormalMixture,
    Permute,
    PermuteByContext,
    PerNumber,
    ProductGuidance,
    QuadraticSpline,
    RationalQuadraticSpline,
    Reverse,
    SoftplusScale,
    Standardize,
    TokenMap,
    TokenwiseAutoregressive,
    TransformerAffineAutoregressive,
    UniformizeCircles,
    VectorPatches,
    Whiten,
)

NUM_CLASSES = 3
CONDITION_CHANNELS = 4

Draw = Callable[[int], Tensor]


@dataclass(frozen=True)
class Case:
    """One line of a table: how to build a module, what it takes, and what it gives back."""

    name: str
    build: Callable[[], Any]
    event_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    draw_context: Draw | None = None
    context_required: bool = False
    draw_inputs: Draw | None = None

    def __str__(self) -> str:
        return self.name

    def inputs(self, batch: int = 5, dtype: torch.dtype = torch.float32) -> Tensor:
        """Inputs the module accepts, `(batch, *event_shape)`, from torch's global generator."""
        drawn = torch.randn(batch, *self.event_shape) if self.draw_inputs is None else self.draw_inputs(batch)
        return drawn.to(dtype)

    def context(self, batch: int = 5, dtype: torch.dtype = torch.float32) -> Tensor | None:
        """A context of `batch` rows, or None where the module takes none."""
        context = None if self.draw_context is None else self.draw_context(batch)
        return context.to(dtype) if context is not None and context.is_floating_point() else context

    def contexts(self, batch: int, dtype: torch.dtype = torch.float32) -> Iterator[Tensor | None]:
        """Every kind of context that the module accepts: one of its own, and none."""
        if self.draw_context is not None:
            yield self.context(batch, dtype)
        if not self.context_required:
            yield None


def dense_logabsdet(transform: Transform, x: Tensor, context: Tensor | None = None) -> Tensor:
    """log|det| of the Jacobian that automatic differentiation writes out, one sample after the other."""
    return torch.stack(
        [
            _dense_logabsdet_of_one(transform, x[i : i + 1], None if context is None else context[i : i + 1])
            for i in range(len(x))
        ]
    )


def _dense_logabsdet_of_one(transform: Transform, x: Tensor, context: Tensor | None) -> Tensor:
    jacobian = torch.autograd.functional.jacobian(lambda y: transform(y, context)[0], x)
    return torch.linalg.slogdet(jacobian.reshape(x.numel(), -1)).logabsdet


def solve(
    decoder: Decoder, transform: Any, z: Tensor, context: Any = None, prefix: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The tokens that a decoder finds, and their logabsdet."""
    options = {} if prefix is None else {"prefix": prefix}
    with torch.no_grad():
        inversion = transform.invert(z, context, decoder, **options)
    return inversion.tokens, inversion.logabsdet


def relative_error(approximate: Tensor, exact: Tensor) -> float:
    """Root-mean-square error over root-mean-square value."""
    return float((approximate - exact).norm() / exact.norm().clamp_min(1e-30))


def labels(batch: int) -> Tensor:
    """Class labels that include, from three rows on, both a class and "no class"."""
    return torch.arange(batch) % (NUM_CLASSES + 1) - 1


def headwise_norm(width: int) -> nn.Module:
    return HeadwiseNorm(RMSNorm(8), 8)


def texts(batch: int) -> Tensor:
    """Three text tokens a sample."""
    return torch.randn(batch, 3, CONDITION_CHANNELS)


def lengths(batch: int) -> Tensor:
    """How many of six tokens exist, at least two."""
    return 2 + torch.arange(batch) % 5


class FirstTokens(nn.Module):
    """The mask of as many of six tokens as the context says."""

    def forward(self, context: Tensor) -> Tensor:
        return torch.arange(6, device=context.device) < context.unsqueeze(-1)


class Cliff(nn.Module):
    """Scale one where the raw scale is below `edge`; above, a scale that soon overflows."""

    def __init__(self, edge: float):
        super().__init__()
        self.edge = edge

    def forward(self, raw: Tensor) -> Tensor:
        return 1e4 * (raw - self.edge).clamp_min(0)


def token_conditions(length: int) -> Draw:
    return lambda batch: torch.randn(batch, length, CONDITION_CHANNELS)


def autoregressive(
    num_tokens: int = 6,
    token_size: int = 2,
    channels: int = 16,
    *,
    scale: type[nn.Module] = ExponentialScale,
    positions: str = "learned",
    grid: tuple[int, ...] | None = None,
    start_token: bool = False,
    num_classes: int = 0,
    conditioner: bool = False,
    prefix: bool = False,
    token_mask: nn.Module | None = None,
    clip: float = 0.0,
    final_norm: Callable[[int], nn.Module] = LayerNorm,
    **layer_settings: Any,
) -> TransformerAffineAutoregressive:
    """The map on tokens `(num_tokens, token_size)` with every part that the engine has as a switch."""
    length = num_tokens - 1 + start_token
    settings = {"head_dim": 8, "expansion": 2} | layer_settings
    added = {"learned": LearnedPositions, "sinusoidal": SinusoidalPositions}.get(positions)
    if positions == "rotary":
        coordinates = grid_coordinates(grid or (num_tokens,))
        settings["rotary"] = Rotary(coordinates, settings["head_dim"], pairs=settings.pop("pairs", None))
    if conditioner:
        settings["norm"] = partial(AdaptiveLayerNorm, condition_channels=CONDITION_CHANNELS)
    network = CausalTransformer(
        token_size,
        2 * token_size,
        channels,
        transformer_layers(2, channels, **settings),
        positions=added(length, channels) if added else None,
        embedding=ClassEmbedding(num_classes, channels) if num_classes else None,
        conditioner=nn.Linear(CONDITION_CHANNELS, CONDITION_CHANNELS) if conditioner else None,
        prefix=nn.Linear(CONDITION_CHANNELS, channels) if prefix else None,
        token_mask=token_mask,
        final_norm=final_norm(channels),
        clip=SoftClip(clip) if clip else None,
        start_token=start_token,
    )
    return TransformerAffineAutoregressive(network, scale())


def _autoregressive_case(name: str, draw_context: Draw | None = None, **settings: Any) -> Case:
    shape = (settings.get("num_tokens", 6), settings.get("token_size", 2))
    build = partial(autoregressive, **settings)
    return Case(name, build, shape, shape, draw_context, context_required=bool(NEED_CONTEXT & settings.keys()))


NEED_CONTEXT = {"conditioner", "prefix", "token_mask"}

EVERYTHING: dict[str, Any] = {
    "channels": 32,
    "scale": SoftplusScale,
    "positions": "rotary",
    "grid": (2, 3),
    "start_token": True,
    "num_classes": NUM_CLASSES,
    "clip": 3.0,
    "norm": RMSNorm,
    "final_norm": RMSNorm,
    "mlp": GatedMLP,
    "num_key_value_heads": 2,
    "query_key_norm": headwise_norm,
    "post_norm": RMSNorm,
}

AUTOREGRESSIVE = [
    _autoregressive_case("plain"),  # exponential scale, shifted start, learned positions, layer norm, MLP
    _autoregressive_case("scale-softplus", scale=SoftplusScale),
    _autoregressive_case("start-learned", start_token=True),
    _autoregressive_case("start-learned-one-token", num_tokens=1, token_size=5, start_token=True),
    _autoregressive_case("positions-sinusoidal", positions="sinusoidal"),
    _autoregressive_case("positions-sinusoidal-start-learned", positions="sinusoidal", start_token=True),
    _autoregressive_case("rotary-1d", positions="rotary"),
    _autoregressive_case("rotary-1d-start-learned", positions="rotary", start_token=True),
    _autoregressive_case("rotary-2d", positions="rotary", grid=(2, 3)),
    _autoregressive_case(
        "rotary-3d", num_tokens=12, token_size=1, channels=24, head_dim=12, positions="rotary", grid=(2, 3, 2)
    ),
    _autoregressive_case("norm-rms", norm=RMSNorm, final_norm=RMSNorm),
    _autoregressive_case("norm-adaptive", token_conditions(5), conditioner=True),
    _autoregressive_case("norm-adaptive-start-learned", token_conditions(6), conditioner=True, start_token=True),
    _autoregressive_case("mlp-gated", mlp=GatedMLP),
    _autoregressive_case("heads-grouped-query", channels=32, num_key_value_heads=2),
    _autoregressive_case("heads-one-key", channels=32, num_key_value_heads=1),
    _autoregressive_case("query-key-norm", query_key_norm=headwise_norm),
    _autoregressive_case("query-key-norm-of-all-heads", query_key_norm=LayerNorm),
    _autoregressive_case("post-norm", post_norm=RMSNorm),
    _autoregressive_case("soft-clip", clip=0.5),
    _autoregressive_case("class-embedding", labels, num_classes=NUM_CLASSES),
    _autoregressive_case("prefix", texts, prefix=True),
    _autoregressive_case("prefix-start-learned", texts, prefix=True, start_token=True),
    _autoregressive_case(
        "prefix-rotary", texts, prefix=True, start_token=True, positions="rotary", grid=(3, 3), pairs=(1, 3)
    ),
    _autoregressive_case("padding", lengths, token_mask=FirstTokens()),
    _autoregressive_case("padding-start-learned", lengths, token_mask=FirstTokens(), start_token=True),
    _autoregressive_case("everything", labels, **EVERYTHING),
]


def angles(*shape: int) -> Tensor:
    """Angles ``(*shape, 2)`` of two modes, in [-pi, pi]."""
    radians = 0.4 * torch.randn(*shape, 2) + torch.where(torch.rand(*shape, 2) < 0.3, -1.5, 1.0)
    return radians.clamp(-3, 3)


def interval_inputs(batch: int) -> Tensor:
    """Events of 4 numbers whose second and fourth lie in (-1, 1)."""
    x = torch.randn(batch, 4)
    return torch.stack([x[:, 0] ** 3 + 1, x[:, 1].tanh(), 0.1 * x[:, 2], x[:, 3].sin()], dim=1)


FIXED = [
    Case("reverse", Reverse, (6, 2), (6, 2)),
    Case("reverse-within", partial(Reverse, within_tokens=True), (6, 2), (6, 2)),
    Case("reverse-frames", partial(Reverse, frame_length=2), (6, 2), (6, 2)),
    Case("permute", lambda: Permute(torch.randperm(6)), (6, 2), (6, 2)),
    Case("image-patches", partial(ImagePatches, (3, 4, 6), 2), (3, 4, 6), (6, 12)),
    Case("image-patches-oblong", partial(ImagePatches, (3, 4, 6), (1, 3)), (3, 4, 6), (8, 9)),
    Case("vector-patches", partial(VectorPatches, (12,), 3), (12,), (4, 3)),
    Case("vector-patches-of-a-grid", partial(VectorPatches, (2, 3, 2), 2), (2, 3, 2), (6, 2)),
    Case("standardize", lambda: Standardize.fit(3 * torch.randn(50, 4, 2) + 1), (4, 2), (4, 2)),
    Case(
        "standardize-channels",
        lambda: Standardize.fit(3 * torch.randn(50, 4, 2) + 1, event_dims=-1),
        (4, 2),
        (4, 2),
    ),
    Case("whiten", lambda: Whiten.fit(torch.randn(50, 4, 2).cumsum(1)), (4, 2), (4, 2)),
    Case("gaussianize", lambda: GaussianizeMarginals.fit(torch.randn(300, 3, 2).exp()), (3, 2), (3, 2)),
    Case(
        "gaussianize-intervals",
        lambda: GaussianizeMarginals.fit(interval_inputs(300), {1: (-1.0, 1.0), 3: (-1.0, 1.0)}),
        (4,),
        (4,),
        draw_inputs=interval_inputs,
    ),
    Case("uniformize-circles", lambda: UniformizeCircles.fit(angles(300)), (2,), (2,), draw_inputs=angles),
    Case(
        "by-parts",
        lambda: ByParts(torch.eye(2).bool(), UniformizeCircles.fit(angles(300)), Whiten.fit(torch.randn(50, 2))),
        (2, 2),
        (2, 2),
        draw_inputs=lambda batch: angles(2 * batch).view(batch, 2, 2),
    ),
]


def pairs_of_labels(batch: int) -> Tensor:
    """A class, and none, for each sample."""
    return torch.stack([torch.arange(batch) % NUM_CLASSES, torch.full((batch,), -1)], dim=1)


def pairs_of_texts(batch: int) -> Tensor:
    return torch.stack([texts(batch), texts(batch)], dim=1)


def orderings(batch: int) -> Tensor:
    return torch.rand(batch, 6).argsort(dim=-1)


def _guided_case(name: str, guidance: Any, draw_context: Draw = pairs_of_labels, **settings: Any) -> Case:
    settings = settings or {"num_classes": NUM_CLASSES}
    build = lambda: GuidedAutoregressive(autoregressive(**settings), guidance)  # noqa: E731
    return Case(name, build, (6, 2), (6, 2), draw_context, context_required=True)


def _tokenwise_case(name: str, token_map: TokenMap, start_token: bool = False, draw_inputs: Draw | None = None) -> Case:
    def build() -> TokenwiseAutoregressive:
        own = copy.deepcopy(token_map)
        network = CausalTransformer(
            own.features_per_token,
            own.parameters_per_token,
            16,
            transformer_layers(1, 16, head_dim=8, expansion=2),
            positions=LearnedPositions(5 + start_token, 16),
            start_token=start_token,
        )
        return TokenwiseAutoregressive(network, own)

    return Case(name, build, (6, 2), (6, 2), draw_inputs=draw_inputs)


CIRCLE = CircularRationalQuadraticSpline(3)
SCOPED = [
    Case("framewise", lambda: Framewise(autoregressive(3), 3), (6, 2), (6, 2)),
    Case("permute-by-context", lambda: PermuteByContext(nn.Identity()), (6, 2), (6, 2), orderings, True),
    _tokenwise_case("spline", IndependentTokenMap(RationalQuadraticSpline(4), 2)),
    _tokenwise_case("spline-inner", AutoregressiveTokenMap(RationalQuadraticSpline(4, 2.0), 2, units=3, num_layers=2)),
    _tokenwise_case("spline-inner-start-learned", AutoregressiveTokenMap(RationalQuadraticSpline(4), 2, 3), True),
    _tokenwise_case("quadratic-inner", AutoregressiveTokenMap(QuadraticSpline(4), 2, 3)),
    _tokenwise_case("mixture-inner", AutoregressiveTokenMap(NormalMixture(3), 2, 3)),
    _tokenwise_case("circles", AutoregressiveTokenMap(CIRCLE, 2, 3), True, lambda batch: angles(batch, 6)),
    _tokenwise_case(
        "circle-and-spline",
        AutoregressiveTokenMap(PerNumber([CIRCLE, RationalQuadraticSpline(4)]), 2, 3),
        draw_inputs=lambda batch: angles(batch, 6),
    ),
    _guided_case("guided-linear", LinearGuidance(0.7)),
    _guided_case("guided-linear-ramp", LinearGuidance(1.5, "b", ramp=5, attention_temperature=1.3)),
    _guided_case("guided-product", ProductGuidance(1.5)),
    _guided_case("guided-product-text", ProductGuidance(1.5, attention_temperature=0.7), pairs_of_texts, prefix=True),
]

TRANSFORMS = AUTOREGRESSIVE + FIXED + SCOPED


SMALL: dict[str, Any] = {
    "channels": 16,
    "head_dim": 8,
    "num_blocks": 2,
    "layers_per_block": 1,
    "expansion": 2,
}


def blocks(num_tokens: int, token_size: int, **settings: Any) -> list[Transform]:
    return autoregressive_blocks((num_tokens, token_size), **(SMALL | settings))


def spline_coupling(size: int) -> Transform:
    """nflows' own neural spline coupling layer on vectors; transforms every second number."""
    return PiecewiseRationalQuadraticCouplingTransform(
        mask=[index % 2 for index in range(size)],
        transform_net_create_fn=lambda inputs, outputs: ResidualNet(inputs, outputs, 16, num_blocks=1),
        num_bins=5,
        tails="linear",
        tail_bound=4.0,
    )


def spline_on_top() -> Flow:
    """Autoregressive maps between data and an nflows spline coupling, which acts on the flat vector."""
    transform = CompositeTransform([spline_coupling(8), VectorPatches((8,), 2), *blocks(4, 2)])
    return Flow(transform, StandardNormal((4, 2)))


def nflows_base() -> Flow:
    transform = CompositeTransform([VectorPatches((8,), 2), *blocks(4, 2)])
    return Flow(transform, NFlowsStandardNormal([4, 2]))


def nflows_conditional_base() -> Flow:
    """The context is the base density's mean and log standard deviation."""
    return Flow(CompositeTransform(blocks(4, 2)), ConditionalDiagonalNormal([4, 2]))


def embedded_context() -> Flow:
    """An embedding network turns a vector into a condition of each token."""
    transform = autoregressive(4, 2, conditioner=True)
    embedding = nn.Sequential(nn.Linear(2, 3 * CONDITION_CHANNELS), nn.Unflatten(1, (3, CONDITION_CHANNELS)))
    return Flow(transform, StandardNormal((4, 2)), embedding)


def fitted_and_permuted() -> Flow:
    """What precedes the network is fitted to data; its blocks follow an ordering of the user's."""
    transforms = [
        GaussianizeMarginals.fit(torch.randn(300, 4, 2).exp()),
        Standardize.fit(2 * torch.randn(50, 4, 2), event_dims=-1),
        Permute(torch.randperm(4)),
        *blocks(4, 2),
        Reverse(frame_length=2),
        *blocks(4, 2, scale="softplus"),
    ]
    return Flow(CompositeTransform(transforms), StandardNormal((4, 2)))


def _tarflow_case(
    name: str,
    event_shape: tuple[int, ...],
    token_shape: tuple[int, int],
    draw_inputs: Draw | None = None,
    **settings: Any,
) -> Case:
    build = partial(TARFlow, event_shape, **(SMALL | settings))
    draw_context = labels if settings.get("num_classes") else None
    return Case(name, build, event_shape, token_shape, draw_context, draw_inputs=draw_inputs)


NAMED_FLOWS = [
    _tarflow_case("image", (2, 4, 4), (4, 8), patch_size=2),
    _tarflow_case("image-classes", (1, 4, 6), (6, 4), patch_size=2, num_classes=NUM_CLASSES),
    _tarflow_case("image-starflow", (2, 4, 4), (4, 8), patch_size=2, scale="softplus", norm="rms_norm",
                  positions="rotary", mlp="gated", start_token=True, soft_clip=3.0),
    _tarflow_case("vector", (8,), (4, 2), patch_size=2),
    _tarflow_case("vector-scalars", (6,), (6, 1)),
    _tarflow_case("vector-rotary", (8,), (4, 2), patch_size=2, positions="rotary"),
    _tarflow_case("tokens", (4, 3), (4, 3), patch_size=3),
    _tarflow_case("tokens-classes", (4, 3), (4, 3), patch_size=3, num_classes=NUM_CLASSES),
    _tarflow_case("spline", (8,), (4, 2), patch_size=2, conditional="spline", start_token=True),
    _tarflow_case("spline-image", (2, 4, 4), (4, 8), patch_size=2, conditional="spline", num_classes=NUM_CLASSES),
    _tarflow_case("mixture", (8,), (4, 2), patch_size=2, conditional="mixture"),
    _tarflow_case("angles-and-numbers", (4, 2), (4, 2), lambda batch: angles(batch, 4), patch_size=2,
                  conditional=["circular", "quadratic"], start_token=True),
    _tarflow_case("sinusoidal", (6, 2), (6, 2), patch_size=2, positions="sinusoidal"),
    _tarflow_case("varying-layers", (8,), (4, 2), patch_size=2, num_blocks=3, layers_per_block=[2, 1, 1]),
]  # fmt: skip

COMPOSED_FLOWS = [
    Case("spline-on-top", spline_on_top, (8,), (4, 2)),
    Case("nflows-base", nflows_base, (8,), (4, 2)),
    Case(
        "nflows-conditional-base",
        nflows_conditional_base,
        (4, 2),
        (4, 2),
        lambda batch: 0.3 * torch.randn(batch, 16),
        context_required=True,
    ),
    Case(
        "embedded-context",
        embedded_context,
        (4, 2),
        (4, 2),
        lambda batch: torch.randn(batch, 2),
        context_required=True,
    ),
    Case(
        "fitted-and-permuted",
        fitted_and_permuted,
        (4, 2),
        (4, 2),
        draw_inputs=lambda n: torch.randn(n, 4, 2).exp(),
    ),
]

FLOWS = NAMED_FLOWS + COMPOSED_FLOWS
