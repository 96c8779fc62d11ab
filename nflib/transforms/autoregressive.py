"""Autoregressive maps by one causal transformer: affine, or by any map of a token."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from nflib.decoding import Sequential
from nflib.dtypes import widened
from nflib.interfaces import Decoder
from nflib.networks.cache import KeyValueCache
from nflib.networks.transformer import CausalTransformer, EncodedContext
from nflib.transforms.causal_map import AffineAutoregressive, Autoregressive, NumberMap
from nflib.transforms.guided import Guidance, GuidedAutoregressive
from nflib.transforms.scales import ExponentialScale
from nflib.transforms.token_maps import TokenMap


class NetworkMap(Autoregressive):
    """Base class of autoregressive maps whose parameters come from one causal transformer.

    Args:
        network: strictly causal, ``(B, T, C) -> (B, T, parameters)``.
        decoding: how `inverse` solves (default: token by token).
    """

    def __init__(self, network: CausalTransformer, decoding: Decoder | None = None):
        super().__init__()
        self.network = network
        self.decoding = decoding or Sequential()

    @property
    def uses_context(self) -> bool:
        return self.network.uses_context

    def encode_context(self, context: Any) -> EncodedContext:
        return self.network.encode_context(context)

    def new_cache(self, batch_size: int, num_tokens: int, encoded_context: EncodedContext) -> KeyValueCache:
        return self.network.new_cache(batch_size, num_tokens, encoded_context)


class TransformerAffineAutoregressive(NetworkMap, AffineAutoregressive):
    """Affine autoregressive map by a causal transformer (TARFlow, arXiv 2412.06329, eq. 3).

    ``z_t = (u_t - shift_t(u_<t)) / scale_t(u_<t)`` for tokens u ``(B, T, C)``. The logabsdet ``(B,)`` is in float32 or
    better whatever the network computes in.

    Args:
        network: strictly causal, ``(B, T, C) -> (B, T, 2C)``; its output's halves are the raw scale and the shift.
        scale: turns the raw scale into a log-scale (default: `ExponentialScale`).
        decoding: how `inverse` solves (default: token by token).

    Raises:
        ValueError: inputs have another shape.

    >>> from nflib.networks import transformer_layers
    >>> network = CausalTransformer(2, 4, 32, transformer_layers(1, 32, head_dim=16))
    >>> z, logabsdet = TransformerAffineAutoregressive(network)(torch.randn(5, 6, 2))
    >>> z.shape, logabsdet.shape
    (torch.Size([5, 6, 2]), torch.Size([5]))
    """

    def __init__(self, network: CausalTransformer, scale: nn.Module | None = None, decoding: Decoder | None = None):
        super().__init__(network, decoding)
        self.scale = scale or ExponentialScale()

    @property
    def token_size(self) -> int:
        return self.network.out_channels // 2

    def conditionals(
        self,
        tokens: Tensor,
        encoded_context: EncodedContext,
        cache: KeyValueCache | None = None,
        start: int = 0,
        stop: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        parameters = self.network(tokens, encoded_context, cache, start, stop)
        parameters = widened(parameters)
        raw_scale, shift = parameters.chunk(2, dim=-1)
        return shift, self.scale(raw_scale)

    def guided(self, guidance: Guidance) -> GuidedAutoregressive:
        return GuidedAutoregressive(self, guidance)


class TokenwiseAutoregressive(NetworkMap):
    """Autoregressive map by a causal transformer and any map of a token, such as a spline instead of an affine one.

    Args:
        network: strictly causal, ``(B, T, features_per_token) -> (B, T, parameters_per_token)``; the features are the C
            numbers of a token themselves where all are real.
        token_map: maps the numbers of a token by those parameters.
        decoding: how `inverse` solves (default: token by token).

    Raises:
        ValueError: the network does not give as many parameters as the token map takes, or inputs have another shape.

    >>> from nflib.networks import transformer_layers
    >>> from nflib.transforms import IndependentTokenMap, RationalQuadraticSpline
    >>> token_map = IndependentTokenMap(RationalQuadraticSpline(), token_size=2)
    >>> network = CausalTransformer(2, token_map.parameters_per_token, 32, transformer_layers(1, 32, head_dim=16))
    >>> z, logabsdet = TokenwiseAutoregressive(network, token_map)(torch.randn(5, 6, 2))
    """

    def __init__(self, network: CausalTransformer, token_map: TokenMap, decoding: Decoder | None = None):
        super().__init__(network, decoding)
        if network.out_channels != token_map.parameters_per_token:
            raise ValueError(
                f"the network gives {network.out_channels} parameters a token, but the token map takes "
                f"{token_map.parameters_per_token}."
            )
        self.token_map = token_map

    @property
    def is_normal(self) -> bool:
        return self.token_map.univariate.is_normal

    @property
    def token_size(self) -> int:
        return self.token_map.token_size

    def conditionals(
        self,
        tokens: Tensor,
        encoded_context: EncodedContext,
        cache: KeyValueCache | None = None,
        start: int = 0,
        stop: int | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        parameters = self.network(self.token_map.features(tokens), encoded_context, cache, start, stop)
        mask = encoded_context.token_mask
        return parameters, None if mask is None else mask[:, start : start + parameters.shape[1], None]

    def to_noise(self, tokens: Tensor, conditionals: tuple[Tensor, Tensor | None]) -> tuple[Tensor, Tensor]:
        return _at_padding(self.token_map(tokens, conditionals[0]), tokens, conditionals[1])

    def from_noise(self, noise: Tensor, conditionals: tuple[Tensor, Tensor | None]) -> tuple[Tensor, Tensor]:
        return _at_padding(self.token_map.inverse(noise, conditionals[0]), noise, conditionals[1])

    def number_map(self, number: int, tokens: Tensor, conditionals: tuple[Tensor, Tensor | None]) -> NumberMap:
        parameters, mask = conditionals
        univariate = self.token_map.univariate.of_number(number)
        raw = self.token_map.number_parameters(tokens, parameters)[..., number, : univariate.parameters_per_number]
        mask = None if mask is None else mask[..., 0]

        def to_noise(u: Tensor) -> tuple[Tensor, Tensor]:
            return _at_padding(univariate(u, raw), u, mask)

        def from_noise(z: Tensor) -> Tensor:
            return _at_padding(univariate.inverse(z, raw), z, mask)[0]

        return NumberMap(to_noise, from_noise)


def _at_padding(mapped: tuple[Tensor, Tensor], given: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Tokens and logabsdet as they were mapped, but those of padding as they were given."""
    if mask is None:
        return mapped
    tokens, logabsdet = mapped
    return torch.where(mask, tokens, given.to(tokens.dtype)), torch.where(mask, logabsdet, 0.0)
