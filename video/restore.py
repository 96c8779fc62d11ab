"""Restoration: what pictures are likely to have been, given a degraded one and a flow of pictures as the prior.

`restore` samples the posterior itself, by sequential Monte Carlo; `restored_mode` finds its mode along the velocity of
a continuous flow, by the variational scheme of FLAIR (Erbach et al. 2025, arXiv:2506.02680).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from nflows.transforms import CompositeTransform, IdentityTransform, PointwiseAffineTransform
from torch import Tensor
from torch.nn import functional

from nflib.continuous import ODEFlow
from nflib.events import per_row
from nflib.montecarlo import (
    SMCSamples,
    TransformedProposal,
    TransformedTarget,
    as_proposal,
    score_scales,
    smc,
    transform_back,
)

__all__ = ["Degradation", "Posterior", "blur", "downsampling", "inpainting", "restore", "restored_mode"]

LAST_TIME = 0.98
NUM_SCALE_DRAWS = 256


@dataclass(frozen=True)
class Degradation:
    """A linear degradation of pictures, ``y = A x + noise``.

    Args:
        operator: A, linear, of pictures ``(B, ..., H, W)``.
        noise: the standard deviation of the normal noise in each number of y.

    Raises:
        ValueError: noise that is not positive.
    """

    operator: Callable[[Tensor], Tensor]
    noise: float

    def __post_init__(self) -> None:
        if not 0 < self.noise < math.inf:
            raise ValueError(f"the noise of a degradation must be a positive number, got {self.noise!r}.")

    def log_prob(self, observed: Tensor, pictures: Tensor) -> Tensor:
        """The log-likelihood of pictures, ``log N(y; A x, noise²)``: ``(B,)``, nats.

        Args:
            observed: y, one degraded picture.
            pictures: x, ``(B, ..., H, W)``.

        Raises:
            ValueError: as `misfit`.
        """
        misfit = (self.misfit(observed, pictures) / self.noise).flatten(1)
        return -0.5 * misfit.square().sum(1) - misfit.shape[1] * math.log(self.noise * math.sqrt(2 * math.pi))

    def misfit(self, observed: Tensor, pictures: Tensor) -> Tensor:
        """The residuals ``y - A x``, one for each picture.

        Args:
            observed: y, one degraded picture.
            pictures: x, ``(B, ..., H, W)``.

        Raises:
            ValueError: y has not the shape of what the operator makes.
        """
        degraded = self.operator(pictures)
        if degraded.shape[1:] != observed.shape:
            raise ValueError(
                f"this degradation makes pictures of shape {tuple(degraded.shape[1:])}, but the one observed has "
                f"{tuple(observed.shape)}."
            )
        return observed - degraded

    def adjoint(self, degraded: Tensor, like: Tensor) -> Tensor:
        """The adjoint of the operator, ``A^T y``.

        Args:
            degraded: y, ``(B, ..., H', W')``.
            like: pictures ``(B, ..., H, W)`` of the shape that the result has.
        """
        with torch.enable_grad():
            pictures = torch.zeros_like(like).requires_grad_()
            return torch.autograd.grad(self.operator(pictures), pictures, degraded)[0]


def inpainting(mask: Tensor, noise: float) -> Degradation:
    """The degradation that hides pixels.

    Args:
        mask: ``(H, W)``, True where a pixel is seen; others are observed as zero.
        noise: standard deviation of the noise in each number.

    >>> y = inpainting(torch.tensor([[True, False]]), 0.1).operator(torch.ones(1, 1, 2))
    >>> y
    tensor([[[1., 0.]]])
    """
    seen = torch.as_tensor(mask).bool()  # of a mask of 0 and 255, too
    return Degradation(lambda pictures: pictures * seen.to(pictures), noise)


def blur(width: float, noise: float) -> Degradation:
    """The degradation that convolves pictures with a Gaussian; beyond their edge they are zero.

    Args:
        width: standard deviation of the Gaussian, in pixels.
        noise: standard deviation of the noise in each number.

    Raises:
        ValueError: a width or noise that is not positive.
    """
    if not 0 < width < math.inf:
        raise ValueError(f"the width of a blur must be a positive number of pixels, got {width!r}.")
    reach = math.ceil(3 * width)
    offsets = torch.arange(-reach, reach + 1, dtype=torch.float64)
    weights = torch.exp(-0.5 * (offsets / width).square())
    kernel = torch.outer(weights, weights) / weights.sum().square()

    def operator(pictures: Tensor) -> Tensor:
        rows = pictures.reshape(-1, 1, *pictures.shape[-2:])
        return functional.conv2d(rows, kernel.to(rows)[None, None], padding=reach).view_as(pictures)

    return Degradation(operator, noise)


def downsampling(factor: int, noise: float) -> Degradation:
    """The degradation that leaves fewer pixels, each the mean of a square of them.

    Args:
        factor: side of the square, in pixels.
        noise: standard deviation of the noise in each number.

    Raises:
        ValueError: a factor or noise that is not positive; when used, pictures whose sides are no multiples of it.

    >>> downsampling(2, 0.1).operator(torch.ones(1, 1, 4, 4)).shape
    torch.Size([1, 1, 2, 2])
    """

    if factor < 1:
        raise ValueError(f"the factor of a downsampling must be a positive number of pixels, got {factor!r}.")

    def operator(pictures: Tensor) -> Tensor:
        height, width = pictures.shape[-2:]
        if height % factor or width % factor:
            raise ValueError(f"pictures of {width} × {height} are no squares of {factor}: crop them, or take another.")
        rows = functional.avg_pool2d(pictures.reshape(-1, 1, *pictures.shape[-2:]), factor)
        return rows.view(*pictures.shape[:-2], *rows.shape[-2:])

    return Degradation(operator, noise)


@dataclass(frozen=True)
class Posterior:
    """The posterior of pictures given a degraded one, unnormalised: ``log q(x) + log N(y; A x, noise²)``.

    Args:
        prior: q, anything with `log_prob(x)`.
        observed: y.
        degradation: A and the noise.
    """

    prior: Any
    observed: Tensor
    degradation: Degradation

    def log_prob(self, inputs: Tensor, /) -> Tensor:
        return self.prior.log_prob(inputs) + self.degradation.log_prob(self.observed, inputs)


def restore(
    prior: Any, observed: Tensor, degradation: Degradation, num_samples: int, *, seed: int = 0, **options: Any
) -> SMCSamples:
    """Sample the posterior of pictures given a degraded one, by sequential Monte Carlo.

    Particles go from the prior q through ``q(x) N(y; A x, noise²)^b`` to b = 1 (`nflib.montecarlo.smc`). Pixels are
    moved by lengths of their own (`score_scales`): those of an empty margin are far narrower than others. Where a flow
    keeps them within bounds (`GaussianizedTARFlow`), what it first maps them to is moved, without bounds.

    Args:
        prior: a flow of pictures, or `Flow.given` a class.
        observed: y, one degraded picture.
        degradation: how it came about.
        num_samples: particles.
        seed: of all randomness.
        options: of `nflib.montecarlo.smc`, such as kernel and moves.

    Returns:
        Weighted pictures ``(num_samples, ...)``, with the history of the run.

    Raises:
        ValueError: as `smc`, or an observed picture of another shape, or that is not finite.
    """
    _check(observed)
    coordinates = getattr(getattr(prior, "flow", prior), "coordinate_transform", IdentityTransform())
    prior, posterior = as_proposal(prior), Posterior(prior, observed, degradation)
    moved = TransformedProposal(prior, coordinates)
    scales = score_scales(moved, NUM_SCALE_DRAWS, seed=seed)
    scale = PointwiseAffineTransform(shift=torch.zeros_like(scales), scale=1 / scales)
    scaled = CompositeTransform([coordinates, scale])
    samples = smc(
        TransformedProposal(prior, scaled), TransformedTarget(posterior, scaled), num_samples, seed=seed, **options
    )
    return transform_back(samples, scaled)


@torch.no_grad()
def restored_mode(
    flow: ODEFlow,
    observed: Tensor,
    degradation: Degradation,
    context: Any = None,
    *,
    num_modes: int = 1,
    times: Sequence[float] | None = None,
    steps: int = 4,
    draws: int = 4,
    renoise: float = 0.0,
    solve_steps: int = 20,
    seed: int = 0,
) -> Tensor:
    """Pictures at modes of the posterior, found by a continuous flow's velocity (FLAIR, arXiv:2506.02680).

    It takes no density and no gradient of the network.

    At each time the picture m takes steps down the prior's variational gradient, the velocity's error at ``x_t = alpha
    x0 + beta m`` about x0, which as t goes to 1 is minus the score at m; and after each the proximal map of the
    likelihood, solved by conjugate gradients. The weight of the gradient is the noise-to-signal ratio ``(alpha /
    beta)²`` of the time, with which a step replaces m by its denoised mean.

    Args:
        flow: a continuous flow of pictures on a one-sided path.
        observed: y, one degraded picture.
        degradation: how it came about.
        context: one row, as the flow takes it.
        num_modes: how many to seek, each from noise of its own.
        times: rising, in (0, 1) (default: 40, up to 0.98); the noise of the last one smooths the prior of the mode.
        steps: of descent at each time; the more, the nearer to the mode.
        draws: of x0 in each gradient, an even number, in pairs of opposite sign.
        renoise: the share of x0 that is predicted from the velocity rather than drawn, in [0, 1).
        solve_steps: of conjugate gradients, at most.
        seed: of the noise.

    Returns:
        ``(num_modes, *event_shape)``.

    Raises:
        ValueError: an odd number of draws, times out of order, a renoise outside [0, 1), no modes or steps, or an
            observed picture of another shape, or that is not finite.
    """
    if draws < 2 or draws % 2 or not 0 <= renoise < 1:
        raise ValueError(f"draws ({draws}) must be even and renoise ({renoise}) in [0, 1).")
    if min(num_modes, steps, solve_steps) < 1:
        raise ValueError(f"num_modes, steps and solve_steps must be positive, got {num_modes}, {steps}, {solve_steps}.")
    times = [LAST_TIME * k / 40 for k in range(1, 41)] if times is None else list(times)
    if not times or any(not 0 < t < 1 for t in times) or sorted(times) != times:
        raise ValueError("times must rise within (0, 1).")
    _check(observed)
    generator = torch.Generator().manual_seed(seed)
    weight = next(flow.parameters(), observed)
    shape = (num_modes, *flow.event_shape)
    mode = torch.zeros(shape).to(weight)
    observed = observed.to(weight)
    predicted = torch.randn(shape, generator=generator).to(weight)
    rows = None if context is None else context.expand(num_modes, *context.shape[1:])
    for time in times:
        t = torch.full((num_modes,), time).to(weight)
        c = flow.path.coefficients(t).like(mode)
        ratio = (c.alpha / c.beta).square()
        for _ in range(steps):
            denoised, noise = torch.zeros_like(mode), torch.zeros_like(mode)
            half = torch.randn((draws // 2, *shape), generator=generator).to(weight)
            for fresh in torch.cat([half, -half]):
                x0 = renoise * predicted + math.sqrt(1 - renoise**2) * fresh
                x = c.alpha * x0 + c.beta * mode
                score = flow.path.score_from_velocity(flow.velocity(x, t, rows), x, t)
                denoised += flow.path.denoised_from_score(score, x, t) / draws
                noise += flow.path.noise_from_score(score, x, t) / draws
            predicted = noise
            mode = _proximal(denoised, observed, degradation, ratio, solve_steps)
    return mode


def _check(observed: Tensor) -> None:
    if not observed.isfinite().all():
        raise ValueError("the picture observed has numbers that are not finite; where nothing is seen, put zero.")


def _proximal(x: Tensor, observed: Tensor, degradation: Degradation, length: Tensor, iterations: int) -> Tensor:
    """The m that minimises ``|y - A m|² / (2 noise²) + |m - x|² / (2 length)``, by conjugate gradients."""
    scale = length / degradation.noise**2

    def matrix(m: Tensor) -> Tensor:
        return m + scale * degradation.adjoint(degradation.operator(m), m)

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return per_row((a * b).flatten(1).sum(1), a)

    residual = scale * degradation.adjoint(degradation.misfit(observed, x), x)
    direction, m, size = residual, x, dot(residual, residual)
    smallest = size.max() * torch.finfo(x.dtype).eps ** 2
    for _ in range(iterations):
        if bool((size <= smallest).all()):
            break
        product = matrix(direction)
        factor = size / dot(direction, product).clamp(min=torch.finfo(x.dtype).tiny)
        m, residual = m + factor * direction, residual - factor * product
        new = dot(residual, residual)
        direction, size = residual + new / size.clamp(min=torch.finfo(x.dtype).tiny) * direction, new
    return m
