"""Figures with their standard errors: by the bootstrap, or by a jackknife over groups of samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nflib.errors import at_least
from nflib.io.documents import finite_or_none

# An error this small beside the value is rounding.
_ROUNDING = 1e-9
# In place of an error that cannot be told.
UNKNOWN = "± ?"


@dataclass(frozen=True)
class Estimate:
    """A value with its standard error.

    Printed, the error has two digits and the value ends at the same place.

    Args:
        value: the estimate.
        error: its standard error: NaN where none was estimated, infinite where none can be given.

    >>> print(Estimate(0.12341, 0.0056))
    0.1234 ± 0.0056
    """

    value: float
    error: float = math.nan

    def __str__(self) -> str:
        """The error to two digits and the value to the same place: 0.1234 ± 0.0056; "± ?" where none can be told."""
        if math.isnan(self.error) or not math.isfinite(self.value):
            return f"{self.value:.4g}"
        if math.isinf(self.error):
            return f"{self.value:.4g} {UNKNOWN}"
        if self.error <= _ROUNDING * abs(self.value):
            return f"{self.value:.4g} ± 0"
        places = 1 - math.floor(math.log10(self.error))
        if places < 0 or abs(self.value) >= 1e6:
            return f"{self.value:.3g} ± {self.error:.2g}"
        return f"{self.value:.{places}f} ± {self.error:.{places}f}"

    def summary(self) -> dict[str, float | None]:
        """The "value" and the "error" for JSON: None for a number that is not finite."""
        return {"value": finite_or_none(self.value), "error": finite_or_none(self.error)}


# Of each sample, a number ``(n,)`` for each row that says what it comes from; None where rows are independent.
Families = Sequence[Tensor | None]


def bootstrap(
    statistic: Callable[..., float],
    *samples: Tensor,
    families: Families | None = None,
    num_resamples: int = 200,
    seed: int = 0,
) -> Estimate:
    """A statistic of samples with a standard error by the bootstrap: its spread over resamples with replacement.

    For what does not mind a sample that counts twice: means, ranks. Pairs of a sample with itself, and nearest
    neighbours, do: see `grouped_jackknife`.

    Args:
        statistic: a function of all the samples that gives a number.
        samples: tensors ``(n, …)``, each of which is resampled by rows, independently of the others.
        families: of each sample None, or ``(n,)`` numbers of what its rows come from, such as the file that clips are
            cut from: rows of one family are resampled together (default: every row is independent).
        num_resamples: how many, two or more.
        seed: of the random numbers.

    Returns:
        The statistic of the samples as they are, without an error (NaN) where a sample has fewer than two families.

    Raises:
        ValueError: num_resamples no integer of two or more.

    >>> import torch
    >>> bootstrap(lambda x: float(x.mean()), torch.arange(100.0)).error > 2  # sqrt((100² - 1) / 12 / 100) is 2.9
    True
    """
    num_resamples = at_least(2, "num_resamples", num_resamples)
    value = float(statistic(*samples))
    of_rows = _families(samples, families)
    counts = [family.bincount() for family in of_rows]
    if min(map(len, counts)) < 2:
        return Estimate(value)
    generator = torch.Generator().manual_seed(seed)
    values = []
    for _ in range(num_resamples):
        drawn = [torch.randint(len(count), (len(count),), generator=generator) for count in counts]
        rows = [_rows_of(*known) for known in zip(drawn, of_rows, counts, strict=True)]
        values.append(statistic(*(sample[row.to(sample.device)] for sample, row in zip(samples, rows, strict=True))))
    return Estimate(value, float(torch.tensor(values, dtype=torch.float64).std()))


def grouped_jackknife(
    statistic: Callable[..., float],
    *samples: Tensor,
    families: Families | None = None,
    paired: bool = False,
    num_groups: int = 10,
    seed: int = 0,
) -> Estimate:
    """A statistic of samples with a standard error by the jackknife: its spread as groups of rows are left out.

    Of each sample in turn, each of its g groups is left out: ``error² = Σ (g - 1) / g Σ_i (s_i - mean s)²``, summed
    over the samples, which are taken as independent (Shao and Wu 1989). For distances of features, where a bootstrap's
    repeated rows would count as neighbours. It is too large rather than too small: of the Fréchet and kernel distances
    of two sets that are alike, up to 1.6 times the spread over repeated draws.

    Args:
        statistic: a function of all the samples that gives a number.
        samples: tensors ``(n, …)``, of which rows are left out.
        families: as for `bootstrap`; a family is in one group.
        paired: rows at one place of all samples belong together, and are left out of all at once.
        num_groups: g, the number of groups, two or more, to which families are assigned at random.
        seed: of that assignment.

    Returns:
        The statistic of the samples as they are, without an error (NaN) where a sample has fewer than two families
        a group.

    Raises:
        ValueError: num_groups no integer of two or more.

    >>> import torch
    >>> round(grouped_jackknife(lambda x: float(x.mean()), torch.arange(100.0), num_groups=50).error)
    3
    """
    num_groups = at_least(2, "num_groups", num_groups)
    value = float(statistic(*samples))
    of_rows = _families(samples, families)
    if min(len(family.bincount()) for family in of_rows) < 2 * num_groups:
        return Estimate(value)
    generator = torch.Generator().manual_seed(seed)
    variance = 0.0
    for cut in [range(len(samples))] if paired else [(place,) for place in range(len(samples))]:
        family = of_rows[cut[0]]
        group = torch.arange(len(family.bincount())) % num_groups
        group = group[torch.randperm(len(group), generator=generator)][family]
        values = []
        for left_out in range(num_groups):
            kept = group != left_out
            values.append(statistic(*(x[kept.to(x.device)] if k in cut else x for k, x in enumerate(samples))))
        variance += (num_groups - 1) * float(torch.tensor(values, dtype=torch.float64).var(correction=0))
    return Estimate(value, math.sqrt(variance))


def _families(samples: Sequence[Tensor], families: Families | None) -> list[Tensor]:
    """Of each sample, the family of each row, numbered from 0."""
    given: Families = [None] * len(samples) if families is None else families
    pairs = zip(samples, given, strict=True)
    return [torch.arange(len(x)) if own is None else own.cpu().unique(return_inverse=True)[1] for x, own in pairs]


def _rows_of(drawn: Tensor, family: Tensor, counts: Tensor) -> Tensor:
    """The rows of the drawn families, one family after the other.

    Args:
        drawn: numbers of families.
        family: of each row.
        counts: of each family, its rows.
    """
    sizes, first = counts[drawn], counts.cumsum(0) - counts
    within = torch.arange(int(sizes.sum())) - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    return family.argsort(stable=True)[first[drawn].repeat_interleave(sizes) + within]
