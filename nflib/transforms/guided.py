"""Classifier-free guidance: the autoregressive map between a conditional and an unconditional one, or beyond."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from nflows.transforms import Transform
from torch import Tensor, nn

from nflib.contexts import as_context, map_context, num_rows, unconditional_rows
from nflib.dtypes import Tables
from nflib.errors import at_least
from nflib.interfaces import Decoder, Inversion
from nflib.transforms.causal_map import AffineAutoregressive
from nflib.transforms.inversion import input_shape, invert, output_shape, uses_context

Parameters = tuple[Tensor, Tensor]


class Guidance(Protocol):
    """How classifier-free guidance combines the conditional and the unconditional branch of an affine map.

    Called with shift and log-scale of each branch, pairs of ``(B, L, C)``, and the number `start` of the first of these
    L tokens; returns the pair to use.

    Attributes:
        attention_temperature: temperature of the attention in the unconditional branch, 1 for none.
    """

    attention_temperature: float

    def __call__(self, conditional: Parameters, unconditional: Parameters, start: int) -> Parameters: ...


class LinearGuidance:
    """Linear extrapolation from the unconditional branch through the conditional (TARFlow, arXiv 2412.06329, sec. 3.4).

    ``p = p_c + weight (p_c - p_u)`` for the parameters p of each token's affine map.

    Args:
        weight: strength, 0 for no guidance.
        guide: the parameters that are guided: "a" the log-scales, "b" the shifts, "ab" both.
        ramp: token t gets ``weight min(t / ramp, 1)``; T - 1 anneals over T tokens (default: the full weight
            everywhere).
        attention_temperature: temperature of the attention in the unconditional branch.

    Raises:
        ValueError: a negative weight, another `guide`, a ramp that is no positive integer, or a temperature that is
            not positive.

    >>> from nflib.flows import TARFlow
    >>> flow = TARFlow(event_shape=(6,), channels=32, num_blocks=2, head_dim=16, num_classes=10)
    >>> x = flow.guided(LinearGuidance(1.5)).sample(5, torch.tensor([3]), seed=0)
    """

    def __init__(
        self, weight: float, guide: str = "ab", *, ramp: int | None = None, attention_temperature: float = 1.0
    ):
        if guide not in ("a", "b", "ab"):
            raise ValueError(f'guide must be "a" (log-scale), "b" (shift) or "ab", got {guide!r}.')
        _check_guidance(weight, attention_temperature)
        self.weight = weight
        self.guide = guide
        self.ramp = None if ramp is None else at_least(1, "ramp", ramp)
        self.attention_temperature = attention_temperature

    def __call__(self, conditional: Parameters, unconditional: Parameters, start: int) -> Parameters:
        shift, log_scale = conditional
        weight: float | Tensor = self.weight
        if self.ramp is not None:
            places = torch.arange(start, start + shift.shape[1], device=shift.device, dtype=shift.dtype)
            weight = self.weight * (places.unsqueeze(-1) / self.ramp).clamp(max=1.0)
        if "b" in self.guide:
            shift = shift + weight * (shift - unconditional[0])
        if "a" in self.guide:
            log_scale = log_scale + weight * (log_scale - unconditional[1])
        return shift, log_scale


class ProductGuidance:
    """The normalised product ``N_c^(1 + w) N_u^(-w)`` of the two branches' Gaussians (STARFlow, arXiv 2506.06276).

    With ``s = min(scale_c / scale_u, 1)^2``: variance ``scale_c^2 / (1 + w - w s)``, mean ``((1 + w) shift_c - w s
    shift_u) / (1 + w - w s)``; the bound keeps the product a Gaussian.

    Args:
        weight: w, the strength, 0 for no guidance.
        attention_temperature: temperature of the attention in the unconditional branch.

    Raises:
        ValueError: a negative weight, or a temperature that is not positive.
    """

    def __init__(self, weight: float, *, attention_temperature: float = 1.0):
        _check_guidance(weight, attention_temperature)
        self.weight = weight
        self.attention_temperature = attention_temperature

    def __call__(self, conditional: Parameters, unconditional: Parameters, start: int) -> Parameters:
        shift, log_scale = conditional
        ratio = self.weight * torch.exp(2 * (log_scale - unconditional[1]).clamp(max=0.0))
        precision = 1 + self.weight - ratio
        shift = ((1 + self.weight) * shift - ratio * unconditional[0]) / precision
        return shift, log_scale - precision.log() / 2


class GuidedAutoregressive(AffineAutoregressive):
    """An affine autoregressive map under classifier-free guidance; `Flow.guided` makes a flow of such maps.

    Its parameters are combined from those of two contexts, computed in one batch. It is an autoregressive map like any
    other, with an exact density of its own, and any decoder inverts it. Its context is the conditional and the
    unconditional one, stacked: ``(B, 2, …)``, or a tuple of such, as `PairedContext` makes them.

    Args:
        transform: the map to guide.
        guidance: how the two branches are combined.

    Raises:
        ValueError: the guidance is not for autoregressive maps (it has no attention_temperature), or the context is not
            such a pair.
    """

    uses_context = True

    def __init__(self, transform: AffineAutoregressive, guidance: Guidance):
        super().__init__()
        if not hasattr(guidance, "attention_temperature"):
            raise ValueError(
                f"an autoregressive map is guided by a Guidance such as LinearGuidance(1.5), got {guidance!r}; numbers "
                "and functions of two velocities guide ODE flows."
            )
        self.transform = transform
        self.guidance = guidance
        self.decoding = transform.decoding

    @property
    def token_size(self) -> int:
        return self.transform.token_size

    def encode_context(self, context: Any) -> Any:
        both = unpaired(context)
        encoded = self.transform.encode_context(both)
        if self.guidance.attention_temperature == 1:
            return encoded
        rows = num_rows(context)
        temperature = torch.ones(2 * rows, 1, 1, 1, device=(both if isinstance(both, Tensor) else both[0]).device)
        temperature[rows:] = self.guidance.attention_temperature
        return encoded._replace(temperature=temperature)

    def new_cache(self, batch_size: int, num_tokens: int, encoded_context: Any) -> Any:
        return self.transform.new_cache(2 * batch_size, num_tokens, encoded_context)

    def conditionals(
        self, tokens: Tensor, encoded_context: Any, cache: Any = None, start: int = 0, stop: int | None = None
    ) -> Parameters:
        both = self.transform.conditionals(torch.cat([tokens, tokens]), encoded_context, cache, start, stop)
        (shift, other_shift), (log_scale, other_log_scale) = (part.chunk(2) for part in both)
        return self.guidance((shift, log_scale), (other_shift, other_log_scale), start)

    def guided(self, guidance: Guidance) -> AffineAutoregressive:
        raise ValueError("this flow is guided already, and there is nothing to guide in it.")


class PairedContext(Tables):
    """Stacks each context with the unconditional one, ``(B, …) -> (B, 2, …)``: the embedding net of a guided flow.

    Args:
        unconditional: of the contexts' shape, one row or one for each; a pair where the contexts are pairs of tokens
            and padding mask.
        embedding: a network that both go through first (default: none).

    Raises:
        ValueError: a context is missing, or has another shape than the unconditional one.
    """

    unconditional: Tensor
    unconditional_mask: Tensor | None

    def __init__(self, unconditional: Any, embedding: nn.Module | None = None):
        super().__init__()
        self.embedding = embedding or nn.Identity()
        context = as_context(unconditional)
        values, mask = context if isinstance(context, tuple) else (context, None)
        self.register_buffer("unconditional", values, persistent=False)
        self.register_buffer("unconditional_mask", mask, persistent=False)

    def forward(self, context: Any) -> Any:
        if context is None:
            raise ValueError("a guided flow samples and evaluates given a context; pass it one.")
        mask = self.unconditional_mask
        encoded = self.embedding(context)
        # Not kept between calls: it is to follow the embedding's weights.
        given = self.unconditional if mask is None else (self.unconditional, mask)
        device = (context if isinstance(context, Tensor) else context[0]).device
        unconditional = self.embedding(map_context(lambda part: part.to(device), given))
        if isinstance(encoded, Tensor) and isinstance(unconditional, Tensor):
            return _stacked(encoded, unconditional)
        if isinstance(encoded, Tensor) or isinstance(unconditional, Tensor):
            raise ValueError("either both the context and the unconditional one have a padding mask, or neither does.")
        return tuple(_stacked(*pair) for pair in zip(encoded, unconditional, strict=True))

    def conditional(self, paired: Any) -> Any:
        """The conditional contexts of what `forward` gave, for the base: noise is not guided."""
        return conditional(paired)


def conditional(paired: Any) -> Any:
    """The conditional contexts of pairs as `PairedContext` makes them."""
    return map_context(lambda part: part[:, 0], paired)


def unpaired(context: Any) -> Any:
    """The conditional contexts and then the unconditional ones, of pairs as `PairedContext` makes them."""
    parts = context if isinstance(context, tuple) else (context,)
    if not parts or any(not isinstance(part, Tensor) or part.dim() < 2 or part.shape[1] != 2 for part in parts):
        raise ValueError("a guided map takes a conditional and an unconditional context, stacked as (batch, 2, …).")
    return map_context(lambda part: torch.cat([part[:, 0], part[:, 1]]), context)


def _stacked(context: Tensor, unconditional: Tensor) -> Tensor:
    return torch.stack([context, unconditional_rows(unconditional, context)], dim=1)


class Unguided(Transform):
    """A map that may read a context, but knows no guidance: of a pair it takes the conditional one, as a base does."""

    def __init__(self, transform: Transform):
        super().__init__()
        self.transform = transform

    def forward(self, inputs: Tensor, context: Any = None) -> tuple[Tensor, Tensor]:
        return self.transform(inputs, conditional(context))  # type: ignore[no-any-return]

    def inverse(self, inputs: Tensor, context: Any = None) -> tuple[Tensor, Tensor]:
        return self.transform.inverse(inputs, conditional(context))  # type: ignore[no-any-return]

    def invert(self, inputs: Tensor, context: Any = None, decoder: Decoder | None = None) -> Inversion:
        return invert(self.transform, inputs, conditional(context), decoder)

    def input_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        return input_shape(self.transform, shape)

    def output_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        return output_shape(self.transform, shape)


def guide(transform: Transform, guidance: Guidance) -> Transform:
    """A copy of the transform, on the same weights, whose maps that use a context are guided.

    Transforms without a method `guided` go on with the conditional context. Raises ValueError where there is no map to
    guide, or one that refuses it.
    """
    shared = {id(tensor): tensor for tensor in (*transform.parameters(), *transform.buffers())}
    copied = copy.deepcopy(transform, shared)
    if not _can_be_guided(copied):
        raise ValueError(
            "no map of this flow that uses a context can be guided (autoregressive maps and velocities can), so there "
            "is nothing to guide."
        )
    return _guided(copied, guidance, {})  # type: ignore[return-value]


def _can_be_guided(module: nn.Module) -> bool:
    """Whether a map in the module is told a context and knows guidance."""
    told = getattr(module, "uses_context", True) is not False
    return told and (hasattr(module, "guided") or any(map(_can_be_guided, module.children())))


def _guided(module: nn.Module, guidance: Guidance, guided: dict[nn.Module, nn.Module]) -> nn.Module:
    """What stands in the place of a module, with guided maps in it; one map in two places stays one."""
    if not _can_be_guided(module):
        return Unguided(module) if isinstance(module, Transform) and uses_context(module) else module
    if module not in guided:
        guided[module] = module
        if hasattr(module, "guided"):
            guided[module] = module.guided(guidance)  # type: ignore[operator]
        else:
            for name, child in module._modules.items():
                if child is not None:
                    setattr(module, name, _guided(child, guidance, guided))
    return guided[module]


def _check_guidance(weight: float, attention_temperature: float) -> None:
    if not weight >= 0:
        raise ValueError(f"a guidance weight must be zero or positive, got {weight!r}.")
    if not attention_temperature > 0:
        raise ValueError(f"attention_temperature must be positive, got {attention_temperature!r}.")
