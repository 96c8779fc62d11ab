"""The one map every model here is made of: an affine map of each token, given the tokens before it."""

from __future__ import annotations

from typing import Any

import torch
from nflows.transforms import Transform
from torch import Tensor, nn

from nflib.decoding import Decoder, Sequential, current
from nflib.networks.cache import KeyValueCache
from nflib.networks.transformer import CausalTransformer, Embedded
from nflib.transforms.scales import Exponential


class AffineAutoregressive(Transform):
    """``z_t = (u_t - shift_t(u_<t)) / scale_t(u_<t)`` on tokens ``(B, T, C)``, whatever gives shift and scale.

    A subclass says how a context is embedded (`embed`), which cache a decoder needs (`new_cache`), and which shifts
    and log-scales follow the tokens so far (`extend`). `forward` is one parallel pass; `inverse` solves for u with
    the decoder that `nflib.decoding.using` put in force, else with `decoding`. logabsdet is ``-sum log scale``.
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

    def extend(
        self, previous: Tensor, start: int, cache: KeyValueCache | None, embedded: Embedded
    ) -> tuple[Tensor, Tensor]:
        """Shift and log-scale ``(B, L, C)`` of the tokens ``start … start + L``, in float32 or better.

        previous: the tokens one earlier, ``(B, L, C)``; at start 0, where the first has none before it, ``(B, L - 1,
        C)``. From start 1 on, the cache holds what came before them, and takes in what is new.
        """
        raise NotImplementedError

    def forward(self, inputs: Tensor, context: Any = None) -> tuple[Tensor, Tensor]:
        self._check_shape(inputs)
        shift, log_scale = self.extend(inputs[:, :-1], 0, None, self.embed(context))
        outputs = (inputs - shift) * torch.exp(-log_scale)
        return outputs, -log_scale.flatten(1).sum(-1)

    def inverse(self, inputs: Tensor, context: Any = None) -> tuple[Tensor, Tensor]:
        self._check_shape(inputs)
        return (current() or self.decoding)(self, inputs, context)

    def _check_shape(self, inputs: Tensor) -> None:
        if inputs.dim() != 3 or inputs.shape[-1] != self.token_size:
            raise ValueError(f"expected tokens of shape (batch, tokens, {self.token_size}), got {tuple(inputs.shape)}.")


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
