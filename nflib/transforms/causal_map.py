"""Autoregressive maps, of which every model here is made: each token is mapped given the tokens before it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from nflows.transforms import Transform
from torch import Tensor

from nflib.decoding.reports import record
from nflib.interfaces import BlockReport, Decoder, Inversion
from nflib.transforms.implicit import with_gradient
from nflib.transforms.token_maps import with_number


class NumberMap(NamedTuple):
    """The map of one number of each token, `Autoregressive.number_map`.

    Attributes:
        to_noise: takes numbers ``(B, L)`` to their noise; gives the log-derivative of each, too.
        from_noise: its inverse, without the log-derivative.
    """

    to_noise: Callable[[Tensor], tuple[Tensor, Tensor]]
    from_noise: Callable[[Tensor], Tensor]


class Autoregressive(Transform):
    """Base class of autoregressive maps of tokens u ``(B, T, C)``: each is mapped by parameters from those before it.

    A subclass is a `nflib.interfaces.CausalMap`: it defines how a context is encoded (`encode_context`), which cache a
    decoder needs (`new_cache`), the parameters of a token given those before it (`conditionals`), and how they map
    tokens to noise and back (`to_noise`, `from_noise`). `forward` is one parallel pass; `invert` solves for u with a
    decoder.

    Attributes:
        decoding: the decoder by default, which a subclass sets.

    Raises:
        ValueError: inputs have another shape.
    """

    decoding: Decoder

    @property
    def is_normal(self) -> bool:
        """Whether the noise is to be normal in all numbers, not uniform in some."""
        return True

    @property
    def token_size(self) -> int:
        """How many numbers a token has."""
        raise NotImplementedError

    @property
    def uses_context(self) -> bool:
        """Whether the map depends on a context."""
        raise NotImplementedError

    def encode_context(self, context: Any) -> Any:
        """Encode the context, once, for all calls of `conditionals` that follow."""
        raise NotImplementedError

    def new_cache(self, batch_size: int, num_tokens: int, encoded_context: Any) -> Any:
        """An empty cache for decoding `num_tokens` tokens of `batch_size` samples."""
        raise NotImplementedError

    def conditionals(
        self, tokens: Tensor, encoded_context: Any, cache: Any = None, start: int = 0, stop: int | None = None
    ) -> Any:
        """Parameters of the tokens ``start … stop - 1``, as `to_noise` and `from_noise` take them; see `CausalMap`."""
        raise NotImplementedError

    def to_noise(self, tokens: Tensor, conditionals: Any) -> tuple[Tensor, Tensor]:
        """Map tokens ``(B, L, C)`` to noise z by the parameters that `conditionals` gave.

        Returns:
            The noise, and the logabsdet of each number; both ``(B, L, C)``, in float32 or better.
        """
        raise NotImplementedError

    def from_noise(self, noise: Tensor, conditionals: Any) -> tuple[Tensor, Tensor]:
        """Map noise to tokens, the inverse of `to_noise`; returns the tokens and the logabsdet of each number."""
        raise NotImplementedError

    def number_map(self, number: int, tokens: Tensor, conditionals: Any) -> NumberMap:
        """The map of one number of each token, given those before it.

        Args:
            number: which of the C numbers.
            tokens: ``(B, L, C)``, of which the numbers before this one are read.
            conditionals: parameters of these tokens, as `to_noise` takes them.
        """

        def to_noise(u: Tensor) -> tuple[Tensor, Tensor]:
            noise, logabsdet = self.to_noise(with_number(tokens, number, u), conditionals)
            return noise[..., number], logabsdet[..., number]

        def from_noise(z: Tensor) -> Tensor:
            noise, _ = self.to_noise(tokens, conditionals)
            return self.from_noise(with_number(noise, number, z), conditionals)[0][..., number]

        return NumberMap(to_noise, from_noise)

    def guided(self, guidance: Any) -> Autoregressive:
        """This map under classifier-free guidance, on the same weights; a ValueError for other than affine maps."""
        raise ValueError("only affine maps can be guided, but this flow has others that use its context.")

    def forward(self, inputs: Tensor, context: Any = None) -> tuple[Tensor, Tensor]:
        noise, logabsdet = self.by_numbers(inputs, context)
        return noise, logabsdet.flatten(1).sum(-1)

    def by_numbers(self, inputs: Tensor, context: Any = None) -> tuple[Tensor, Tensor]:
        """`forward`, but with the logabsdet of each number, ``(B, T, C)``, in place of their sum."""
        self._check_shape(inputs)
        return self._to_noise(inputs, self.encode_context(context))

    def _to_noise(self, tokens: Tensor, encoded_context: Any) -> tuple[Tensor, Tensor]:
        return self.to_noise(tokens, self.conditionals(tokens, encoded_context))

    def invert(
        self, inputs: Tensor, context: Any = None, decoder: Decoder | None = None, prefix: Tensor | None = None
    ) -> Inversion:
        """Solve for the tokens that the map takes to `inputs`.

        Where gradients are recorded and no prefix is given, the tokens carry the gradient of the solution with respect
        to inputs, parameters and context, by implicit differentiation; logabsdet has none.

        Args:
            inputs: the noise, ``(B, T, C)``.
            context: as for `forward`.
            decoder: how to solve (default: the map's own, `decoding`).
            prefix: the first tokens ``(B, P, C)``, where they are given; their noise is not read.
        """
        self._check_shape(inputs)
        encoded = self.encode_context(context)
        if len(inputs) == 0:  # of which no decoder can measure anything; their gradient is zero
            return Inversion(self._to_noise(inputs, encoded)[0], inputs.new_zeros(0), 0.0)
        with torch.no_grad():
            # A decoder that returns tokens and logabsdet alone does not know its residual.
            inversion = Inversion.of((decoder or self.decoding)(self, inputs, encoded, prefix))
        # One that does not say what it did is in the report all the same, its residual with it.
        record(inversion.statistics or (BlockReport(inputs.shape[0], inputs.shape[1], (), inversion.residual),))
        if not torch.is_grad_enabled() or prefix is not None:
            return inversion
        tokens = with_gradient(inversion.tokens, inputs, lambda u: self._to_noise(u, encoded))
        return inversion._replace(tokens=tokens)

    def inverse(self, inputs: Tensor, context: Any = None) -> tuple[Tensor, Tensor]:
        """The tokens and their logabsdet ``(B,)``, as nflows has it: `invert` with the map's own decoder."""
        inversion = self.invert(inputs, context)
        if inversion.residual == 0 and not inversion.tokens.requires_grad:
            return inversion.tokens, inversion.logabsdet
        # Of the tokens returned, whatever the decoder was, and with their gradient.
        return inversion.tokens, -self(inversion.tokens, context)[1]

    def _check_shape(self, inputs: Tensor) -> None:
        if inputs.dim() != 3 or inputs.shape[-1] != self.token_size:
            raise ValueError(f"expected tokens of shape (batch, tokens, {self.token_size}), got {tuple(inputs.shape)}.")


class NumberwiseAutoregressive(Autoregressive):
    """Base class of autoregressive maps that are given by `number_map`: `from_noise` finds one number after another."""

    def to_noise(self, tokens: Tensor, conditionals: Any) -> tuple[Tensor, Tensor]:
        mapped = [
            self.number_map(number, tokens, conditionals).to_noise(tokens[..., number])
            for number in range(self.token_size)
        ]
        noise, logabsdet = (torch.stack(outputs, dim=-1) for outputs in zip(*mapped, strict=True))
        return noise, logabsdet

    def from_noise(self, noise: Tensor, conditionals: Any) -> tuple[Tensor, Tensor]:
        tokens, logabsdet = torch.zeros_like(noise), []
        for number in range(self.token_size):
            own = self.number_map(number, tokens, conditionals)
            tokens = with_number(tokens, number, own.from_noise(noise[..., number]))
            logabsdet.append(-own.to_noise(tokens[..., number])[1])
        return tokens, torch.stack(logabsdet, dim=-1)

    def number_map(self, number: int, tokens: Tensor, conditionals: Any) -> NumberMap:
        raise NotImplementedError


class AffineAutoregressive(Autoregressive):
    """Base class of affine autoregressive maps, ``z_t = (u_t - shift_t(u_<t)) / scale_t(u_<t)``.

    The parameters that `conditionals` gives are shift and log-scale, each ``(B, L, C)``.
    """

    def to_noise(self, tokens: Tensor, conditionals: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        shift, log_scale = conditionals
        return (tokens - shift) * torch.exp(-log_scale), -log_scale

    def from_noise(self, noise: Tensor, conditionals: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        shift, log_scale = conditionals
        return shift + noise * torch.exp(log_scale), log_scale
