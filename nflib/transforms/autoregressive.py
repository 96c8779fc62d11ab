"""The one map every model here is made of: a map of each token, given the tokens before it."""

from __future__ import annotations

from typing import Any

import torch
from nflows.transforms import Transform
from torch import Tensor, nn

from nflib.decoding import Decoder, Sequential, current
from nflib.networks.cache import KeyValueCache
from nflib.networks.transformer import CausalTransformer, Embedded
from nflib.transforms.scales import Exponential
from nflib.transforms.token_maps import TokenMap


class Autoregressive(Transform):
    """A map of tokens u ``(B, T, C)`` whose t-th token is mapped by parameters that the tokens before it give.

    A subclass says how a context is embedded (`embed`), which cache a decoder needs (`new_cache`), which parameters
    follow the tokens so far (`extend`), and how they map tokens to noise and back (`to_noise`, `from_noise`). `forward`
    is one parallel pass; `inverse` solves for u with the decoder that `nflib.decoding.using` put in force, else with
    `decoding`. Raises ValueError for inputs of another shape.
    """

    decoding: Decoder

    @property
    def token_size(self) -> int:
        """How many numbers a token has."""
        raise NotImplementedError

    def embed(self, context: Any) -> Embedded:
        """What the context contributes to every step."""
        raise NotImplementedError

    def new_cache(self, batch_size: int, num_tokens: int, embedded: Embedded) -> KeyValueCache:
        """An empty cache for decoding `num_tokens` tokens."""
        raise NotImplementedError

    def extend(self, previous: Tensor, start: int, cache: KeyValueCache | None, embedded: Embedded) -> Any:
        """Parameters of the tokens ``start … start + L``, as `to_noise` and `from_noise` take them.

        previous: the tokens one earlier, ``(B, L, C)``; at start 0, where the first has none before it, ``(B, L - 1,
        C)``. From start 1 on, the cache holds what came before them, and takes in what is new.
        """
        raise NotImplementedError

    def to_noise(self, u: Tensor, parameters: Any) -> tuple[Tensor, Tensor]:
        """The noise z of tokens, and logabsdet number by number; both ``(B, L, C)``, in float32 or better."""
        raise NotImplementedError

    def from_noise(self, z: Tensor, parameters: Any) -> tuple[Tensor, Tensor]:
        """The tokens u of noise, and logabsdet number by number: the inverse of `to_noise`."""
        raise NotImplementedError

    def forward(self, inputs: Tensor, context: Any = None) -> tuple[Tensor, Tensor]:
        outputs, logabsdet = self.by_numbers(inputs, context)
        return outputs, logabsdet.flatten(1).sum(-1)

    def by_numbers(self, inputs: Tensor, context: Any = None) -> tuple[Tensor, Tensor]:
        """What `forward` gives, but the logabsdet of each number, ``(B, T, C)``."""
        self._check_shape(inputs)
        parameters = self.extend(inputs[:, :-1], 0, None, self.embed(context))
        return self.to_noise(inputs, parameters)

    def inverse(self, inputs: Tensor, context: Any = None) -> tuple[Tensor, Tensor]:
        self._check_shape(inputs)
        return (current() or self.decoding)(self, inputs, context)

    def _check_shape(self, inputs: Tensor) -> None:
        if inputs.dim() != 3 or inputs.shape[-1] != self.token_size:
            raise ValueError(f"expected tokens of shape (batch, tokens, {self.token_size}), got {tuple(inputs.shape)}.")


class AffineAutoregressive(Autoregressive):
    """``z_t = (u_t - shift_t(u_<t)) / scale_t(u_<t)``: the parameters are shift and log-scale, each ``(B, L, C)``."""

    def extend(
        self, previous: Tensor, start: int, cache: KeyValueCache | None, embedded: Embedded
    ) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def to_noise(self, u: Tensor, parameters: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        shift, log_scale = parameters
        return (u - shift) * torch.exp(-log_scale), -log_scale

    def from_noise(self, z: Tensor, parameters: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        shift, log_scale = parameters
        return shift + z * torch.exp(log_scale), log_scale


class AutoregressiveTransform(AffineAutoregressive):
    """`AffineAutoregressive` by a causal transformer (TARFlow, arXiv 2412.06329, eq. 3).

    network: strictly causal, ``(B, T, C) -> (B, T, 2C)``; its output's halves are the raw scale and the shift.
    scale: turns the raw scale into a log-scale. decoding: how `inverse` solves (default: token by token). logabsdet
    is in float32 or better whatever the network computes in. Raises ValueError for inputs of another shape.
    """

    def __init__(self, network: CausalTransformer, scale: nn.Module | None = None, decoding: Decoder | None = None):
        super().__init__()
        self.network = network
        self.scale = scale or Exponential()
        self.decoding = decoding or Sequential()

    @property
    def token_size(self) -> int:
        return self.network.out_channels // 2

    def embed(self, context: Any) -> Embedded:
        return self.network.embed(context)

    def new_cache(self, batch_size: int, num_tokens: int, embedded: Embedded) -> KeyValueCache:
        return self.network.new_cache(batch_size, num_tokens, embedded)

    def extend(
        self, previous: Tensor, start: int, cache: KeyValueCache | None, embedded: Embedded
    ) -> tuple[Tensor, Tensor]:
        parameters = self.network.extend(previous, start, cache, embedded)
        parameters = parameters.to(torch.promote_types(parameters.dtype, torch.float32))
        raw_scale, shift = parameters.chunk(2, dim=-1)
        return shift, self.scale(raw_scale)


class TokenwiseAutoregressive(Autoregressive):
    """`Autoregressive` by a causal transformer and any map of a token, such as a spline in place of an affine one.

    network: strictly causal, ``(B, T, C) -> (B, T, parameters_per_token)``. token_map: of the numbers of a token, by
    those parameters. decoding: how `inverse` solves (default: token by token). Raises ValueError where they do not fit.
    """

    def __init__(self, network: CausalTransformer, token_map: TokenMap, decoding: Decoder | None = None):
        super().__init__()
        if network.out_channels != token_map.parameters_per_token:
            raise ValueError(
                f"the network gives {network.out_channels} parameters a token, but the token map takes "
                f"{token_map.parameters_per_token}."
            )
        self.network = network
        self.token_map = token_map
        self.decoding = decoding or Sequential()

    @property
    def token_size(self) -> int:
        return self.token_map.token_size

    def embed(self, context: Any) -> Embedded:
        return self.network.embed(context)

    def new_cache(self, batch_size: int, num_tokens: int, embedded: Embedded) -> KeyValueCache:
        return self.network.new_cache(batch_size, num_tokens, embedded)

    def extend(
        self, previous: Tensor, start: int, cache: KeyValueCache | None, embedded: Embedded
    ) -> tuple[Tensor, Tensor | None]:
        parameters = self.network.extend(previous, start, cache, embedded)
        if embedded.exists is None:
            return parameters, None
        return parameters, embedded.exists[:, start : start + parameters.shape[1], None]

    def to_noise(self, u: Tensor, parameters: tuple[Tensor, Tensor | None]) -> tuple[Tensor, Tensor]:
        return _at_padding(self.token_map(u, parameters[0]), u, parameters[1])

    def from_noise(self, z: Tensor, parameters: tuple[Tensor, Tensor | None]) -> tuple[Tensor, Tensor]:
        return _at_padding(self.token_map.inverse(z, parameters[0]), z, parameters[1])


def _at_padding(mapped: tuple[Tensor, Tensor], given: Tensor, exists: Tensor | None) -> tuple[Tensor, Tensor]:
    """Tokens and logabsdet as they were mapped, but those of padding as they were given."""
    if exists is None:
        return mapped
    tokens, logabsdet = mapped
    return torch.where(exists, tokens, given.to(tokens.dtype)), torch.where(exists, logabsdet, 0.0)
