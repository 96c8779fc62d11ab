"""Free-energy profiles and maps along collective variables, and basins, each with an error that covers."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit
from torch import Tensor

from molecular.analysis.observables import CollectiveVariable
from molecular.analysis.shares import Shares
from molecular.molecule.molecule import Molecule
from nflib.metrics import Estimate

KILOJOULES_PER_KILOCALORIE = 4.184
UNITS = ("kJ/mol", "kcal/mol", "kT")
# Of the weight, beyond either end of the axis of a variable that is not periodic: stray conformations set no axis.
BEYOND = 1e-3

Interval = tuple[float | None, float | None]
Condition = Mapping[str, Interval] | Callable[[Tensor], Tensor]


def energy_unit(unit: str, kT: float) -> float:
    """kT, given in kJ/mol, in one of `UNITS`. Raises ValueError for another one."""
    factors = {"kJ/mol": kT, "kcal/mol": kT / KILOJOULES_PER_KILOCALORIE, "kT": 1.0}
    if unit not in factors:
        raise ValueError(f"free energies have no unit {unit!r}; choose one of {', '.join(UNITS)}.")
    return factors[unit]


@dataclass(frozen=True)
class FreeEnergy:
    """A free energy along one variable (a profile) or two (a map): `F = -kT ln p`, p the density in a bin.

    The density is normalised over all conformations, so that each bin's error is its own; a constant that is taken off
    for display changes no error. A difference of two bins has another error: see `Shares.log_ratio`.

    Attributes:
        variables: one or two.
        edges: of each variable's bins, in its unit.
        values: F of each bin, in `unit`, above the lowest bin; inf where no conformation fell.
        lowest: -kT ln p of the lowest bin, p per unit of the variables.
        errors: standard errors of `values + lowest`, in `unit`; inf where none can be told.
        shares: of the ensemble in each bin.
        effective_counts: how many independent conformations each bin is worth.
        unit: one of `UNITS`.
        scale: kT in it.
    """

    variables: tuple[CollectiveVariable, ...]
    edges: tuple[NDArray[np.float64], ...]
    values: NDArray[np.float64]
    lowest: float
    errors: NDArray[np.float64]
    shares: NDArray[np.float64]
    effective_counts: NDArray[np.float64]
    unit: str
    scale: float

    @property
    def name(self) -> str:
        """The variables' names: "phi 1, psi 1"."""
        return ", ".join(variable.name for variable in self.variables)

    @property
    def outside(self) -> float:
        """Share of the ensemble that lies in no bin."""
        return max(0.0, 1.0 - float(self.shares.sum()))

    def write_csv(self, path: Path) -> None:
        """Write a CSV file with a row for each bin: its limits, free energy, error, share and effective count.

        "inf" stands where a bin is empty, or no error can be told.
        """
        header = [f"{variable.name} {end}{_of(variable.unit)}" for variable in self.variables for end in ("from", "to")]
        figures = (self.values, self.errors, self.shares, self.effective_counts)
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            units = [f"free energy{_of(self.unit)}", f"standard error{_of(self.unit)}", "share", "effective count"]
            writer.writerow([*header, *units])
            for index in np.ndindex(self.values.shape):
                limits = [edges[i + end] for edges, i in zip(self.edges, index, strict=True) for end in (0, 1)]
                writer.writerow(f"{number:.7g}" for number in (*limits, *(figure[index] for figure in figures)))


def free_energy(
    shares: Shares,
    variables: Sequence[CollectiveVariable],
    values: Sequence[Tensor],
    edges: Sequence[NDArray[np.float64]],
    kT: float,
    unit: str = "kJ/mol",
) -> FreeEnergy:
    """The free energy along one variable (a profile) or two (a map).

    Args:
        shares: of the N conformations, with what is independent.
        variables: one or two.
        values: of each variable, (N,).
        edges: of each variable's bins.
        kT: kJ/mol.
        unit: of free energies: "kJ/mol", "kcal/mol" or "kT".

    Raises:
        ValueError: an unknown unit.
    """
    shape = tuple(len(one) - 1 for one in edges)
    places, inside = [], torch.ones(len(values[0]), dtype=torch.bool)
    for variable, one, value in zip(variables, edges, values, strict=True):
        x = value.numpy()
        if variable.period is not None:  # into the period that begins where the bins do
            x = x - variable.period * np.floor((x - one[0]) / variable.period)
        # The last bin holds its upper end.
        place = np.minimum(np.searchsorted(one, x, side="right") - 1, len(one) - 2)
        place[x > one[-1]] = -1
        places.append(np.maximum(place, 0))
        inside &= torch.as_tensor(place >= 0)
    cells = torch.as_tensor(np.ravel_multi_index(places, shape)).where(inside, -1)
    found = shares.of_cells(cells, math.prod(shape))
    scale = energy_unit(unit, kT)
    volumes = np.diff(edges[0]) if len(edges) == 1 else np.multiply.outer(np.diff(edges[0]), np.diff(edges[1]))
    with np.errstate(divide="ignore"):
        absolute = -scale * np.log(found.shares.reshape(shape) / volumes)
    finite = absolute[np.isfinite(absolute)]
    lowest = float(finite.min()) if len(finite) else 0.0
    return FreeEnergy(
        variables=tuple(variables),
        edges=tuple(edges),
        values=absolute - lowest,
        lowest=lowest,
        errors=scale * found.errors.reshape(shape),
        shares=found.shares.reshape(shape),
        effective_counts=found.effective_counts.reshape(shape),
        unit=unit,
        scale=scale,
    )


def bin_edges(
    variable: CollectiveVariable, values: Tensor, weights: Tensor, bins: int, limits: tuple[float, float] | None = None
) -> NDArray[np.float64]:
    """Edges (bins + 1,) of equal bins of a variable.

    Args:
        variable: whose period the bins cover by default.
        values: (N,); without a period, bins by default hold all but 0.1 % of their weight at either end.
        weights: (N,), which sum to one.
        bins: how many.
        limits: (low, high) instead.

    Raises:
        ValueError: limits that are not in order, or wider than a period.
    """
    if limits is not None:
        low, high = limits
        period = variable.period or math.inf
        if not (0.0 < high - low < math.inf and high - low <= period):
            most = f", and no more than its period of {period:g}" if variable.period else ""
            raise ValueError(f"limits of {variable.name} are {low:g} and {high:g}; give the lower end first{most}.")
    if limits is None and variable.period is not None:
        limits = (-variable.period / 2, variable.period / 2)
    if limits is None:
        ordered = values.sort()
        below = weights[ordered.indices].cumsum(0)
        ends = torch.searchsorted(below, torch.tensor([BEYOND, 1.0 - BEYOND], dtype=below.dtype))
        low, high = ordered.values[ends.clamp(max=len(values) - 1)].tolist()
        margin = 0.5 * (high - low) / bins or 1e-3 * max(1.0, abs(low))
        limits = (low - margin, high + margin)
    return np.linspace(*limits, bins + 1)


@dataclass(frozen=True)
class Basin:
    """A basin: the conformations for which every variable lies within its interval, or a function is true.

    Attributes:
        name: for tables.
        intervals: variables and (low, high), low included; None is no limit. An interval of a periodic variable goes up
            from low to high, through the end of the period where high is below low: (150, -120) holds 180. With one
            limit alone it ends where the period does, at 180 or -180 degrees.
        function: positions (B, n, 3), nm -> (B,) booleans, in place of intervals.

    Raises:
        ValueError: an interval that holds nothing, or with one limit, beyond the period's ends.
    """

    name: str
    intervals: tuple[tuple[CollectiveVariable, Interval], ...] = ()
    function: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        for variable, (low, high) in self.intervals:
            text = f"basin {self.name!r}: {_interval(variable.name, low, high)}"
            if any(limit is not None and math.isnan(limit) for limit in (low, high)):
                raise ValueError(f"{text} has a limit that is not a number; give one, or None.")
            if low is not None and high is not None:
                width = high - low
                if not width > 0.0 and (variable.period is None or not width % variable.period):
                    raise ValueError(f"{text} holds nothing; give the lower end first.")
            elif variable.period is not None:
                half = variable.period / 2
                if not ((low is None or -half <= low < half) and (high is None or -half < high <= half)):
                    raise ValueError(f"{text} lies beyond {-half:g} to {half:g} {variable.unit}; give both ends.")

    @classmethod
    def of(cls, name: str, condition: str | Condition, molecule: Molecule) -> Basin:
        """A basin from its condition, as `analyse` takes it.

        Args:
            name: for tables.
            condition: {"phi 1": (0, 150), "psi 1": (None, 50)}, the same as text, "0 < phi 1 < 150, psi 1 < 50", or a
                function of positions (B, n, 3), nm. An infinite limit is none.
            molecule: what the variables are of.

        Raises:
            ValueError: a text that cannot be read, an unknown variable, and as the class does.
        """
        if isinstance(condition, str):
            condition = parse_intervals(condition)
        if not isinstance(condition, Mapping):
            return cls(name, function=condition)
        if not condition:
            raise ValueError(f"basin {name!r} has no conditions; give intervals such as {{'phi 1': (0, 150)}}.")
        found = []
        for description, (low, high) in condition.items():
            ends = (None if low == -math.inf else low, None if high == math.inf else high)
            found.append((CollectiveVariable.of(description, molecule), ends))
        return cls(name, tuple(found))

    def __str__(self) -> str:
        """The intervals as `of` reads them: "0 < phi 1 < 150, psi 1 < 50"; "" for a function."""
        return ", ".join(_interval(variable.name, *limits) for variable, limits in self.intervals)

    @torch.no_grad()
    def __call__(self, positions: Tensor) -> Tensor:
        """Which of conformations (N, n, 3), nm, are in it, (N,) booleans."""
        if self.function is not None:
            inside = CollectiveVariable(self.name, self.function)(positions)
            if not ((inside == 0) | (inside == 1)).all():
                raise ValueError(f"basin {self.name!r}: its function must return booleans.")
            return inside == 1
        inside = torch.ones(len(positions), dtype=torch.bool)
        for variable, (low, high) in self.intervals:
            inside &= within(variable, variable(positions), low, high)
        return inside


def within(variable: CollectiveVariable, values: Tensor, low: float | None, high: float | None) -> Tensor:
    """Which values lie in [low, high), taken around the period of a variable that has one; None is no limit."""
    if variable.period is None:
        return (values >= (-math.inf if low is None else low)) & (values < (math.inf if high is None else high))
    half = variable.period / 2
    low, high = -half if low is None else low, half if high is None else high
    if high - low >= variable.period:
        return torch.ones_like(values, dtype=torch.bool)
    return (values - low) % variable.period < (high - low) % variable.period


_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_BETWEEN = re.compile(rf"(?:(?P<low>{_NUMBER})\s*<)?\s*(?P<name>[^<>]+?)\s*(?:<\s*(?P<high>{_NUMBER}))?")
_ABOVE = re.compile(rf"(?P<name>[^<>]+?)\s*>\s*(?P<low>{_NUMBER})")


def parse_intervals(text: str) -> dict[str, Interval]:
    """Read intervals of variables from text; raises ValueError for what cannot be read.

    >>> parse_intervals("0 < phi 1 < 150, psi 1 > -120, rg < 0.4")
    {'phi 1': (0.0, 150.0), 'psi 1': (-120.0, None), 'rg': (None, 0.4)}
    """
    found: dict[str, Interval] = {}
    for part in text.split(","):
        match = _ABOVE.fullmatch(part.strip()) or _BETWEEN.fullmatch(part.strip())
        limits = match.groupdict() if match else {}
        low, high = (float(limits[end]) if limits.get(end) else None for end in ("low", "high"))
        if (low is None and high is None) or limits["name"] in found:
            raise ValueError(
                f"{text!r} cannot be read as intervals; write each variable once, as in '0 < phi 1 < 150, rg < 0.4'."
            )
        found[limits["name"]] = (low, high)
    return found


def population(shares: Shares, inside: Tensor) -> Estimate:
    """The population of a basin, a boolean mask (N,): its share of the ensemble, with its standard error."""
    log_ratio, error = shares.log_ratio(inside, ~inside)
    share = float(expit(log_ratio))
    # With p the share, log(p / (1 - p)) changes by dp / (p (1 - p)).
    return Estimate(share, share * (1.0 - share) * error if math.isfinite(error) else error)


def difference(shares: Shares, first: Tensor, second: Tensor, kT: float, unit: str = "kJ/mol") -> Estimate:
    """Free energy of one basin less that of another, `-kT log(share of first / share of second)`, with its error.

    Args:
        shares: of the N conformations, with what is independent.
        first: boolean mask (N,) of one basin.
        second: boolean mask (N,) of the other.
        kT: kJ/mol.
        unit: "kJ/mol", "kcal/mol" or "kT".

    Raises:
        ValueError: an unknown unit.
    """
    scale = energy_unit(unit, kT)
    log_ratio, error = shares.log_ratio(first, second)
    return Estimate(-scale * log_ratio, scale * error)


def _interval(name: str, low: float | None, high: float | None) -> str:
    if low is not None and high is None:
        return f"{name} > {low:g}"
    return (f"{low:g} < " if low is not None else "") + name + (f" < {high:g}" if high is not None else "")


def _of(unit: str) -> str:
    return f" ({unit})" if unit else ""
