"""Frames of a simulation: in memory, and as numbered shards that are written atomically."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import mdtraj
import numpy as np
from numpy.typing import NDArray

from molecular.dynamics.former_names import FORMER_NAMES
from molecular.molecule.storage import CONTENT
from molecular.molecule.trajectories import ascii_name, write_trajectory
from nflib.io import read_arrays, write_arrays

STORAGE = ("float32", "float16", "xtc")
"""How positions are stored; see `write_shard`."""


@dataclass(frozen=True)
class Frames:
    """N frames of a simulation, as numpy arrays.

    Args:
        positions: (N, n, 3) float32, nm.
        energies: (N,) float64, kJ/mol.
        temperature_index: (N,) int16, 0 the lowest temperature.
        replica_group: (N,) int32, the replica group that a frame is of.
        time: (N,) float64, ps since the end of equilibration.
    """

    positions: NDArray[np.float32]
    energies: NDArray[np.float64]
    temperature_index: NDArray[np.int16]
    replica_group: NDArray[np.int32]
    time: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.positions)

    def arrays(self) -> dict[str, NDArray]:
        """The arrays by name."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


def concatenate(parts: Sequence[Frames]) -> Frames:
    """One `Frames` of several, in their order."""
    return Frames(**{name: np.concatenate([part.arrays()[name] for part in parts]) for name in FIELDS})


FIELDS = {"positions": "f", "energies": "f", "temperature_index": "iu", "replica_group": "iu", "time": "f"}
"""Of the arrays of a shard, the kinds of numbers (`nflib.io.read_arrays`)."""
MESSAGE = "{path} is not a shard of frames ({reason}); delete it or simulate again."
CHECKSUM = "xtc_sha256"
OPTIONAL = {"positions": FIELDS["positions"], CHECKSUM: "U"}


def shard_path(folder: Path, index: int) -> Path:
    """The file of shard ``index``."""
    return folder / f"frames-{index:06d}.npz"


def list_shards(folder: Path) -> list[Path]:
    """The shards of a folder in the order in which they were written."""
    return sorted(folder.glob(CONTENT["frames"]))


def write_shard(path: Path, frames: Frames, storage: str = "float32") -> None:
    """Write frames as one shard of a simulation.

    Args:
        path: of the .npz file.
        frames: to write.
        storage: "float32" and "float16": everything in the .npz. "xtc": positions in a .xtc of the same stem, which
            other programs read too, the rest in the .npz. Rounding moves a coordinate below 1 nm by up to 0.00025 nm
            (float16) or 0.0005 nm (XTC); energies stay those before rounding.

    Raises:
        ValueError: an unknown storage.
    """
    if storage not in STORAGE:
        raise ValueError(f"frames are stored as {', '.join(STORAGE)}, not {storage!r}.")
    arrays = frames.arrays()
    if storage == "float16":
        arrays["positions"] = frames.positions.astype(np.float16)
    if storage == "xtc":
        write_trajectory(path.with_suffix(".xtc"), arrays.pop("positions"), time=frames.time)
        arrays[CHECKSUM] = np.array(_checksum(path.with_suffix(".xtc")))
    # The .npz comes last: it is what makes a shard.
    write_arrays(path, arrays)


def read_shard(path: Path) -> Frames:
    """The frames of one shard; raises ValueError naming the file when it is not one."""
    needed = {name: kind for name, kind in FIELDS.items() if name != "positions"}
    arrays = read_arrays(path, needed, OPTIONAL, MESSAGE, FORMER_NAMES)
    try:
        positions = arrays["positions"] if "positions" in arrays else _read_xtc(path.with_suffix(".xtc"), arrays)
    except (ValueError, OSError, RuntimeError) as error:
        raise ValueError(MESSAGE.format(path=path, reason=error)) from error
    frames = Frames(**{name: arrays[name] for name in FIELDS if name != "positions"}, positions=positions)
    if positions.ndim != 3 or positions.shape[2] != 3:
        raise ValueError(f"{path} holds positions of shape {positions.shape} but (frames, atoms, 3) is needed.")
    shapes = {name: array.shape[:1] if name == "positions" else array.shape for name, array in frames.arrays().items()}
    if len(set(shapes.values())) != 1:
        raise ValueError(f"{path} holds arrays of different lengths {shapes}; delete it or simulate again.")
    return replace(frames, positions=positions.astype(np.float32, copy=False))


def read_shards(paths: Iterable[Path], num_atoms: int | None = None) -> Iterator[Frames]:
    """Read the frames of shards of one simulation, one after the other.

    Args:
        paths: of the shards.
        num_atoms: of the molecule; None takes what the first shard has.

    Raises:
        ValueError: another number of atoms, or positions, energies or times that are not finite; it names the file and,
            where it can, the frame.
    """
    for path in paths:
        frames = read_shard(path)
        shape = frames.positions.shape
        num_atoms = shape[1] if num_atoms is None else num_atoms
        if shape[1] != num_atoms:
            raise ValueError(
                f"{path} holds positions of shape {shape} but (frames, {num_atoms}, 3) is needed;"
                " is it the simulation of another molecule?"
            )
        for name in ("positions", "energies", "time"):
            finite = np.isfinite(frames.arrays()[name]).reshape(len(frames), -1).all(axis=1)
            if not finite.all():
                raise ValueError(
                    f"{path}: {name} of frame {int(np.argmin(finite))} are not finite"
                    f" ({int((~finite).sum())} such frames in the file); remove them or simulate again."
                )
        yield frames


def _read_xtc(path: Path, arrays: Mapping[str, NDArray]) -> NDArray[np.float32]:
    # Its reader may take the process down where a byte is wrong. Shards of a while ago have no checksum.
    if CHECKSUM in arrays and str(arrays[CHECKSUM]) != _checksum(path):
        raise ValueError(f"{path.name} is not as it was written")
    with ascii_name(path) as name, mdtraj.formats.XTCTrajectoryFile(name) as trajectory:
        return trajectory.read()[0]


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class FrameWriter:
    """Collects frames in memory and, where it has a folder, writes them as shards on `flush`.

    Args:
        folder: where shards go; None keeps every frame in memory.
        num_shards: shards that the checkpoint vouches for. Later ones were written after it, by a run that
            was killed before its next checkpoint: they are removed, because those steps are simulated again.
        storage: see `write_shard`.

    Raises:
        FileNotFoundError: a shard that the checkpoint vouches for is missing.
    """

    def __init__(self, folder: Path | None, num_shards: int = 0, storage: str = "float32") -> None:
        self.folder = folder
        self.num_shards = num_shards
        self.storage = storage
        self.pending: list[Frames] = []
        self.pending_frames = 0
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            expected = [shard_path(folder, index) for index in range(num_shards)]
            missing = [path.name for path in expected if not path.exists()]
            if missing:
                raise FileNotFoundError(
                    f"{folder} lacks {missing[0]}, which its checkpoint counts on; restore it"
                    " or simulate into another folder."
                )
            wanted = {path.stem for path in expected}
            for path in folder.glob("frames-*"):
                if path.suffix in (".npz", ".xtc") and path.stem not in wanted:
                    path.unlink()

    def add(self, frames: Frames) -> None:
        """Append frames."""
        self.pending.append(frames)
        self.pending_frames += len(frames)

    def flush(self) -> None:
        """Write what is pending as the next shard; nothing to do without a folder or without frames."""
        if self.folder is None or not self.pending:
            return
        write_shard(shard_path(self.folder, self.num_shards), concatenate(self.pending), self.storage)
        self.num_shards += 1
        self.pending = []
        self.pending_frames = 0

    def frames(self) -> Frames | None:
        """Everything written so far, from disk and memory; None when there are no frames."""
        folder = self.folder
        paths = [] if folder is None else [shard_path(folder, index) for index in range(self.num_shards)]
        parts = [*read_shards(paths), *self.pending]
        return concatenate(parts) if parts else None
