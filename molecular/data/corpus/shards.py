"""Files of conformations, read one frame after the other."""

import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from molecular.dynamics.frames import read_shard
from nflib.io import read_arrays
from nflib.io.tars import read_members

MESSAGE = "{path} holds no positions that can be read ({reason})."


class DamagedShard(ValueError):
    """Raised for a file that cannot be read, or not further: truncated, overwritten, on a failing disk."""


class Conformation(NamedTuple):
    """A peptide's sequence and its positions (n, 3) float32, nm."""

    sequence: str
    positions: NDArray[np.float32]


class Shard(Protocol):
    """A file of conformations."""

    @property
    def path(self) -> Path:
        """Where it is."""
        ...

    def conformations(self, generator: torch.Generator | None = None) -> Iterator[Conformation]:
        """Every conformation, in an order drawn from the generator where the file can be read in any order.

        Raises DamagedShard where the file cannot be read.
        """
        ...


@dataclass(frozen=True)
class SimulationShard:
    """One shard of a simulation of ``sequence``: its frames at the lowest temperature."""

    path: Path
    sequence: str

    def conformations(self, generator: torch.Generator | None = None) -> Iterator[Conformation]:
        try:
            frames = read_shard(self.path)
        except (OSError, ValueError) as error:
            raise DamagedShard(str(error)) from error
        yield from _in_order(self.sequence, frames.positions[frames.temperature_index == 0], generator)


@dataclass(frozen=True)
class ArrayShard:
    """An .npz file with an array "positions" (N, n, 3), nm, of one sequence."""

    path: Path
    sequence: str

    def conformations(self, generator: torch.Generator | None = None) -> Iterator[Conformation]:
        try:
            positions = read_arrays(self.path, {"positions": "f"}, message=MESSAGE)["positions"].astype(np.float32)
        except (OSError, ValueError) as error:
            raise DamagedShard(str(error)) from error
        if positions.ndim != 3 or positions.shape[2] != 3:
            raise DamagedShard(f"{self.path} holds positions of shape {positions.shape}, not (frames, atoms, 3).")
        yield from _in_order(self.sequence, positions, generator)


@dataclass(frozen=True)
class TarShard:
    """A tar file in WebDataset's convention, one member a frame, of any peptides.

    Members are ``SEQUENCE_anything.bin``, raw little-endian float32 numbers (n, 3), or ``.npy`` of any precision;
    others are passed over. Read front to back, whatever the generator.
    """

    path: Path

    def conformations(self, generator: torch.Generator | None = None) -> Iterator[Conformation]:
        try:
            for member, read in read_members(self.path):
                name, _, suffix = Path(member.name).name.partition(".")
                if suffix in ("bin", "npy"):
                    yield Conformation(name.partition("_")[0], self._positions(member.name, suffix, read()))
        except (OSError, tarfile.TarError) as error:
            raise DamagedShard(f"{self.path} cannot be read ({error}).") from error

    def _positions(self, name: str, suffix: str, content: bytes) -> NDArray[np.float32]:
        try:
            array = (
                np.frombuffer(content, "<f4") if suffix == "bin" else np.load(io.BytesIO(content), allow_pickle=False)
            )
            return array.reshape(-1, 3).astype(np.float32)
        except (ValueError, EOFError) as error:
            raise DamagedShard(f"{name} in {self.path} holds no positions ({error}).") from error


def _in_order(
    sequence: str, positions: NDArray[np.float32], generator: torch.Generator | None
) -> Iterator[Conformation]:
    number = len(positions)
    order = range(number) if generator is None else torch.randperm(number, generator=generator).tolist()
    for index in order:
        yield Conformation(sequence, positions[index])
