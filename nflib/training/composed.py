"""Objectives made of another one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Self

__all__ = ["OfAnother"]


class OfAnother:
    """An objective, a dataclass, with another, `objective`, inside: it asks of `fit` what that one asks."""

    objective: Any

    @property
    def keys(self) -> tuple[str, ...] | None:
        """What of a batch is read."""
        return getattr(self.objective, "keys", None)

    @property
    def needs_flow(self) -> dict[str, str]:
        """What it reads of a flow, and which flows have that."""
        return getattr(self.objective, "needs_flow", {})

    @property
    def needs_data(self) -> bool:
        """Whether it is given batches."""
        return getattr(self.objective, "needs_data", True)

    @property
    def whole_batch(self) -> bool:
        """Whether a batch cannot be taken in parts."""
        return getattr(self.objective, "whole_batch", False)

    def at(self, progress: float) -> Self:
        """The objective at a share of the training, as `fit` asks for it."""
        at = getattr(self.objective, "at", None)
        return self if at is None else replace(self, objective=at(progress))  # type: ignore[type-var]
