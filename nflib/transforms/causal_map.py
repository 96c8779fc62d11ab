"""The one map every model here is made of: a map of each token, given the tokens before it."""

from __future__ import annotations

from typing import Any

import torch
from nflows.transforms import Transform
from torch import Tensor

from nflib.decoding.reports import record
from nflib.interfaces import Decoder, Inversion
from nflib.transforms.implicit import with_gradient


class Autoregressive(Transform):
    """A map of tokens u ``(B, T, C)`` whose t-th token is mapped by parameters that the tokens before it give.

    A `nflib.interfaces.CausalMap`: a subclass says how a context is encoded (`encode_context`), which cache a decoder
    needs (`new_cache`), which parameters follow the tokens so far (`conditionals`), and how they map tokens to noise
    and back (`to_noise`, `from_noise`). `forward` is one parallel pass; `invert` solves for u with a decoder, by
    default `decoding`. Raises ValueError for inputs of another shape.
    """

    decoding: Decoder

    @property
    def token_size(self) -> int:
        """How many numbers a token has."""
        raise NotImplementedError

    @property
    def uses_context(self) -> bool:
        """Whether the map depends on a context."""
        raise NotImplementedError

    def encode_context(self, context: Any) -> Any:
        """What the context contributes to every step."""
        raise NotImplementedError

    def new_cache(self, batch_size: int, num_tokens: int, encoded_context: Any) -> Any:
        """An empty cache for decoding `num_tokens` tokens."""
        raise NotImplementedError

    def conditionals(
        self, tokens: Tensor, encoded_context: Any, cache: Any = None, start: int = 0, stop: int | None = None
    ) -> Any:
        """Parameters of the tokens ``start … stop``, as `to_noise` and `from_noise` take them; see `CausalMap`."""
        raise NotImplementedError

    def to_noise(self, tokens: Tensor, conditionals: Any) -> tuple[Tensor, Tensor]:
        """The noise z of tokens, and logabsdet number by number; both ``(B, L, C)``, in float32 or better."""
        raise NotImplementedError

    def from_noise(self, noise: Tensor, conditionals: Any) -> tuple[Tensor, Tensor]:
        """The tokens of noise, and logabsdet number by number: the inverse of `to_noise`."""
        raise NotImplementedError

    def guided(self, guidance: Any) -> Autoregressive:
        """This map under classifier-free guidance, on the same weights. Raises ValueError where there is none."""
        raise ValueError("only affine maps can be guided, but this flow has others that use its context.")

    def forward(self, inputs: Tensor, context: Any = None) -> tuple[Tensor, Tensor]:
        noise, logabsdet = self.by_numbers(inputs, context)
        return noise, logabsdet.flatten(1).sum(-1)

    def by_numbers(self, inputs: Tensor, context: Any = None) -> tuple[Tensor, Tensor]:
        """What `forward` gives, but the logabsdet of each number, ``(B, T, C)``."""
        self._check_shape(inputs)
        return self._to_noise(inputs, self.encode_context(context))

    def _to_noise(self, tokens: Tensor, encoded_context: Any) -> tuple[Tensor, Tensor]:
        return self.to_noise(tokens, self.conditionals(tokens, encoded_context))

    def invert(
        self, inputs: Tensor, context: Any = None, decoder: Decoder | None = None, prefix: Tensor | None = None
    ) -> Inversion:
        """Solve for the tokens, by `decoder` (default: the map's own); prefix: the first of them, where given.

        Where gradients are recorded, the tokens have that of the solution with respect to inputs, parameters and
        context, by implicit differentiation; logabsdet has none.
        """
        self._check_shape(inputs)
        encoded = self.encode_context(context)
        if len(inputs) == 0:  # of which no decoder can measure anything; their gradient is zero
            return Inversion(self._to_noise(inputs, encoded)[0], inputs.new_zeros(0), 0.0)
        with torch.no_grad():
            # A decoder that returns tokens and logabsdet alone does not know its residual.
            inversion = Inversion(*(decoder or self.decoding)(self, inputs, encoded, prefix))
        record(inversion.statistics)
        if not torch.is_grad_enabled() or prefix is not None:
            return inversion
        tokens = with_gradient(inversion.tokens, inputs, lambda u: self._to_noise(u, encoded))
        return inversion._replace(tokens=tokens)

    def inverse(self, inputs: Tensor, context: Any = None) -> tuple[Tensor, Tensor]:
        """What nflows calls: `invert` with the map's own decoder."""
        inversion = self.invert(inputs, context)
        if inversion.residual == 0 and not inversion.tokens.requires_grad:
            return inversion.tokens, inversion.logabsdet
        # Of the tokens returned, whatever the decoder was, and with their gradient.
        return inversion.tokens, -self(inversion.tokens, context)[1]

    def _check_shape(self, inputs: Tensor) -> None:
        if inputs.dim() != 3 or inputs.shape[-1] != self.token_size:
            raise ValueError(f"expected tokens of shape (batch, tokens, {self.token_size}), got {tuple(inputs.shape)}.")


class AffineAutoregressive(Autoregressive):
    """``z_t = (u_t - shift_t(u_<t)) / scale_t(u_<t)``: the parameters are shift and log-scale, each ``(B, L, C)``."""

    def to_noise(self, tokens: Tensor, conditionals: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        shift, log_scale = conditionals
        return (tokens - shift) * torch.exp(-log_scale), -log_scale

    def from_noise(self, noise: Tensor, conditionals: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        shift, log_scale = conditionals
        return shift + noise * torch.exp(log_scale), log_scale
