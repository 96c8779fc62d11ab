"""Trajectory files in the formats of other programs, written whole or not at all, under any name."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import mdtraj
import numpy as np
from numpy.typing import NDArray

from molecular.molecule.topology import Topology
from nflib.io import complete_file

FORMATS = ("xtc", "dcd", "h5", "npz")
# Beyond this, nm, an XTC file's integers overflow.
FARTHEST = 1e5
# Of more atoms than this, an XTC file's positions are rounded.
MOST_UNROUNDED = 9


def check_format(suffix: str) -> None:
    """Raise ValueError for a format that is none of `FORMATS`, ModuleNotFoundError for one that lacks its library."""
    if suffix not in FORMATS:
        raise ValueError(f"trajectories are written as {', '.join(FORMATS)}, not {suffix!r}.")
    if suffix == "h5" and find_spec("tables") is None:
        raise ModuleNotFoundError("HDF5 trajectories need PyTables: pip install tables, or choose another format.")


def writable(positions: NDArray[np.floating]) -> NDArray[np.bool_]:
    """(N,) bool: the conformations ``(N, n, 3)`` that a trajectory file can hold: finite, and not light years away."""
    return np.isfinite(positions).all(axis=(1, 2)) & (np.abs(np.nan_to_num(positions)) < FARTHEST).all(axis=(1, 2))


def write_trajectory(
    path: str | Path,
    positions: NDArray[np.floating],
    topology: Topology | None = None,
    time: NDArray[np.floating] | None = None,
) -> None:
    """Write conformations ``(N, n, 3)`` in nm as XTC, DCD, HDF5 or NPZ, by the suffix of the path.

    XTC rounds to 0.001 nm (not of `MOST_UNROUNDED` atoms or fewer), which moves the log-density of a flow by some
    tenths; the others are float32.

    Args:
        path: of the file.
        positions: (N, n, 3), nm.
        topology: stored in HDF5, needed there alone.
        time: (N,) ps; default 0, 1, 2 ...

    Raises:
        ModuleNotFoundError: HDF5 without PyTables.
        ValueError: another suffix, or conformations that are not `writable`.
        OSError: the file cannot be written; what was there stays.
    """
    path = Path(path)
    suffix = path.suffix.lower().removeprefix(".")
    check_format(suffix)
    if not writable(positions).all():
        raise ValueError(f"conformation {int(np.argmin(writable(positions)))} is not finite; leave it out of {path}.")
    positions = np.asarray(positions, dtype=np.float32)
    time = np.arange(len(positions), dtype=np.float32) if time is None else np.asarray(time, dtype=np.float32)
    with complete_file(path) as temporary:
        if suffix == "npz":
            np.savez(temporary, allow_pickle=False, positions=positions, time=time)
            return
        # mdtraj takes ASCII names alone.
        with tempfile.TemporaryDirectory() as folder:
            plain = Path(folder) / f"trajectory.{suffix}"
            if suffix == "xtc":
                with mdtraj.formats.XTCTrajectoryFile(str(plain), "w") as file:
                    file.write(positions, time=time)
            else:
                known = None if topology is None else topology.to_mdtraj()
                mdtraj.Trajectory(positions, known, time=time).save(str(plain))
            shutil.copyfile(plain, temporary)


@contextmanager
def ascii_name(path: str | Path) -> Iterator[str]:
    """The file under a name that mdtraj can read: its own, or that of a link to it, or of a copy."""
    if str(path).isascii():
        yield str(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder) / f"file{''.join(Path(path).suffixes[-2:])}"
        try:
            link.symlink_to(Path(path).resolve())
        except OSError:  # Windows without the right to
            shutil.copyfile(path, link)
        yield str(link)
