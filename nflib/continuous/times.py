"""Densities of the times at which a velocity is fitted, and weights of times."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["LogitNormalTimes", "ModeTimes", "Times", "UShapedTimes", "UniformTimes", "cosmap"]


class Times(Protocol):
    """A probability density of times on [0, 1]."""

    def sample(self, num_samples: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw times ``(num_samples,)``.

        Args:
            num_samples: how many.
            generator: of the random numbers, on whose device the times are; None: torch's global one.
        """
        ...


@dataclass(frozen=True)
class UniformTimes:
    """Uniform times on [0, 1]."""

    def sample(self, num_samples: int, generator: torch.Generator | None = None) -> Tensor:
        return torch.rand(num_samples, generator=generator, device=None if generator is None else generator.device)

    def log_prob(self, t: Tensor) -> Tensor:
        return _within(t, torch.zeros_like(t))


@dataclass(frozen=True)
class LogitNormalTimes:
    """Logit-normal times, ``t = sigmoid(u)`` of a normal u: those in the middle more often (Esser et al. 2024).

    Times run from noise to data. For a setting of Stable Diffusion 3's paper (arXiv:2403.03206), whose times run from
    data to noise, the mean changes sign.

    Args:
        mean: of u; a positive one prefers times near the data.
        std: standard deviation of u.

    Raises:
        ValueError: a standard deviation that is not positive.
    """

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        if not self.std > 0:
            raise ValueError(f"LogitNormalTimes: std must be positive, got {self.std!r}.")

    def sample(self, num_samples: int, generator: torch.Generator | None = None) -> Tensor:
        device = None if generator is None else generator.device
        return torch.sigmoid(self.mean + self.std * torch.randn(num_samples, generator=generator, device=device))

    def log_prob(self, t: Tensor) -> Tensor:
        z = (torch.logit(t) - self.mean) / self.std
        density = -0.5 * z.square() - math.log(self.std * math.sqrt(2 * math.pi)) - torch.log(t) - torch.log1p(-t)
        return _within(t, torch.where((t > 0) & (t < 1), density, -torch.inf))


@dataclass(frozen=True)
class ModeTimes:
    """Mode sampling of times: ``t = 1 - u - scale (cos^2(pi u / 2) - 1 + u)`` of a uniform u (Esser et al. 2024).

    Times in the middle come more often, and none is left out (arXiv:2403.03206). The density is the same in both
    directions of time.

    Args:
        scale: how much more often; 0: uniform, negative: the ends more often.

    Raises:
        ValueError: a scale outside -1 … 2 / (pi - 2), where the map of u is not one-to-one.
    """

    scale: float = 1.29

    def __post_init__(self) -> None:
        if not -1 <= self.scale <= 2 / (math.pi - 2):
            raise ValueError(f"ModeTimes: scale must lie in -1 … 2 / (pi - 2) = 1.752, got {self.scale!r}.")

    def sample(self, num_samples: int, generator: torch.Generator | None = None) -> Tensor:
        return self._time(UniformTimes().sample(num_samples, generator)).clamp(0, 1)

    def _time(self, u: Tensor) -> Tensor:
        return 1 - u - self.scale * (torch.cos(0.5 * math.pi * u).square() - 1 + u)


@dataclass(frozen=True)
class UShapedTimes:
    """U-shaped density ``e^(a t) + e^(a (1 - t))`` of times, unnormalised: the ends more often (Lee et al. 2024).

    (arXiv:2405.20320.)

    Args:
        a: how strongly the ends are preferred.

    Raises:
        ValueError: an `a` that is not positive.
    """

    a: float = 4.0

    def __post_init__(self) -> None:
        if not self.a > 0:
            raise ValueError(f"UShapedTimes: a must be positive, got {self.a!r}; use UniformTimes for a = 0.")

    def sample(self, num_samples: int, generator: torch.Generator | None = None) -> Tensor:
        u = 2 * UniformTimes().sample(num_samples, generator) - 1
        t = torch.log1p(u.abs() * math.expm1(self.a)) / self.a
        return torch.where(u > 0, t, 1 - t).clamp(0, 1)

    def log_prob(self, t: Tensor) -> Tensor:
        both = torch.logaddexp(self.a * t, self.a * (1 - t))
        return _within(t, both + math.log(0.5 * self.a / math.expm1(self.a)))


def cosmap(t: Tensor) -> Tensor:
    """The weight ``2 / (pi (1 - 2 t + 2 t^2))`` of times (Esser et al. 2024); the same in both directions of time."""
    return 2 / (math.pi * (1 - 2 * t + 2 * t.square()))


def _within(t: Tensor, log_prob: Tensor) -> Tensor:
    return torch.where((t >= 0) & (t <= 1), log_prob, -torch.inf)
