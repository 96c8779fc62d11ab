"""Shares of an ensemble in cells, and errors of their logarithms that cover: weighted, correlated or both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from molecular.analysis.ensembles import WeightedConformations
from molecular.dynamics.autocorrelation import mixing
from nflib.montecarlo import WeightedSamples
from nflib.montecarlo.genealogy import MIN_EFFECTIVE_COUNT
from nflib.montecarlo.weighted_samples import MIN_EFFECTIVE

# With fewer trajectories than that, their blocks are what is taken to be independent.
ENOUGH_TRAJECTORIES = 20
# Length of a block, in autocorrelation times; a mean over it has 95 % of the variance that independence needs.
BLOCK = 20.0


@dataclass(frozen=True)
class CellShares:
    """Shares of an ensemble in C cells.

    Args:
        shares: (C,).
        errors: (C,), standard errors of the logarithms of shares; infinite where none can be told.
        effective_counts: (C,), how many independent conformations each cell is worth.
    """

    shares: NDArray[np.float64]
    errors: NDArray[np.float64]
    effective_counts: NDArray[np.float64]


class Shares:
    """Shares of an ensemble and their errors, from its N weights and from what is independent.

    The error of a log-share, or of the logarithm of a ratio of two, is the delta method's over independent families,
    each of whose deviations is divided by the weight of the others: the jackknife that leaves out one family at a time,
    and for families of equal weight the usual `G / (G - 1)`. Few families of very unequal weight are all the same a
    little too sure: of twelve that are worth six to nine, 55 to 70 % of errors cover.
    Studentised, a log-share has half the skewness of a share, so that half of the factor for skewness in Hall's
    Edgeworth expansion (The Bootstrap and Edgeworth Expansion, 1992; see `nflib.montecarlo.diagnostics`), at one
    standard error `1 + |g| / 4`, makes it cover. A bootstrap over families covers as the delta method alone does,
    a little too seldom.

    Args:
        weights: (N,), which sum to one.
        families: (N,) integers: conformations of one number may be correlated. None: all are independent.
        trusted: whether any error can be told; otherwise all are infinite.
    """

    def __init__(self, weights: Tensor, families: Tensor | None = None, *, trusted: bool = True) -> None:
        self.weights: NDArray[np.float64] = weights.double().numpy()
        count = len(self.weights)
        self.families: NDArray[np.int64] = np.arange(count)
        if families is not None:
            self.families = families.unique(return_inverse=True)[1].numpy()
        self.family_weights = np.bincount(self.families, self.weights)
        self.trusted = trusted

    @property
    def num_families(self) -> int:
        """How many groups of conformations are independent of each other."""
        return len(self.family_weights)

    def of_cells(self, cells: Tensor, num_cells: int) -> CellShares:
        """The share of each cell; cells (N,) are the number of each conformation's, -1 for none."""
        inside = (cells >= 0).numpy()
        cell, weights = cells.numpy()[inside], self.weights[inside]
        shares: NDArray[np.float64] = np.bincount(cell, weights, num_cells).astype(np.float64)
        # What each family has in each cell, where it has something.
        pairs, pair = np.unique(self.families[inside] * num_cells + cell, return_inverse=True)
        family, pair_cell = np.divmod(pairs, num_cells)
        mass = np.bincount(pair, weights, len(pairs))
        squares = np.bincount(pair_cell, mass**2, num_cells)
        effective = np.divide(shares**2, squares, out=np.zeros(num_cells), where=squares > 0)

        def moment(order: int, parts: NDArray, place: NDArray, of: NDArray, total: NDArray) -> NDArray[np.float64]:
            """Sums over all families of `((mass / share - weight) / (1 - weight))^order` with the family's weight; most
            have no mass in the cell."""
            shifted = ((parts / shares[place] - of) / _others(of)) ** order - (-of / _others(of)) ** order
            return np.bincount(place, shifted, num_cells) + ((-total / _others(total)) ** order).sum()

        with np.errstate(divide="ignore", invalid="ignore"):
            second = moment(2, mass, pair_cell, self.family_weights[family], self.family_weights)
            third = moment(3, mass, pair_cell, self.family_weights[family], self.family_weights)
            alone = moment(2, weights, cell, weights, self.weights)
            errors = self._error(second, third, alone)
        errors[(effective <= MIN_EFFECTIVE_COUNT) | (not self.trusted)] = np.inf
        return CellShares(np.asarray(shares, dtype=np.float64), errors, effective)

    def log_ratio(self, first: Tensor, second: Tensor) -> tuple[float, float]:
        """`log(share of first / share of second)` of boolean masks (N,), and its error; infinite where either is worth
        too little."""
        both = [self.of_cells(mask.long() - 1, 1) for mask in (first, second)]
        shares = [float(one.shares[0]) for one in both]
        if not all(shares):
            return (np.inf if shares[0] else -np.inf if shares[1] else np.nan), np.inf
        error = np.inf
        if self.trusted and all((one.effective_counts > MIN_EFFECTIVE_COUNT).all() for one in both):
            one, two = (mask.numpy() / share for mask, share in zip((first, second), shares, strict=True))
            deviations = self.weights * (one - two)
            families = np.bincount(self.families, deviations) / _others(self.family_weights)
            deviations /= _others(self.weights)
            moments = ((families**2).sum(), (families**3).sum(), (deviations**2).sum())
            error = float(self._error(*map(np.asarray, moments)))
        return float(np.log(shares[0] / shares[1])), error

    def _error(self, second: NDArray, third: NDArray, alone: NDArray) -> NDArray[np.float64]:
        """From sums over families of squared and cubed deviations, and of squares over conformations, each divided by
        the weight of the others."""
        families, count = self.num_families, len(self.weights)
        with np.errstate(divide="ignore", invalid="ignore"):
            skewness = np.nan_to_num(np.abs(third) / second**1.5, nan=0.0, posinf=0.0)
            variance = np.maximum(second * (families - 1) / families, alone * (count - 1) / count)
        return np.sqrt(variance) * (1.0 + skewness / 4.0)


def _others(weights: NDArray) -> NDArray[np.float64]:
    """The weight of all others, for each of these; not zero where rounding says so."""
    return np.maximum(1.0 - weights, np.finfo(np.float64).eps)


def shares_of(conformations: WeightedConformations, series: Sequence[Tensor]) -> tuple[Shares, str | None]:
    """The shares of an ensemble, and why no error can be told where that is so, in a sentence.

    Args:
        conformations: the ensemble.
        series: angles (N,), rad, of what is analysed: how long they are correlated says what is independent in few
            trajectories.
    """
    families = independent_families(conformations, series)
    count = len(conformations)
    log_weights = conformations.log_weights
    if log_weights is None:
        log_weights = torch.zeros(count, dtype=torch.float64)
    # The refusal is that of every other estimate from weights.
    resamplings = conformations.resamplings
    samples = WeightedSamples(torch.zeros(count), log_weights, ancestors=families, resamplings=resamplings)
    refusal = samples.refusal
    if refusal and conformations.time is not None and samples.effective_num_ancestors < MIN_EFFECTIVE:
        refusal = (
            f"No error can be told, for the trajectories are worth {samples.effective_num_ancestors:.1f} independent "
            f"parts of {BLOCK:g} autocorrelation times: simulate for longer, or more of them."
        )
    return Shares(conformations.weights(), families, trusted=refusal is None), refusal


def independent_families(conformations: WeightedConformations, series: Sequence[Tensor]) -> Tensor | None:
    """Numbers (N,) of groups of conformations that are independent of each other; None where all are.

    Groups are taken as they are, unless they are few trajectories: these are cut into blocks of 20 autocorrelation
    times of the slowest part of any series, and stay whole where they are too short to tell it. It is that of the long
    ones, half as long as the longest or more; shorter ones stay whole.
    """
    trajectories = conformations.trajectories()
    if trajectories is None or len(trajectories) >= ENOUGH_TRAJECTORIES:
        return conformations.groups
    longest = max(map(len, trajectories))
    long = [index for index in trajectories if 2 * len(index) >= longest]
    length = min(map(len, long))
    # Of equal length, first and last part of each: together they hold every frame, and so every slow change.
    starts = [(index, start) for index in long for start in sorted({0, len(index) - length})]
    parts = torch.stack([index[start : start + length] for index, start in starts])
    found = [mixing(one[parts].numpy()) for one in series]
    slowest = max((one.slowest if one.resolved else np.inf for one in found if one is not None), default=np.inf)
    families = torch.empty(len(conformations), dtype=torch.int64)
    number = 0
    for index in trajectories:
        blocks = max(1, int(len(index) / (BLOCK * slowest))) if 2 * len(index) >= longest else 1
        families[index] = number + torch.arange(len(index)) * blocks // len(index)
        number += blocks
    return families
