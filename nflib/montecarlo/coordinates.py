"""Densities in other coordinates: where particles move more easily, or where symmetries are gone."""

from __future__ import annotations

import dataclasses
from typing import TypeVar

import torch
from nflows.transforms import Transform
from torch import Tensor

from nflib.events import finite_rows
from nflib.montecarlo.densities import Proposal, Target, as_evaluated, as_target
from nflib.montecarlo.weighted_samples import WeightedSamples
from nflib.random import generator_of

__all__ = ["TransformedProposal", "TransformedTarget", "score_scales", "transform_back"]

# Of the absolute value of a standard normal number.
MEDIAN_OF_NORMAL = 0.6745

Samples = TypeVar("Samples", bound=WeightedSamples)


class TransformedTarget:
    """A target in other coordinates: the density `log p~(x(y)) + log|dx/dy|` of `y = transform(x)`.

    The normaliser is that of `target` if the inverse of the transform reaches all x where `target` has density. Where
    the inverse is not finite the log-density is NaN, and `target` is not evaluated. Gradients pass through the inverse.

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
        x, logabsdet = self.transform.inverse(inputs)
        usable = finite_rows(x) & torch.isfinite(logabsdet)
        if usable.all():
            return self.target.log_prob(x) + logabsdet
        values = torch.where(usable, logabsdet, torch.nan)  # in the graph even if nothing is usable
        if not usable.any():
            return values
        found = self.target.log_prob(x[usable]) + logabsdet[usable]
        return values.to(found.dtype).index_put((usable,), found)


class TransformedProposal:
    """A proposal in other coordinates: draws `y = transform(x)`, of log-density `log q(x(y)) + log|dx/dy|`.

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
        x, logabsdet = self.transform.inverse(inputs)
        return self.proposal.log_prob(x) + logabsdet

    def sample_and_log_prob(
        self, num_samples: int, *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draws `(num_samples, *event_shape)` and their log-densities."""
        x, log_prob = self.proposal.sample_and_log_prob(num_samples, generator=generator)
        y, logabsdet = self.transform(x)
        return y, log_prob - logabsdet


def score_scales(
    proposal: Proposal, num_draws: int, *, generator: torch.Generator | None = None, seed: int | None = None
) -> Tensor:
    """Length scales of a proposal, one for each coordinate: over which log q(x) changes by about one at its own draws.

    One over the spread of the score ``d log q / dx``, taken as the median of its absolute value over that of a standard
    normal number, which a few outliers do not move. In coordinates divided by these scales, one step size suits all.

    Args:
        proposal: what `as_proposal` takes, with a `log_prob(x)` that autograd can follow.
        num_draws: draws from which the spread is estimated.
        generator: of the draws; neither this nor a seed means a seed from torch's global generator.
        seed: of a new generator, in place of one.

    Returns:
        Lengths in units of x, `event_shape`.

    Raises:
        ValueError: the median of a coordinate's scores is zero or not finite, or a proposal without `log_prob`.

    >>> import torch
    >>> normal = torch.distributions.MultivariateNormal(torch.zeros(2), torch.tensor([1.0, 81.0]).diag())
    >>> score_scales(normal, 10_000, seed=0).round()
    tensor([1., 9.])
    """
    proposal, generator = as_evaluated(proposal), generator_of(generator, seed)
    with torch.no_grad():
        x, _ = proposal.sample_and_log_prob(num_draws, generator=generator)
    x = x[finite_rows(x)]
    with torch.enable_grad():
        x = x.requires_grad_(True)
        (score,) = torch.autograd.grad(proposal.log_prob(x).sum(), x)
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
    """
    if samples.unclipped is not None:  # which are what is saved
        return transform_back(samples.unclipped, transform, batch_size).truncate(samples.clipped)  # type: ignore[return-value]
    device = next((tensor.device for tensor in (*transform.parameters(), *transform.buffers())), samples.x.device)
    pieces = [transform.inverse(part.to(device)) for part in samples.x.split(batch_size)]
    x, logabsdet = (torch.cat(column).to(samples.x.device) for column in zip(*pieces, strict=True))
    changes = {
        name: value - logabsdet for name in ("log_prob", "log_target") if (value := getattr(samples, name)) is not None
    }
    return dataclasses.replace(samples, x=x, **changes)
