"""Paths from noise to data: the interpolant ``x_t = alpha(t) x0 + beta(t) x1 + gamma(t) z``, t = 0 noise, t = 1 data.

A velocity, a score, a denoiser and a noise predictor are four ways to say the same of such a path; one-sided paths
(x0 standard normal, gamma = 0) convert them into each other (Song et al. 2021, arXiv:2011.13456; Albergo et al. 2023,
arXiv:2303.08797).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from nflib.events import per_row
from nflib.io.arguments import keep_arguments

__all__ = [
    "Coefficients",
    "LinearPath",
    "Path",
    "TrigonometricPath",
    "TwoSidedPath",
    "VarianceExplodingPath",
    "VariancePreservingPath",
]


class Coefficients(NamedTuple):
    """Coefficients of a path ``x_t = alpha x0 + beta x1 + gamma z`` at times t, and their derivatives in t.

    Attributes:
        alpha: of the noise x0; as all others, of the shape of t.
        beta: of the data x1.
        alpha_dot: derivative of alpha.
        beta_dot: derivative of beta.
        gamma: of the latent z.
        gamma_dot: derivative of gamma.
        gamma_gamma_dot: the product of gamma and its derivative, finite where the derivative is not.
    """

    alpha: Tensor
    beta: Tensor
    alpha_dot: Tensor
    beta_dot: Tensor
    gamma: Tensor
    gamma_dot: Tensor
    gamma_gamma_dot: Tensor

    def like(self, x: Tensor) -> Coefficients:
        """The same coefficients in x's dtype, with dimensions of size 1 after the first, so that they multiply x."""
        return Coefficients(*(per_row(c.to(x), x) for c in self))


class Path:
    """A path from noise x0 to data x1: the interpolant ``x_t = alpha(t) x0 + beta(t) x1 + gamma(t) z``.

    The base of all paths; a subclass writes `_coefficients`. Times are tensors ``(B,)`` in [0, 1], or one number for
    all; events have any shape. A velocity ``v = E[d x_t / dt | x_t]``, a score ``s = d log p_t / dx``, a denoiser
    ``E[x1 | x_t]`` and a noise predictor ``E[x0 | x_t]`` are converted into each other, number by number. This holds
    for x0 standard normal and gamma = 0, and raises ValueError for a path with a latent; each conversion is singular
    where alpha, beta or their Wronskian is zero, and then not finite.
    """

    one_sided = True

    def coefficients(self, t: Tensor | float) -> Coefficients:
        """alpha, beta, gamma and their derivatives at times t, ``(B,)`` or a number.

        Raises:
            ValueError: a time outside 0 … 1.
        """
        t = t if isinstance(t, Tensor) else torch.as_tensor(t, dtype=torch.float64)
        check_times(t)
        return self._coefficients(t)

    def _coefficients(self, t: Tensor) -> Coefficients:
        raise NotImplementedError

    def interpolate(self, x0: Tensor, x1: Tensor, t: Tensor | float, z: Tensor | None = None) -> Tensor:
        """The points ``x_t`` between noise and data.

        Args:
            x0: noise, ``(B, *event_shape)``.
            x1: data, of the same shape.
            t: times, ``(B,)`` or a number.
            z: the latent of a path with gamma, standard normal, of the same shape; needed where gamma is not 0.
        """
        return self.pair(x0, x1, t, z)[0]

    def velocity(self, x0: Tensor, x1: Tensor, t: Tensor | float, z: Tensor | None = None) -> Tensor:
        """The velocities ``d x_t / dt`` of pairs of noise and data, to which a velocity field is fitted.

        Args:
            x0: noise, ``(B, *event_shape)``.
            x1: data, of the same shape.
            t: times, ``(B,)`` or a number.
            z: the latent of a path with gamma, standard normal, of the same shape; needed where gamma is not 0.
        """
        return self.pair(x0, x1, t, z)[1]

    def pair(self, x0: Tensor, x1: Tensor, t: Tensor | float, z: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """`interpolate` and `velocity` at once.

        Args:
            x0: noise, ``(B, *event_shape)``.
            x1: data, of the same shape.
            t: times, ``(B,)`` or a number.
            z: the latent of a path with gamma, standard normal, of the same shape; needed where gamma is not 0.

        Returns:
            The points ``x_t`` and their velocities, each of that shape.

        Raises:
            ValueError: a time outside 0 … 1; no z where gamma is not 0.
        """
        c = self.coefficients(t).like(x1)
        x, v = c.alpha * x0 + c.beta * x1, c.alpha_dot * x0 + c.beta_dot * x1
        if z is not None:
            return x + c.gamma * z, v + c.gamma_dot * z
        if not self.one_sided and bool(c.gamma.any()):
            raise ValueError(
                f"{type(self).__name__} has a latent, without which this is another path; pass z, or train an "
                "InterpolantFlow by InterpolantMatching."
            )
        return x, v

    def score_from_velocity(self, v: Tensor, x: Tensor, t: Tensor | float) -> Tensor:
        """The score of a velocity: ``s = (beta v - beta' x) / (alpha (beta' alpha - alpha' beta))``.

        Args:
            v: velocities, ``(B, *event_shape)``.
            x: points of the path, of the same shape.
            t: times, ``(B,)`` or a number.
        """
        c = self._one_sided(t, x)
        return (c.beta * v - c.beta_dot * x) / (c.alpha * (c.beta_dot * c.alpha - c.alpha_dot * c.beta))

    def velocity_from_score(self, s: Tensor, x: Tensor, t: Tensor | float) -> Tensor:
        """The velocity of a score: ``v = (beta' x + alpha (beta' alpha - alpha' beta) s) / beta``.

        Args:
            s: scores, ``(B, *event_shape)``.
            x: points of the path, of the same shape.
            t: times, ``(B,)`` or a number.
        """
        c = self._one_sided(t, x)
        return (c.beta_dot * x + c.alpha * (c.beta_dot * c.alpha - c.alpha_dot * c.beta) * s) / c.beta

    def noise_from_score(self, s: Tensor, x: Tensor, t: Tensor | float) -> Tensor:
        """The noise predicted by a score: ``E[x0 | x_t] = -alpha s``.

        Args:
            s: scores, ``(B, *event_shape)``.
            x: points of the path, of the same shape.
            t: times, ``(B,)`` or a number.
        """
        return -self._one_sided(t, x).alpha * s

    def score_from_noise(self, noise: Tensor, x: Tensor, t: Tensor | float) -> Tensor:
        """The score of predicted noise: ``s = -E[x0 | x_t] / alpha``.

        Args:
            noise: ``E[x0 | x_t]``, ``(B, *event_shape)``.
            x: points of the path, of the same shape.
            t: times, ``(B,)`` or a number.
        """
        return -noise / self._one_sided(t, x).alpha

    def denoised_from_score(self, s: Tensor, x: Tensor, t: Tensor | float) -> Tensor:
        """The denoised data of a score: ``E[x1 | x_t] = (x_t + alpha^2 s) / beta``.

        Args:
            s: scores, ``(B, *event_shape)``.
            x: points of the path, of the same shape.
            t: times, ``(B,)`` or a number.
        """
        c = self._one_sided(t, x)
        return (x + c.alpha.square() * s) / c.beta

    def score_from_denoised(self, denoised: Tensor, x: Tensor, t: Tensor | float) -> Tensor:
        """The score of denoised data: ``s = (beta E[x1 | x_t] - x_t) / alpha^2``.

        Args:
            denoised: ``E[x1 | x_t]``, ``(B, *event_shape)``.
            x: points of the path, of the same shape.
            t: times, ``(B,)`` or a number.
        """
        c = self._one_sided(t, x)
        return (c.beta * denoised - x) / c.alpha.square()

    def velocity_from_denoised(self, denoised: Tensor, x: Tensor, t: Tensor | float) -> Tensor:
        """The velocity of denoised data D: ``v = alpha' (x_t - beta D) / alpha + beta' D``; singular at alpha = 0.

        Args:
            denoised: D, ``E[x1 | x_t]``, ``(B, *event_shape)``.
            x: points of the path, of the same shape.
            t: times, ``(B,)`` or a number.
        """
        c = self._one_sided(t, x)
        return c.alpha_dot * (x - c.beta * denoised) / c.alpha + c.beta_dot * denoised

    def velocity_from_noise(self, noise: Tensor, x: Tensor, t: Tensor | float) -> Tensor:
        """The velocity of predicted noise E: ``v = alpha' E + beta' (x_t - alpha E) / beta``; singular at beta = 0.

        Args:
            noise: E, ``E[x0 | x_t]``, ``(B, *event_shape)``.
            x: points of the path, of the same shape.
            t: times, ``(B,)`` or a number.
        """
        c = self._one_sided(t, x)
        return c.alpha_dot * noise + c.beta_dot * (x - c.alpha * noise) / c.beta

    def _one_sided(self, t: Tensor | float, x: Tensor) -> Coefficients:
        if not self.one_sided:
            raise ValueError(
                f"{type(self).__name__} has a latent or two data ends, so a velocity alone gives no score; learn both."
            )
        return self.coefficients(t).like(x)


def _without_latent(alpha: Tensor, beta: Tensor, alpha_dot: Tensor, beta_dot: Tensor) -> Coefficients:
    zero = torch.zeros_like(alpha)
    return Coefficients(alpha, beta, alpha_dot, beta_dot, zero, zero, zero)


@keep_arguments
@dataclass(frozen=True)
class LinearPath(Path):
    """Straight lines ``x_t = (1 - t) x0 + t x1``: the path of rectified flows and of flow matching.

    Args:
        sigma_min: width that is left of the noise at t = 1, ``(1 - (1 - sigma_min) t) x0 + t x1`` (Lipman et al. 2023).

    Raises:
        ValueError: a sigma_min outside [0, 1).

    >>> import torch
    >>> path = LinearPath()
    >>> path.interpolate(torch.zeros(1, 2), torch.ones(1, 2), torch.tensor([0.25]))
    tensor([[0.2500, 0.2500]])
    """

    sigma_min: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.sigma_min < 1:
            raise ValueError(f"LinearPath: sigma_min must be in [0, 1), got {self.sigma_min!r}.")

    def _coefficients(self, t: Tensor) -> Coefficients:
        one = torch.ones_like(t)
        slope = 1.0 - self.sigma_min
        # Small differences of large numbers would lose the last digits of alpha near t = 1, here and below.
        return _without_latent((1 - t) + self.sigma_min * t, t, -slope * one, one)


@keep_arguments
@dataclass(frozen=True)
class TrigonometricPath(Path):
    """The trigonometric path ``x_t = cos(pi t / 2) x0 + sin(pi t / 2) x1``: of unit variance where the data are."""

    def _coefficients(self, t: Tensor) -> Coefficients:
        sine, cosine = (0.5 * math.pi * t).sin(), (0.5 * math.pi * (1 - t)).sin()
        return _without_latent(cosine, sine, -0.5 * math.pi * sine, 0.5 * math.pi * cosine)


@keep_arguments
@dataclass(frozen=True)
class VariancePreservingPath(Path):
    """The variance-preserving diffusion of linear rate ``beta_min + s (beta_max - beta_min)`` at s = 1 - t.

    ``beta(t) = exp(-s^2 (beta_max - beta_min) / 4 - s beta_min / 2)``, ``alpha = sqrt(1 - beta^2)`` (Song et al. 2021).
    At t = 0 a share beta(0) of the data is left (0.0066 by default), which a standard normal base leaves out. alpha'
    diverges at t = 1.

    Args:
        beta_min: rate at the data, t = 1.
        beta_max: rate at the noise, t = 0.

    Raises:
        ValueError: unless 0 <= beta_min <= beta_max, the latter positive and finite.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        if not (0 <= self.beta_min <= self.beta_max and 0 < self.beta_max < math.inf):
            raise ValueError(
                f"VariancePreservingPath needs 0 <= beta_min <= beta_max, the latter positive, got {self}."
            )

    def _coefficients(self, t: Tensor) -> Coefficients:
        s, slope = 1 - t, self.beta_max - self.beta_min
        log_beta = -0.25 * s.square() * slope - 0.5 * s * self.beta_min
        beta = log_beta.exp()
        alpha = (-torch.expm1(2 * log_beta)).sqrt()
        beta_dot = beta * 0.5 * (s * slope + self.beta_min)
        return _without_latent(alpha, beta, -beta * beta_dot / alpha, beta_dot)


@keep_arguments
@dataclass(frozen=True)
class VarianceExplodingPath(Path):
    """The variance-exploding path ``x_t = x1 + sigma x0`` with ``sigma = sigma_max (sigma_min / sigma_max)^t``.

    Args:
        sigma_min: standard deviation of the noise that is left at t = 1, in the unit of the data.
        sigma_max: standard deviation of the noise at t = 0.

    Raises:
        ValueError: unless 0 < sigma_min < sigma_max, both finite.
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max < math.inf:
            raise ValueError(f"VarianceExplodingPath needs 0 < sigma_min < sigma_max, got {self}.")

    def _coefficients(self, t: Tensor) -> Coefficients:
        rate = math.log(self.sigma_min / self.sigma_max)
        sigma = self.sigma_max * (rate * t).exp()
        return _without_latent(sigma, torch.ones_like(t), rate * sigma, torch.zeros_like(t))


@keep_arguments
@dataclass(frozen=True)
class TwoSidedPath(Path):
    """A stochastic interpolant between any two densities: ``(1 - t) x0 + t x1 + sqrt(a t (1 - t)) z``.

    (Albergo, Boffi & Vanden-Eijnden 2023, arXiv:2303.08797.) Its drift ``b = E[d x_t / dt | x_t]`` and its score
    ``s = -E[z | x_t] / gamma`` are learnt apart; gamma' diverges at both ends, ``gamma gamma' = a (1 - 2 t) / 2`` does
    not.

    Args:
        a: four times the variance that the latent adds at t = 1/2.

    Raises:
        ValueError: an `a` that is not positive and finite.
    """

    a: float = 1.0
    one_sided = False

    def __post_init__(self) -> None:
        if not 0 < self.a < math.inf:
            raise ValueError(f"TwoSidedPath: a must be a positive number, got {self.a!r}.")

    def _coefficients(self, t: Tensor) -> Coefficients:
        one = torch.ones_like(t)
        gamma = (self.a * t * (1 - t)).sqrt()
        product = 0.5 * self.a * (1 - 2 * t)
        return Coefficients(1 - t, t, -one, one, gamma, product / gamma, product)


def times_of(t: Tensor | float, x: Tensor) -> Tensor:
    """Times of the rows of x, ``(B,)`` in its dtype, from these or one for all; raises ValueError outside 0 … 1."""
    times = torch.as_tensor(t, dtype=x.dtype, device=x.device).expand(len(x))
    check_times(times)
    return times


def check_times(t: Tensor) -> None:
    """Raise ValueError unless all times lie in 0 … 1."""
    if not torch.compiler.is_compiling() and not bool(((t >= 0) & (t <= 1)).all()):
        raise ValueError(f"times run from 0 (noise) to 1 (data), got {float(t.min()):.4g} to {float(t.max()):.4g}.")
