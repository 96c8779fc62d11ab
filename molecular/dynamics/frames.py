"""Frames of a simulation: in memory, and as numbered .npz shards that are written atomically."""

import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Frames:
    """N conformations and where they come from.

    positions (N, n, 3) float32 nm; energies (N,) float64 kJ/mol; temperature_index (N,) int16, 0 the lowest;
    ladder (N,) int32; time (N,) float64 ps since the end of equilibration.
    """

    positions: NDArray[np.float32]
    energies: NDArray[np.float64]
    temperature_index: NDArray[np.int16]
    ladder: NDArray[np.int32]
    time: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.positions)

    def arrays(self) -> dict[str, NDArray]:
        """The arrays by name, as they are stored in a shard."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


def concatenate(parts: list[Frames]) -> Frames:
    """One `Frames` of several, in their order."""
    return Frames(**{name: np.concatenate([part.arrays()[name] for part in parts]) for name in FIELDS})


FIELDS = tuple(Frames.__dataclass_fields__)


def save_npz_atomically(path: Path, arrays: Mapping[str, NDArray]) -> None:
    """Write an .npz so that a reader, or a restart after a crash, sees the whole file or none of it."""
    temporary = path.with_name(path.name + ".partial")
    with temporary.open("wb") as stream:
        np.savez(stream, allow_pickle=False, **dict(arrays))
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, path)


def shard_path(folder: Path, index: int) -> Path:
    """The file of shard ``index``."""
    return folder / f"frames-{index:06d}.npz"


def list_shards(folder: Path) -> list[Path]:
    """The shards of a folder in the order in which they were written."""
    return sorted(folder.glob("frames-*.npz"))


def read_shard(path: Path) -> Frames:
    """The frames of one shard; raises ValueError naming the file when it is not one."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            return Frames(**{name: stored[name] for name in FIELDS})
    except (KeyError, zipfile.BadZipFile, ValueError, EOFError) as error:
        raise ValueError(f"{path} is not a shard of frames ({error}); delete it or simulate again.") from error


class FrameWriter:
    """Collects frames in memory and, when it has a folder, moves them to shards on `flush`.

    Args:
        folder: where shards go; None keeps every frame in memory.
        num_shards: shards that the checkpoint vouches for. Later ones were written after it, by a run that
            was killed before its next checkpoint: they are removed, because those steps are simulated again.
    """

    def __init__(self, folder: Path | None, num_shards: int = 0) -> None:
        self.folder = folder
        self.num_shards = num_shards
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
            for path in set(list_shards(folder)) - set(expected):
                path.unlink()

    def add(self, frames: Frames) -> None:
        """Append frames."""
        self.pending.append(frames)
        self.pending_frames += len(frames)

    def flush(self) -> None:
        """Write what is pending as the next shard; nothing to do without a folder or without frames."""
        if self.folder is None or not self.pending:
            return
        save_npz_atomically(shard_path(self.folder, self.num_shards), concatenate(self.pending).arrays())
        self.num_shards += 1
        self.pending = []
        self.pending_frames = 0

    def frames(self) -> Frames | None:
        """Everything written so far, from disk and memory; None when there are no frames."""
        stored = [] if self.folder is None else [read_shard(shard_path(self.folder, i)) for i in range(self.num_shards)]
        parts = stored + self.pending
        return concatenate(parts) if parts else None
