"""How far from equilibrium a stationary stochastic dynamics is, from samples and a score learnt on them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from scipy.linalg import solve_continuous_lyapunov
from torch import Tensor, nn

from nflib.derivatives import jacobian
from nflib.dtypes import as_tensor
from nflib.errors import at_least
from nflib.events import flattened
from nflib.metrics.estimates import Estimate
from nflib.metrics.samples import double

__all__ = [
    "ImplicitScoreMatching",
    "entropy_production_bound",
    "entropy_production_rate",
    "linear_entropy_production_rate",
]

Field = Callable[[Tensor], Tensor]


@torch.no_grad()
def entropy_production_rate(
    samples: Tensor, drift: Field, score: Field, diffusion: float | Tensor, batch_size: int = 4096
) -> Estimate:
    """The entropy production rate of the stationary state of ``dx = drift dt + sqrt(2 D) dW``, from samples.

    It is ``E[v . D^-1 v]`` with ``v = drift - D score``, the velocity of the probability current, zero at equilibrium
    (Boffi & Vanden-Eijnden 2024, arXiv:2309.12991), for variables that are even under a reversal of time. A score that
    is a little wrong makes the rate a little too large or too small; the error given is only that of the finite number
    of samples.

    Args:
        samples: ``(n, *event_shape)`` of the stationary state, independent of each other.
        drift: a function from states ``(n, *event_shape)`` to their drift, of the same shape.
        score: ``d log p / dx`` of the stationary density, such as `Flow.score` of a flow trained on samples, or a
            network trained by `ImplicitScoreMatching`.
        diffusion: D: a number, one for each of the N numbers of an event, or a positive definite matrix ``(N, N)``.
        batch_size: at most so many samples at once.

    Returns:
        The rate in nats per unit of time, with its standard error.

    Raises:
        ValueError: a diffusion of another shape, or not positive definite; batch_size no integer of 1 or more.

    >>> import torch
    >>> _ = torch.manual_seed(0)
    >>> rate = entropy_production_rate(torch.randn(100, 2), lambda x: x @ torch.tensor([[-1.0, 1], [-1, -1]]),
    ...     lambda x: -x, 1.0)
    >>> abs(rate.value - 2) < 3 * rate.error  # which is E[x^2 + y^2]
    True
    """
    samples = as_tensor(samples)
    size = math.prod(samples.shape[1:])
    matrix = _matrix(diffusion, size).to(samples)
    values = []
    for x in samples.split(at_least(1, "batch_size", batch_size)):
        force = torch.linalg.solve(matrix, drift(x).reshape(-1, size).T).T - score(x).reshape(-1, size)
        values.append(((force @ matrix) * force).sum(1))
    return _mean(torch.cat(values))


def entropy_production_bound(
    samples: Tensor, drift: Field, score: Field, diffusion: float | Tensor, batch_size: int = 4096
) -> Estimate:
    """A lower bound of the entropy production rate, for any score s that was learnt on other samples.

    It is ``E[f . D^-1 f + 2 div f - s . D s - 2 div(D s)]``, f the drift. By parts, ``E[f . true score] = -E[div f]``,
    and likewise of ``D s``: so what is missing is ``E[d . D d]`` of the score's error d, which implicit score matching
    makes small (Hyvärinen 2005). Where d is a gradient, as of a flow's score, `entropy_production_rate` is too large by
    the same: their mean is right in expectation, and half their difference the error. Divergences take a backward pass
    a dimension.

    Args:
        samples: of the stationary state, ``(n, *event_shape)``, independent of each other and of those on which the
            score was learnt.
        drift: f, a differentiable function from states ``(n, *event_shape)`` to the same shape.
        score: s, likewise.
        diffusion: D, as for `entropy_production_rate`.
        batch_size: at most so many samples at once.

    Returns:
        The bound in nats per unit of time, with its standard error.

    Raises:
        ValueError: a diffusion of another shape, or not positive definite; batch_size no integer of 1 or more.

    >>> import torch
    >>> _ = torch.manual_seed(0)
    >>> x, drift = torch.randn(1000, 2), torch.tensor([[-1.0, 1], [-1, -1]])
    >>> bound = entropy_production_bound(x, lambda x: x @ drift, lambda x: -1.5 * x, 1.0)  # of the rate 2
    >>> abs(bound.value - 1.5) < 3 * bound.error
    True
    """
    samples = as_tensor(samples)
    size = math.prod(samples.shape[1:])
    matrix = _matrix(diffusion, size).to(samples)
    values = []
    for x in samples.split(at_least(1, "batch_size", batch_size)):
        (force, force_slope), (s, score_slope) = (jacobian(field, x) for field in (drift, score))
        force, s = force.reshape(-1, size), s.reshape(-1, size)
        squares = (torch.linalg.solve(matrix, force.T).T * force - (s @ matrix) * s).sum(1)
        divergence = force_slope.diagonal(dim1=1, dim2=2).sum(1) - (matrix.T * score_slope).sum((1, 2))
        values.append((squares + 2 * divergence).detach())
    return _mean(torch.cat(values))


def _mean(values: Tensor) -> Estimate:
    values = values.double()
    return Estimate(float(values.mean()), float(values.std()) / math.sqrt(len(values)))


def linear_entropy_production_rate(drift: Tensor, diffusion: float | Tensor) -> float:
    """The entropy production rate of a linear drift, ``dx = A x dt + sqrt(2 D) dW``, in closed form.

    It is ``tr[(A + D S^-1)^T D^-1 (A + D S^-1) S]``, S the covariance of the stationary state.

    Args:
        drift: A, ``(N, N)``, whose eigenvalues have negative real parts.
        diffusion: D, as for `entropy_production_rate`.

    Returns:
        Nats per unit of time.

    Raises:
        ValueError: an A without a stationary state, or a diffusion as there.

    >>> import torch
    >>> round(linear_entropy_production_rate(torch.tensor([[-1.0, 1.0], [-1.0, -1.0]]), 1.0), 6)
    2.0
    """
    a = double(drift).cpu()
    if not bool((torch.linalg.eigvals(a).real < 0).all()):
        raise ValueError("a linear drift has a stationary state only if all its eigenvalues have negative real parts.")
    d = _matrix(diffusion, len(a))
    covariance = torch.as_tensor(solve_continuous_lyapunov(a.numpy(), -2 * d.numpy()))
    current = a + d @ torch.linalg.inv(covariance)
    return float(torch.trace(current.T @ torch.linalg.solve(d, current) @ covariance))


def _matrix(diffusion: float | Tensor, size: int) -> Tensor:
    """D ``(N, N)`` in float64, on the CPU."""
    value = double(diffusion).cpu()
    if value.dim() == 0:
        value = value.expand(size)
    matrix = value if value.shape == (size, size) else torch.diag(value.flatten())
    if matrix.shape != (size, size):
        raise ValueError(f"the diffusion has the shape {tuple(value.shape)}, but an event has {size} numbers.")
    if not torch.equal(matrix, matrix.T) or int(torch.linalg.cholesky_ex(matrix).info) != 0:
        raise ValueError("the diffusion must be symmetric and positive definite.")
    return matrix


@dataclass(frozen=True)
class ImplicitScoreMatching:
    """An objective that fits a network ``s(x)`` to the score of its data: the mean of ``|s|^2 + 2 div s``.

    Its minimum is the score, with the value ``-E|s|^2`` (Hyvärinen 2005). The divergence is exact, one backward pass a
    dimension, so it is meant for few. An objective of `nflib.training.fit`.

    >>> import torch
    >>> net = torch.nn.Linear(2, 2)
    >>> loss, _ = ImplicitScoreMatching()(net, {"inputs": torch.randn(8, 2)}, torch.Generator())
    >>> loss.shape
    torch.Size([])
    """

    keys: ClassVar[tuple[str, ...]] = ("inputs",)

    def __call__(
        self, network: nn.Module, batch: dict[str, Tensor], generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        score, slopes = jacobian(network, batch["inputs"])
        divergence = slopes.diagonal(dim1=1, dim2=2).sum(1)
        loss = (flattened(score).square().sum(1) + 2 * divergence).mean()
        return loss, {"implicit_score_matching": loss.detach()}
