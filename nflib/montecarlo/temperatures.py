"""Rules for the inverse temperatures of a path: given ones, or the next by conditional effective sample size."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from nflib.errors import check_object

__all__ = ["AdaptiveTemperatures", "FixedTemperatures", "Temperatures", "as_rule", "conditional_ess_fraction"]


class Temperatures(Protocol):
    """A rule that chooses the next inverse temperature of `smc`.

    A rule may have `keeping(share)`, as `AdaptiveTemperatures` has: where more was drawn than there are particles, the
    first temperature is chosen by the rule that it gives for draws of which that share is kept.
    """

    def next(self, current: float, log_weights: Tensor, log_ratio: Tensor) -> float:
        """The inverse temperature that follows.

        Args:
            current: the present one, in [0, 1).
            log_weights: of the particles, `(N,)`, float64, `-inf` for a weight of zero.
            log_ratio: log p~(x) - log q(x) of the particles, `(N,)`, float64, `-inf` for dead ones.

        Returns:
            A number in (current, 1].
        """
        ...


@dataclass(frozen=True)
class FixedTemperatures:
    """Inverse temperatures that are given beforehand.

    Args:
        inverse_temperatures: rising numbers from above 0 to 1; a leading 0 is allowed.

    Raises:
        ValueError: numbers that do not rise to exactly 1, or none.

    >>> FixedTemperatures([0, 0.1, 1]).inverse_temperatures
    (0.1, 1.0)
    """

    inverse_temperatures: tuple[float, ...]

    def __init__(self, inverse_temperatures: Iterable[float]) -> None:
        values = tuple(float(value) for value in inverse_temperatures)
        values = values[1:] if values[:1] == (0.0,) else values
        rising = all(a < b for a, b in zip((0.0, *values), values, strict=False))
        if not values or not rising or values[-1] != 1.0:
            raise ValueError(f"inverse temperatures must rise from above 0 to exactly 1; got {values}.")
        object.__setattr__(self, "inverse_temperatures", values)

    def next(self, current: float, log_weights: Tensor, log_ratio: Tensor) -> float:
        return next(value for value in self.inverse_temperatures if value > current)


@dataclass(frozen=True)
class AdaptiveTemperatures:
    """Inverse temperatures chosen so that each step keeps a given fraction of the conditional effective sample size.

    (Zhou, Johansen & Aston 2016, arXiv 1303.3123.) They are found by bisection, from particles that are not dead.

    Temperatures chosen from the particles themselves give the normaliser a bias of order 1/N, well below its standard
    error. Where that matters, run once, and again with the temperatures of the first run's history.

    Args:
        conditional_ess: that fraction, between 0 and 1; the nearer to 1, the more temperatures.
        smallest_step: of the inverse temperature, which keeps the number of temperatures finite whatever the energies.

    Raises:
        ValueError: numbers outside (0, 1).
    """

    conditional_ess: float = 0.9
    smallest_step: float = 1e-12

    def __post_init__(self) -> None:
        if not 0.0 < self.conditional_ess < 1.0 or not 0.0 < self.smallest_step < 1.0:
            raise ValueError(
                f"AdaptiveTemperatures: conditional_ess is {self.conditional_ess} and smallest_step "
                f"{self.smallest_step}; pass numbers between 0 and 1."
            )

    def keeping(self, share: float) -> AdaptiveTemperatures:
        """The rule for draws of which a share, up to 1, is kept: they may lose as much as those that are left out."""
        return replace(self, conditional_ess=share * self.conditional_ess)

    def next(self, current: float, log_weights: Tensor, log_ratio: Tensor) -> float:
        used = (log_weights > -torch.inf) & (log_ratio > -torch.inf)
        log_weights, log_ratio = log_weights[used], log_ratio[used]
        rest = 1.0 - current

        def enough(step: float) -> bool:
            return conditional_ess_fraction(log_weights, step * log_ratio) >= self.conditional_ess

        if len(log_weights) == 0 or enough(rest):
            return 1.0
        low, high = 0.0, rest
        while high - low > 1e-3 * high and high > self.smallest_step:
            # From above in powers of ten first: the first step is often many orders of magnitude below one.
            middle = 0.5 * (low + high) if low > 0.0 else 0.1 * high
            low, high = (middle, high) if enough(middle) else (low, middle)
        return min(current + max(low, self.smallest_step), 1.0)


def as_rule(temperatures: Any) -> Temperatures:
    """Inverse temperatures as a rule: adaptive ones by default, and any numbers as they are given.

    Raises ValueError for what is neither, such as how many they are.
    """
    if temperatures is None:
        return AdaptiveTemperatures()
    if isinstance(temperatures, Iterable) and not isinstance(temperatures, str):
        return FixedTemperatures(temperatures)
    check_object("temperatures", temperatures, "AdaptiveTemperatures() or torch.linspace(0, 1, 11)", "next")
    return temperatures  # type: ignore[no-any-return]


def keeping(temperatures: Any, share: float) -> Temperatures:
    """The rule for draws of which a share, up to 1, is kept: what its own `keeping` gives, where it has one."""
    return temperatures.keeping(share) if share < 1.0 and hasattr(temperatures, "keeping") else temperatures


def conditional_ess_fraction(log_weights: Tensor, log_increments: Tensor) -> float:
    """Conditional effective sample size over N, `(sum W w)^2 / sum W w^2`, of increments w for normalised weights W.

    1 where all increments are equal, towards 0 where one particle takes everything; 0 where every product is zero.
    """
    log_w = torch.where(log_weights > -torch.inf, log_weights - torch.logsumexp(log_weights, 0), -torch.inf)
    first = torch.logsumexp(log_w + log_increments, 0)
    second = torch.logsumexp(log_w + 2.0 * log_increments, 0)
    return math.exp((2.0 * first - second).item()) if first > -torch.inf else 0.0
