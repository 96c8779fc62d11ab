"""What may be said of a training that goes on from a trained flow."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def check_initial(initial: str | Path | None, architecture: Mapping[str, Any], refit_marginals: bool) -> None:
    """Raise ValueError for an architecture beside an initial flow, which has its own, or a refit without one."""
    if initial is None and refit_marginals:
        raise ValueError("refit_marginals is for an initial flow; a new one is fitted in any case: leave it out.")
    if initial is not None and architecture:
        names = ", ".join(architecture)
        raise ValueError(f"the initial flow has its own {names}: leave {names} out, or initial.")
