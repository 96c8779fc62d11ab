"""Maps of a whole token given the tokens before it: number by number alone, or autoregressive inside the token."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nflib.devices import table_device
from nflib.dtypes import Tables
from nflib.transforms.univariate import Univariate


def with_number(tokens: Tensor, number: int, values: Tensor) -> Tensor:
    """Tokens ``(B, L, C)`` whose number of this index is exchanged for the values ``(B, L)``."""
    return torch.cat([tokens[..., :number], values[..., None], tokens[..., number + 1 :]], dim=-1)


class MaskedLinear(nn.Linear):
    """A linear map that a mask ``(out, in)`` cuts connections from."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]
        return nn.functional.linear(x, self.weight * mask.to(self.weight.device), self.bias)


class TokenMap(Tables):
    """Base class of maps of whole tokens, by parameters that a network gives for each token.

    Tokens u and z and the logabsdet of each number are ``(B, L, C)``, parameters ``(B, L, parameters_per_token)``. With
    zero parameters a new map is the identity.

    Attributes:
        univariate: the map of a single number.
        token_size: C, how many numbers a token has.
        parameters_per_token: how many numbers the network gives for each token.
    """

    univariate: Univariate
    token_size: int
    parameters_per_token: int

    @property
    def features_per_token(self) -> int:
        """How many numbers the network reads of each token."""
        return self.token_size * self.univariate.features_per_number

    def features(self, u: Tensor) -> Tensor:
        """What networks read of tokens ``(B, L, C)``: ``(B, L, features_per_token)``, the numbers if all are real."""
        return self.univariate.features(u).flatten(-2)

    def forward(self, u: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Map tokens u to z; returns z and the logabsdet of each number."""
        raise NotImplementedError

    def inverse(self, z: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Map z to tokens u; returns u and the logabsdet of each number."""
        raise NotImplementedError

    def number_parameters(self, u: Tensor, parameters: Tensor) -> Tensor:
        """Of the map of each number, ``(B, L, C, parameters_per_number)``, by the numbers of u before it."""
        raise NotImplementedError


class IndependentTokenMap(TokenMap):
    """Maps each number of a token by itself: numbers of a token are independent, given the earlier tokens.

    Args:
        univariate: maps a number, by parameters that the network gives.
        token_size: how many numbers a token has.

    >>> from nflib.transforms import RationalQuadraticSpline
    >>> token_map = IndependentTokenMap(RationalQuadraticSpline(), token_size=2)
    >>> z, logabsdet = token_map(torch.randn(5, 6, 2), torch.zeros(5, 6, token_map.parameters_per_token))
    """

    def __init__(self, univariate: Univariate, token_size: int):
        super().__init__()
        self.univariate = univariate
        self.token_size = token_size
        self.parameters_per_token = token_size * univariate.parameters_per_number

    def forward(self, u: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        return self.univariate(u, self.number_parameters(u, parameters))

    def inverse(self, z: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        return self.univariate.inverse(z, self.number_parameters(z, parameters))

    def number_parameters(self, u: Tensor, parameters: Tensor) -> Tensor:
        return parameters.unflatten(-1, (-1, self.univariate.parameters_per_number))


class AutoregressiveTokenMap(TokenMap):
    """Maps each number of a token given the earlier tokens and the numbers before it in its own token.

    A masked network (MADE, Germain et al. 2015) reads the token's numbers, strictly causally, and the features
    ``(..., C * units)`` that the transformer computed from the earlier tokens (its "parameters"). Its weights are
    shared by all tokens. `inverse` takes C passes of this small network.

    Args:
        univariate: maps a number, by parameters that the masked network gives.
        token_size: C, how many numbers a token has.
        units: hidden units for each number.
        num_layers: hidden layers.
        dropout: of their outputs, in training.
    """

    mask_in: Tensor
    mask: Tensor

    def __init__(
        self, univariate: Univariate, token_size: int, units: int = 32, num_layers: int = 1, dropout: float = 0.0
    ):
        super().__init__()
        self.univariate = univariate
        self.token_size = token_size
        self.units = units
        self.parameters_per_token = token_size * units
        width = token_size * units
        number = torch.arange(token_size, device=table_device())
        unit, feature = number.repeat_interleave(units), number.repeat_interleave(univariate.features_per_number)
        self.register_buffer("mask_in", (unit[:, None] > feature[None, :]).float(), persistent=False)
        self.register_buffer("mask", (unit[:, None] >= unit[None, :]).float(), persistent=False)
        self.read = MaskedLinear(self.features_per_token, width)
        self.layers = nn.ModuleList(MaskedLinear(width, width) for _ in range(num_layers))
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Parameter(torch.zeros(token_size, units, univariate.parameters_per_number))
        self.bias = nn.Parameter(torch.zeros(token_size, univariate.parameters_per_number))

    def forward(self, u: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        return self.univariate(u, self.number_parameters(u, parameters))

    def inverse(self, z: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        u = torch.zeros_like(z)
        for number in range(self.token_size):
            solved, logabsdet = self.univariate.inverse(z, self.number_parameters(u, parameters))
            u = with_number(u, number, solved[..., number])
        return u, logabsdet

    def number_parameters(self, u: Tensor, parameters: Tensor) -> Tensor:
        hidden = parameters + self.read(self.features(u).to(parameters.dtype), self.mask_in)
        for layer in self.layers:
            hidden = hidden + self.dropout(layer(nn.functional.gelu(hidden), self.mask))
        hidden = nn.functional.gelu(hidden).unflatten(-1, (self.token_size, self.units))
        return torch.einsum("...cm,cmp->...cp", hidden, self.out) + self.bias
