"""What may be said of a training that goes on from a trained flow."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def refuse_architecture(initial: str | Path | None, architecture: Mapping[str, Any]) -> None:
    """Raise ValueError for an architecture beside an initial flow, which has its own."""
    if initial is not None and architecture:
        names = ", ".join(architecture)
        raise ValueError(f"the initial flow has its own {names}: leave {names} out, or initial.")
