"""A target in other coordinates: where particles move more easily, or where symmetries are gone."""

from __future__ import annotations

import dataclasses
from typing import TypeVar

import torch
from nflows.transforms import Transform
from torch import Tensor

from nflib.montecarlo.densities import Target
from nflib.montecarlo.weighted_samples import WeightedSamples

__all__ = ["TransformedTarget", "transform_back"]

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
        self.target = target
        self.transform = transform

    def log_prob(self, inputs: Tensor, /) -> Tensor:
        x, logabsdet = self.transform.inverse(inputs)
        usable = torch.isfinite(x).flatten(1).all(dim=1) & torch.isfinite(logabsdet)
        if usable.all():
            return self.target.log_prob(x) + logabsdet
        values = torch.where(usable, logabsdet, torch.nan)  # in the graph even if nothing is usable
        if not usable.any():
            return values
        found = self.target.log_prob(x[usable]) + logabsdet[usable]
        return values.to(found.dtype).index_put((usable,), found)


@torch.no_grad()
def transform_back(samples: Samples, transform: Transform, batch_size: int = 1024) -> Samples:
    """Samples of `y = transform(x)` as samples of x: the same weights and ancestors, the positions and densities of x.

    At most `batch_size` samples are transformed at once. Positions of samples without weight may be NaN.
    """
    device = next((tensor.device for tensor in (*transform.parameters(), *transform.buffers())), samples.x.device)
    pieces = [transform.inverse(part.to(device)) for part in samples.x.split(batch_size)]
    x, logabsdet = (torch.cat(column).to(samples.x.device) for column in zip(*pieces, strict=True))
    changes = {
        name: value - logabsdet for name in ("log_prob", "log_target") if (value := getattr(samples, name)) is not None
    }
    return dataclasses.replace(samples, x=x, **changes)
