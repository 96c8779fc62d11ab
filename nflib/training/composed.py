"""Objectives made of another one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Self

from nflib.interfaces import stated
from nflib.training.objectives import Demands, objective_at

__all__ = ["OfAnother"]


class OfAnother:
    """An objective, a dataclass, with another, `objective`, inside: it asks of `fit` what that one asks."""

    objective: Any

    @property
    def keys(self) -> tuple[str, ...] | None:
        return stated(Demands, self.objective).keys

    @property
    def needs_flow(self) -> Mapping[str, str]:
        return stated(Demands, self.objective).needs_flow

    @property
    def needs_data(self) -> bool:
        return stated(Demands, self.objective).needs_data

    @property
    def whole_batch(self) -> bool:
        return stated(Demands, self.objective).whole_batch

    def at(self, progress: float) -> Self:
        """The objective at a share of the training, as `fit` asks for it."""
        inner = objective_at(self.objective, progress)
        return self if inner is self.objective else replace(self, objective=inner)  # type: ignore[type-var]
