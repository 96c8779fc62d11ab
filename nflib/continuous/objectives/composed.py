"""Objectives made of another one."""

from __future__ import annotations

from typing import Any

__all__ = ["OfAnother"]


class OfAnother:
    """An objective with another, `objective`, inside: it reads what that one reads, and needs data where that does."""

    objective: Any

    @property
    def keys(self) -> tuple[str, ...] | None:
        """What of a batch is read."""
        return getattr(self.objective, "keys", None)

    @property
    def needs_data(self) -> bool:
        """Whether it is given batches."""
        return getattr(self.objective, "needs_data", True)
