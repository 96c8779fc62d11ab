"""The conditional maps of a token's numbers, by name: one table for every family of flows."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from nflib.networks.transformer import CausalTransformer
from nflib.transforms.autoregressive import AutoregressiveTransform, NetworkMap, TokenwiseAutoregressive
from nflib.transforms.binned import BinnedNormal
from nflib.transforms.mixture import NormalMixture
from nflib.transforms.token_maps import InnerAutoregressive
from nflib.transforms.univariate import QuadraticSpline, RationalQuadraticSpline, Univariate

# Of a number, made of so many pieces, bins or components.
UNIVARIATES: dict[str, Callable[[int], Univariate]] = {
    "spline": RationalQuadraticSpline,
    "quadratic": QuadraticSpline,
    "binned": BinnedNormal,
    "mixture": NormalMixture,
}
CONDITIONALS = ("affine", *UNIVARIATES)


def autoregressive_map(
    conditional: str,
    network: Callable[[int], CausalTransformer],
    token_size: int,
    *,
    num_bins: int = 8,
    units: int = 32,
    dropout: float = 0.0,
    scale: nn.Module | None = None,
) -> NetworkMap:
    """The autoregressive map of tokens by a conditional of this name.

    Args:
        conditional: "affine": the numbers of a token independently of each other, given the tokens before. All others
            map each number given those before it in its own token too: "spline", rational-quadratic; "quadratic", a
            spline of piecewise-linear slope; "binned", piecewise constant in bins of equal probability; "mixture", by
            the distribution function of a mixture of normals.
        network: makes the causal transformer, given how many parameters it has for each token.
        token_size: numbers of a token.
        num_bins: pieces, bins or components of each number's map; units: hidden units that compute it; dropout: of
            their layers.
        scale: of "affine" alone, makes a log-scale of what the network gives.

    Raises:
        ValueError: there is no conditional of this name.
    """
    check_conditional(conditional)
    if conditional == "affine":
        return AutoregressiveTransform(network(2 * token_size), scale)
    token_map = InnerAutoregressive(UNIVARIATES[conditional](num_bins), token_size, units, dropout=dropout)
    return TokenwiseAutoregressive(network(token_map.parameters_per_token), token_map)


def check_conditional(conditional: str) -> None:
    """ValueError for a name that no conditional has."""
    if conditional not in CONDITIONALS:
        raise ValueError(f"conditional must be one of {', '.join(CONDITIONALS)}, got {conditional!r}.")
