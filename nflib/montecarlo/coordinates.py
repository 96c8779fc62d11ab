"""Densities in other coordinates: where particles move more easily, or where symmetries are gone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TypeVar

import torch
from nflows.transforms import InputOutsideDomain, Transform
from torch import Tensor

from nflib.errors import at_least
from nflib.events import finite_rows, flattened
from nflib.montecarlo.densities import (
    Proposal,
    Target,
    as_evaluated,
    as_target,
    draw,
    log_densities,
    log_prob_where,
    placed,
)
from nflib.montecarlo.weighted_samples import WeightedSamples
from nflib.random import generator_of
from nflib.transforms.domain import rows_inside

__all__ = ["TransformedProposal", "TransformedTarget", "score_scales", "transform_back"]

# Of the absolute value of a standard normal number.
MEDIAN_OF_NORMAL = 0.6745

Samples = TypeVar("Samples", bound=WeightedSamples)


class TransformedTarget:
    """A target in other coordinates: the density `log p~(x(y)) + log|dx/dy|` of `y = transform(x)`.

    The normaliser is that of `target` if the inverse of the transform reaches all x where `target` has density. Where
    there is no finite inverse the log-density is NaN, and `target` is not evaluated. Gradients pass through inverses.

    Args:
        target: has `log_prob(x)`, unnormalised.
        transform: an nflows transform from x to y.

    Raises:
        ValueError: what `as_target` refuses.

    >>> import torch
    >>> from nflows.transforms import AffineScalarTransform
    >>> from nflib.montecarlo import BoltzmannDensity
    >>> target = BoltzmannDensity(lambda x: x.square().sum(dim=-1))
    >>> TransformedTarget(target, AffineScalarTransform(scale=2.0)).log_prob(torch.tensor([[2.0]]))  # -1 - log 2
    tensor([-1.6931])
    """

    def __init__(self, target: Target, transform: Transform) -> None:
        self.target = as_target(target)
        self.transform = transform

    def log_prob(self, inputs: Tensor, /) -> Tensor:
        return _log_prob(self.target, self.transform, inputs, "the target's log_prob")


class TransformedProposal:
    """A proposal in other coordinates: draws `y = transform(x)`, of log-density `log q(x(y)) + log|dx/dy|`.

    Where there is no finite inverse the log-density is NaN, and draws to which the transform does not apply are NaN.

    Args:
        proposal: what `as_proposal` takes, with `log_prob(x)`.
        transform: an nflows transform from x to y.

    Raises:
        ValueError: what `as_proposal` refuses, or a proposal without `log_prob`.
    """

    def __init__(self, proposal: Proposal, transform: Transform) -> None:
        self.proposal = as_evaluated(proposal)
        self.transform = transform

    def log_prob(self, inputs: Tensor, /) -> Tensor:
        return _log_prob(self.proposal, self.transform, inputs, "the proposal's log_prob")

    def sample_and_log_prob(
        self, num_samples: int, *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draws `(num_samples, *event_shape)` and their log-densities."""
        x, log_prob = draw(self.proposal, num_samples, generator)
        y, logabsdet = _where_defined(self.transform, x)
        return y, log_prob - logabsdet


def _log_prob(density: Target, transform: Transform, y: Tensor, name: str) -> Tensor:
    """Log-densities `(n,)` of `y = transform(x)`; NaN, without asking the density, where there is no finite x."""
    x, logabsdet = _where_defined(transform.inverse, y)
    usable = finite_rows(x) & torch.isfinite(logabsdet)
    # By the second term in the graph even if nothing is usable.
    return log_prob_where(density.log_prob, x, usable, name) + torch.where(usable, logabsdet, torch.nan)


def _where_defined(transform: Callable[[Tensor], tuple[Tensor, Tensor]], x: Tensor) -> tuple[Tensor, Tensor]:
    """The transform of events `(n, *event_shape)` and its logabsdet `(n,)`, NaN for events outside its domain."""
    try:
        return transform(x)
    except InputOutsideDomain:
        inside = rows_inside(transform, x)
    if not inside.any():
        return torch.full_like(x, torch.nan), torch.nan * flattened(x).sum(dim=1)  # in the graph
    y, logabsdet = transform(x[inside])
    return placed(y, inside, torch.nan), placed(logabsdet, inside, torch.nan)


def score_scales(
    proposal: Proposal, num_draws: int, *, generator: torch.Generator | None = None, seed: int | None = None
) -> Tensor:
    """Length scales of a proposal, one for each coordinate: over which log q(x) changes by about one at its own draws.

    One over the spread of the score ``d log q / dx``, taken as the median of its absolute value over that of a standard
    normal number, which a few outliers do not move. In coordinates divided by these scales, one step size suits all.

    Args:
        proposal: what `as_proposal` takes, with a `log_prob(x)` that autograd can follow.
        num_draws: draws from which the spread is estimated, one or more.
        generator: of the draws; neither this nor a seed means a seed from torch's global generator.
        seed: of a new generator, in place of one.

    Returns:
        Lengths in units of x, `event_shape`.

    Raises:
        ValueError: the median of a coordinate's scores is zero or not finite, a number out of range, or a proposal
            without `log_prob`.

    >>> import torch
    >>> normal = torch.distributions.MultivariateNormal(torch.zeros(2), torch.tensor([1.0, 81.0]).diag())
    >>> score_scales(normal, 10_000, seed=0).round()
    tensor([1., 9.])
    """
    proposal, generator = as_evaluated(proposal), generator_of(generator, seed)
    num_draws = at_least(1, "num_draws", num_draws)
    with torch.no_grad():
        x, _ = draw(proposal, num_draws, generator)
    x = x[finite_rows(x)]
    with torch.enable_grad():
        x = x.requires_grad_(True)
        log_prob = log_densities(proposal.log_prob, x, "the proposal's log_prob")
        (score,) = torch.autograd.grad(log_prob.sum(), x)
    spread = score.abs().nanmedian(dim=0).values / MEDIAN_OF_NORMAL if len(x) else score.sum(dim=0) + torch.nan
    if not (torch.isfinite(spread) & (spread > 0)).all():
        raise ValueError("score_scales: no draw of the proposal has a score that is finite and not zero everywhere.")
    return 1.0 / spread


@torch.no_grad()
def transform_back(samples: Samples, transform: Transform, batch_size: int = 1024) -> Samples:
    """Samples of `y = transform(x)` as samples of x: the same weights and ancestors, the positions and densities of x.

    Args:
        samples: of y, such as those of `smc` between a `TransformedProposal` and a `TransformedTarget`.
        transform: an nflows transform from x to y.
        batch_size: at most so many samples are transformed at once.

    Returns:
        Samples of the same class; positions of those of weight zero may be NaN.

    Raises:
        ValueError: batch_size no integer of 1 or more.
    """
    batch_size = at_least(1, "batch_size", batch_size)
    if samples.unclipped is not None:  # which are what is saved
        return transform_back(samples.unclipped, transform, batch_size).truncate(samples.clipped)  # type: ignore[return-value]
    device = next((tensor.device for tensor in (*transform.parameters(), *transform.buffers())), samples.x.device)
    pieces = [_where_defined(transform.inverse, part.to(device)) for part in samples.x.split(batch_size)]
    x, logabsdet = (torch.cat(column).to(samples.x.device) for column in zip(*pieces, strict=True))
    changes = {
        name: value - logabsdet for name in ("log_prob", "log_target") if (value := getattr(samples, name)) is not None
    }
    return dataclasses.replace(samples, x=x, **changes)
