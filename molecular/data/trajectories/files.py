"""Trajectory files of any program: atoms, positions in the file's own length, time and periodic box."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import molecular.data.trajectories.worker as worker
from molecular.molecule.topology import Topology
from molecular.molecule.trajectories import ascii_name
from nflib.errors import ComputationError, first_line, no_file
from nflib.io import read_arrays

BINARY = (".xtc", ".trr", ".dcd", ".nc", ".ncdf", ".netcdf", ".h5", ".hdf5")
WITH_ATOMS = (".h5", ".hdf5", ".pdb", ".pdb.gz", ".cif", ".mmcif", ".pdbx", ".gro")
FORMATS = (*BINARY, *WITH_ATOMS[2:], ".npz")
WITHOUT_TIMES = (".dcd", *WITH_ATOMS[2:-1])
"""Formats that have none, or whose reader numbers frames instead."""
TOPOLOGIES = (*WITH_ATOMS, ".prmtop", ".parm7", ".prm7", ".psf", ".mol2")

_WATERS = frozenset(
    ("HOH", "WAT", "SOL", "H2O", "DOD", "SPC", "SPCE", "OPC", "OPC3", "TIP", "TIP2", "TIP3", "TIP4", "TIP5")
    + ("TP3", "TP4", "TP5", "TIP3P", "TIP4P", "T3P", "T4P", "T4E")
)


@dataclass(frozen=True)
class Part:
    """Some frames as their file has them.

    Args:
        positions: (N, m, 3), in the file's unit.
        time: (N,) ps, zeros where the file has none.
        box: (N, 3, 3), whose rows are its edges; None for none.
    """

    positions: NDArray[np.floating]
    time: NDArray[np.float64]
    box: NDArray[np.float64] | None

    def select(self, frames: slice | NDArray[np.integer], atoms: NDArray[np.integer] | slice = slice(None)) -> Part:
        """These frames of these atoms."""
        box = None if self.box is None else self.box[frames]
        return Part(self.positions[frames][:, atoms], self.time[frames], box)


def read_frames(
    path: Path,
    num_atoms: int,
    atoms: Sequence[int] | None = None,
    *,
    owner: str,
    stride: int = 1,
    most: int | None = None,
) -> Part:
    """Read the frames of a trajectory file.

    Args:
        path: XTC, TRR, DCD, NetCDF or H5, models of a PDB, mmCIF or GRO file, or an NPZ of positions (N, m, 3), and, if
            wanted, time (N,) and box (3, 3) or (N, 3, 3), without weights.
        num_atoms: how many atoms it has.
        atoms: those to keep, in this order; by default all.
        owner: the file or molecule that says how many, for messages.
        stride: keep every so many-th frame.
        most: read no more frames than these.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a damaged file, one without frames or of another number of atoms, or an unknown format.
    """
    chosen = np.arange(num_atoms) if atoms is None else np.asarray(atoms)
    with _reading(path) as readable:
        suffix = _suffix(path)
        if suffix in BINARY:
            part = _read_apart(path, readable, num_atoms, owner, chosen, stride, most)
        elif suffix == ".npz" or suffix in FORMATS:
            part = _read_npz(path, readable) if suffix == ".npz" else _part(_load(readable, suffix))
            _check_atoms(path, part.positions.shape[1], num_atoms, owner)
            part = part.select(slice(None, most), chosen).select(slice(None, None, stride))
        else:
            raise ValueError(f"the formats are {', '.join(FORMATS)}")
        if not len(part.positions):
            raise ValueError("it has no frames")
        return replace(part, time=np.zeros(len(part.time))) if suffix in WITHOUT_TIMES else part


def read_atoms(path: Path) -> Topology:
    """The atoms and residues of a PDB, mmCIF, GRO, H5, prmtop, PSF or MOL2 file, without bonds.

    Raises ValueError for a damaged file or an unknown format.
    """
    import mdtraj

    with _reading(path) as readable:
        suffix = _suffix(path)
        if suffix not in TOPOLOGIES:
            raise ValueError(f"the formats of a topology are {', '.join(TOPOLOGIES)}")
        if suffix in BINARY:
            with tempfile.TemporaryDirectory() as folder:
                answer = Path(folder) / "topology.json"
                _ask(path, {"path": str(readable), "topology": str(answer)})
                return Topology.from_dict(json.loads(answer.read_text(encoding="utf-8")))
        # Every reader of these is written in Python.
        found = _load(readable, suffix).topology if suffix in FORMATS else mdtraj.load_topology(str(readable))
        return Topology.from_dict(worker.atoms_of(found))


def has_atoms(path: Path) -> bool:
    """Whether a trajectory of this format tells its own atoms."""
    return _suffix(path) in WITH_ATOMS


def solute(topology: Topology, own_residues: Sequence[str]) -> list[int]:
    """The atoms that are neither water nor ions by the names of their residues; `own_residues` never are."""
    sizes = np.bincount(topology.residue_indices, minlength=len(topology.residues))
    left_out = {
        index
        for index, residue in enumerate(topology.residues)
        if residue.name not in own_residues and (residue.name.upper() in _WATERS or sizes[index] == 1)
    }
    return [atom for atom, residue in enumerate(topology.residue_indices) if residue not in left_out]


def _read_apart(
    path: Path,
    readable: Path,
    num_atoms: int,
    owner: str,
    atoms: NDArray[np.integer],
    stride: int,
    most: int | None,
) -> Part:
    """What `worker` reads."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "frames.npz"
        request = {"num_atoms": num_atoms, "atoms": atoms.tolist(), "stride": stride, "most": most}
        _ask(path, {"path": str(readable), "output": str(output)} | request, owner)
        with np.load(output) as stored:
            if "positions" not in stored.files:
                raise ValueError("it has no frames")
            return Part(stored["positions"], stored["time"], stored["box"] if "box" in stored.files else None)


def _ask(path: Path, request: dict[str, Any], owner: str = "") -> None:
    """Let a process of its own answer a request."""
    _check_tables(_suffix(path))
    command = [sys.executable, "-P", worker.__file__]  # -P: no modules from beside the script
    done = subprocess.run(command, input=json.dumps(request), capture_output=True, encoding="utf-8", check=False)
    said = done.stderr.strip().splitlines() or [""]
    if done.returncode == worker.WRONG_ATOMS:
        _check_atoms(path, int(said[-1]), request["num_atoms"], owner)
    if done.returncode == worker.CANNOT_READ:
        raise ValueError(said[-1])
    if done.returncode < 0:
        raise ValueError("it is damaged: its reader crashed")
    if done.returncode:
        raise ComputationError(f"its reader ended with exit code {done.returncode}: {said[-1]}")


def _part(trajectory: Any) -> Part:
    box = trajectory.unitcell_vectors
    return Part(
        trajectory.xyz,
        np.asarray(trajectory.time, dtype=np.float64),
        None if box is None else np.asarray(box, dtype=np.float64),
    )


def _load(readable: Path, suffix: str) -> Any:
    import mdtraj

    if suffix.startswith(".pdb") and suffix != ".pdbx":
        return mdtraj.load_pdb(str(readable), standard_names=False)
    return mdtraj.load(str(readable))


def _read_npz(path: Path, readable: Path) -> Part:
    arrays = read_arrays(readable, message="{reason}")
    name = next((name for name in ("positions", "xyz", "coordinates") if name in arrays), None)
    if name is None:
        raise ValueError(f"it holds {', '.join(arrays) or 'nothing'} but no array 'positions'")
    positions, time, box = arrays[name], arrays.get("time"), arrays.get("box")
    if positions.ndim != 3 or positions.shape[2] != 3 or positions.dtype.kind not in "fiu":
        raise ValueError(f"its positions are {positions.dtype} of shape {positions.shape}, not numbers (frames, n, 3)")
    count = len(positions)
    weights = next((name for name in arrays if "weight" in name.lower() and arrays[name].shape[:1] == (count,)), None)
    if weights is not None:
        raise _WholeSentence(
            f"{path} holds {weights!r}, but frames of an import all count alike; draw frames by their weights, and "
            "give these without."
        )
    if time is None:
        time = np.zeros(count)
    if time.shape != (count,) or time.dtype.kind not in "fiu":
        raise ValueError(f"its time is {time.dtype} of shape {time.shape}, not numbers ({count},)")
    if box is not None:
        if box.shape not in ((3, 3), (count, 3, 3)) or box.dtype.kind not in "fiu":
            raise ValueError(f"its box is {box.dtype} of shape {box.shape}, not numbers (3, 3) or ({count}, 3, 3)")
        box = np.broadcast_to(box.astype(np.float64), (count, 3, 3))
    if positions.dtype.kind != "f":
        positions = positions.astype(np.float64)
    return Part(positions, time.astype(np.float64), box)


def _check_atoms(path: Path, found: int, wanted: int, owner: str) -> None:
    if found != wanted:
        raise _WholeSentence(
            f"{path} has {found} atoms but {owner} has {wanted}; give the topology that belongs to it, with every atom "
            "of its frames."
        )


class _WholeSentence(ValueError):
    """What needs no words about the file around it."""


def _check_tables(suffix: str) -> None:
    if suffix in (".h5", ".hdf5"):
        try:
            import tables  # noqa: F401
        except ImportError as error:
            raise ValueError("H5 needs PyTables: pip install tables") from error


def _suffix(path: Path) -> str:
    name = path.name.lower()
    return ".pdb.gz" if name.endswith(".pdb.gz") else Path(name).suffix


@contextmanager
def _reading(path: Path) -> Iterator[Path]:
    """A name of plain letters for a file, which some readers need; whatever a reader says becomes one sentence."""
    if not path.is_file():
        raise no_file(path, "give a trajectory or a topology")
    with ascii_name(path.resolve()) as readable, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield Path(readable)
        except (_WholeSentence, FileNotFoundError):
            raise
        except Exception as error:  # the readers of eight formats raise whatever comes
            raise ValueError(
                f"{path} cannot be read ({first_line(error)}); give it whole, in its own format."
            ) from error
