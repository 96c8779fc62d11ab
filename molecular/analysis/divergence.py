"""Jensen-Shannon divergences between weighted histograms."""

from __future__ import annotations

import math

import torch
from torch import Tensor

RAMACHANDRAN_BINS = 36  # of 10 degrees


def jensen_shannon(p: Tensor, q: Tensor) -> float:
    """Jensen-Shannon divergence of two histograms of one shape, not necessarily normalised, in nats: 0 to log 2.

        JS(p, q) = KL(p | m) / 2 + KL(q | m) / 2,  m = (p + q) / 2

    Between counts of n and m samples of one distribution it is not 0 but (K - 1) (1 / n + 1 / m) / 8 on average, with K
    cells that many fall into.

    >>> import torch
    >>> round(jensen_shannon(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 3.0])), 6)  # log 2
    0.693147
    """
    p, q = p.double() / p.double().sum(), q.double() / q.double().sum()
    middle = 0.5 * (p + q)
    divergence = sum((torch.xlogy(r, r) - torch.xlogy(r, middle)).sum().item() for r in (p, q)) / 2
    return min(max(divergence, 0.0), math.log(2))


def angle_bins(angles: Tensor, bins: int = RAMACHANDRAN_BINS) -> Tensor:
    """Cell (...,) of a bins x bins grid over the torus, from (..., 2) angles in radians of any turn."""
    cells = (angles.double() % (2 * math.pi) / (2 * math.pi) * bins).long().clamp_(max=bins - 1)
    return cells[..., 0] * bins + cells[..., 1]


def histogram(cells: Tensor, weights: Tensor, num_cells: int) -> Tensor:
    """Total weight in each cell: cells (N,), weights (N,) -> (num_cells,)."""
    return torch.zeros(num_cells, dtype=torch.float64).index_add_(0, cells, weights)
