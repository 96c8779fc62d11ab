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

__all__ = ["TransformedProposal", "TransformedTarget", "score_scales", "transform_back"]

# Of the absolute value of a standard normal number.
MEDIAN_OF_NORMAL = 0.6745

Samples = TypeVar("Samples", bound=WeightedSamples)


class TransformedTarget:
    """The density of `y = transform(x)` where x has the density of `target`: `log p~(x(y)) + log|dx/dy|`.

    The normaliser is that of `target` if the transform reaches all x that `target` holds. Where the transform's
    inverse is not finite the log-density is NaN, and `target` is not asked. Gradients pass through the inverse.

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
    """The proposal's `y = transform(x)`: `log q(x(y)) + log|dx/dy|`, and draws of it."""

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


def score_scales(proposal: Proposal, num_draws: int, generator: torch.Generator) -> Tensor:
    """A length for each coordinate, `event_shape`: over which log q(x) changes by about one at its own draws.

    One over the spread of ``d log q / dx`` (its Fisher information), by the median, which a few strained draws do not
    move. Steps in coordinates divided by these are about equally long for all. Raises ValueError where no draw has a
    finite score.
    """
    proposal = as_evaluated(proposal)
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

    At most `batch_size` samples are transformed at once. Positions of samples without weight may be NaN.
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
