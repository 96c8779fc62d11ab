"""How results are written: archives that appear whole or not at all, and numbers that JSON can hold."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["finite_or_none", "save_archive"]


def save_archive(path: Path, arrays: dict[str, Any]) -> None:
    """Write an .npz file; killed meanwhile, or with the disk full, what was there before is still there."""
    temporary = path.with_name(path.name + ".partial")
    try:
        with temporary.open("wb") as file:
            np.savez(file, **arrays)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def finite_or_none(value: float) -> float | None:
    """The number, or None where it is not finite: JSON has neither NaN nor Infinity."""
    return value if math.isfinite(value) else None
