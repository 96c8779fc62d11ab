"""The history of a run of sequential Monte Carlo, from proposal to target."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nflib.io.documents import finite_or_none

__all__ = ["History"]


@dataclass
class History:
    """What happened in a run of `smc`: one entry for each inverse temperature above zero, in the order of the run.

    Final moves, at the target alone, have an entry of their own after the last temperature.

    Attributes:
        inverse_temperatures: from above 0 to 1.
        log_normalizer_increments: of reweighting and of unadjusted moves; they sum to the log-normaliser.
        conditional_ess_fraction: conditional effective sample size of the step to this temperature, over N.
        effective_sample_size: after reweighting, before resampling: a count.
        num_particles: how many they were by then, N.
        resampled: whether the particles were resampled.
        num_ancestors: different first draws that the particles descend from, after resampling.
        acceptance: mean acceptance probability of the moves.
        step_sizes: of every move, in one list: as many a temperature as `smc` was asked for.
        num_nonfinite: proposals and moves to points without a finite density.
        num_evaluations: points at which the target was evaluated, up to and including this temperature.
        num_gradients: of these, the points at which its gradient was asked for as well.
        parents: for each resampling, the parents' indices `(N,)`, int32, in order.
    """

    inverse_temperatures: list[float] = field(default_factory=list)
    log_normalizer_increments: list[float] = field(default_factory=list)
    conditional_ess_fraction: list[float] = field(default_factory=list)
    effective_sample_size: list[float] = field(default_factory=list)
    num_particles: list[int] = field(default_factory=list)
    resampled: list[bool] = field(default_factory=list)
    num_ancestors: list[int] = field(default_factory=list)
    acceptance: list[float] = field(default_factory=list)
    step_sizes: list[float] = field(default_factory=list)
    num_nonfinite: list[int] = field(default_factory=list)
    num_evaluations: list[int] = field(default_factory=list)
    num_gradients: list[int] = field(default_factory=list)
    parents: list[Tensor] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.inverse_temperatures)

    @property
    def effective_sample_size_fraction(self) -> list[float]:
        """The effective sample sizes over N."""
        return [size / count for size, count in zip(self.effective_sample_size, self.num_particles, strict=True)]

    def add(self, **entries: Any) -> None:
        """Add what happened at one more temperature: of every attribute one number, but of `step_sizes` and `parents`
        a list."""
        for name, entry in entries.items():
            getattr(self, name).extend(entry if isinstance(entry, list) else [entry])

    def lineage(self) -> Tensor:
        """The ancestors of every final particle, through all resamplings.

        Returns:
            Indices `(number of resamplings + 1, N)`, int64: row k holds the index that each final particle's ancestor
            had after k resamplings; row 0 are the first draws, the last row the final particles. Empty without
            resamplings.
        """
        if not self.parents:
            return torch.empty(0, 0, dtype=torch.long)
        rows = [torch.arange(len(self.parents[-1]))]
        for parents in reversed(self.parents):
            rows.append(parents.long()[rows[-1]])
        return torch.stack(rows[::-1])

    def summary(self) -> dict[str, list[Any]]:
        """The history without the parents as plain numbers for JSON, None for those that are not finite."""
        arrays = self.arrays()
        del arrays["parents"]
        return {name: [finite_or_none(value) for value in values.tolist()] for name, values in arrays.items()}

    @classmethod
    def from_summary(cls, summary: Mapping[str, list[Any]]) -> History:
        """The history that `summary` was called on, without the parents.

        Raises:
            ValueError: columns of other names, or that are not lists of numbers of equal length.
        """
        _check(summary)
        columns: dict[str, Any] = {
            name: [math.nan if value is None else value for value in values] for name, values in summary.items()
        }
        return cls(**columns)

    def arrays(self) -> dict[str, Any]:
        """The history as arrays for an .npz file."""
        values = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        parents = values.pop("parents")
        return {name: np.asarray(value) for name, value in values.items()} | {
            "parents": torch.stack(parents).numpy() if parents else np.zeros((0, 0), dtype=np.int32)
        }

    @classmethod
    def from_arrays(cls, arrays: dict[str, Any]) -> History:
        """The history that `arrays` was called on. Raises ValueError for anything else."""
        values = {name: value.tolist() for name, value in arrays.items() if name != "parents"}
        _check(values)
        history = cls(**values, parents=list(torch.from_numpy(arrays["parents"])))
        indices = arrays["parents"]
        if indices.ndim != 2 or indices.dtype.kind not in "iu" or len(indices) != sum(history.resampled):
            raise ValueError("the history's parents are not those of its resamplings.")
        return history


def _check(columns: Mapping[str, list[Any]]) -> None:
    """Raise ValueError unless these are lists of numbers with the names and lengths of a history, but for parents."""
    names = {item.name for item in dataclasses.fields(History)} - {"parents"}
    if not isinstance(columns, Mapping) or columns.keys() != names:
        raise ValueError(f"a history has {', '.join(sorted(names))}, and nothing else.")
    for name, values in columns.items():
        if not isinstance(values, list) or not all(isinstance(value, (int, float, type(None))) for value in values):
            raise ValueError(f"the history's {name} is no list of numbers.")
        # Of step sizes there may be several a temperature.
        if len(values) != len(columns["inverse_temperatures"]) and name != "step_sizes":
            raise ValueError(f"the history's {name} has {len(values)} entries, unlike its inverse_temperatures.")
