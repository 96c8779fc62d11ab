"""The conditional maps of a token's numbers, by name: one table for every family of flows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from nflib.distributions import NormalsAndAngles, StandardNormal
from nflib.networks.transformer import CausalTransformer
from nflib.transforms.autoregressive import NetworkMap, TokenwiseAutoregressive, TransformerAffineAutoregressive
from nflib.transforms.binned import BinnedNormal
from nflib.transforms.circular import CircularRationalQuadraticSpline
from nflib.transforms.mixture import NormalMixture
from nflib.transforms.token_maps import AutoregressiveTokenMap
from nflib.transforms.univariate import PerNumber, QuadraticSpline, RationalQuadraticSpline, Univariate

# Of a number, made of so many pieces, bins or components.
UNIVARIATES: dict[str, Callable[[int], Univariate]] = {
    "spline": RationalQuadraticSpline,
    "quadratic": QuadraticSpline,
    "binned": BinnedNormal,
    "mixture": NormalMixture,
    "circular": CircularRationalQuadraticSpline,
}
CONDITIONALS = ("affine", *UNIVARIATES)
REAL_CONDITIONALS = tuple(name for name in CONDITIONALS if name != "circular")


def conditional_names(conditional: str | Sequence[str], token_size: int) -> tuple[str, ...]:
    """The conditional of each number of a token, given by one name for all or a name for each.

    Raises ValueError for unknown names, another number of them than the token has, or "affine" beside others.
    """
    names = (conditional,) * token_size if isinstance(conditional, str) else tuple(conditional)
    check_conditional(names)
    if len(names) != token_size or ("affine" in names and len(set(names)) > 1):
        raise ValueError(
            f"conditional must be one name, or a name other than affine for each of the {token_size} numbers of a "
            f"token, got {conditional!r}."
        )
    return names


def check_conditional(conditional: str | Sequence[str], known: Sequence[str] = CONDITIONALS) -> None:
    """ValueError where a name, or one of several, is not among the known ones."""
    for name in (conditional,) if isinstance(conditional, str) else conditional:
        if name not in known:
            raise ValueError(f"conditional must be one of {', '.join(known)}, got {name!r}.")


def autoregressive_map(
    names: Sequence[str],
    network: Callable[[int, int], CausalTransformer],
    *,
    num_bins: int = 8,
    units: int = 32,
    dropout: float = 0.0,
    scale: nn.Module | None = None,
) -> NetworkMap:
    """Make the autoregressive map of tokens whose numbers have conditionals of these names (`conditional_names`).

    Args:
        names: "affine": the numbers of a token independently of each other, given the tokens before. All others map
            each number given those before it in its own token too: "spline", rational-quadratic; "quadratic", a spline
            of piecewise-linear slope; "binned", piecewise constant in bins of equal probability; "mixture", by the
            distribution function of a mixture of normals; "circular", an angle in radians, by a spline of the circle.
        network: makes the causal transformer, given how many features it reads of a token and how many parameters it
            gives for one.
        num_bins: pieces, bins or components of each number's map.
        units: hidden units for each number that compute it.
        dropout: of their layers.
        scale: turns what the network gives into a log-scale; of "affine" alone.
    """
    token_size = len(names)
    if "affine" in names:
        return TransformerAffineAutoregressive(network(token_size, 2 * token_size), scale)
    kinds = {name: UNIVARIATES[name](num_bins) for name in dict.fromkeys(names)}
    univariate = kinds[names[0]] if len(kinds) == 1 else PerNumber([kinds[name] for name in names])
    token_map = AutoregressiveTokenMap(univariate, token_size, units, dropout=dropout)
    return TokenwiseAutoregressive(network(token_map.features_per_token, token_map.parameters_per_token), token_map)


def base_distribution(names: Sequence[str], num_tokens: int) -> StandardNormal:
    """The base of tokens whose numbers have conditionals of these names: normal numbers, and uniform angles."""
    shape = (num_tokens, len(names))
    is_angle = [name == "circular" for name in names]
    return NormalsAndAngles(shape, is_angle) if any(is_angle) else StandardNormal(shape)
