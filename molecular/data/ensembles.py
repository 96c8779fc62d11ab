"""Conformations on disk as tensors, and splits into training, validation and test sets."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from molecular.dynamics.frames import concatenate, list_shards, read_shards
from nflib.io import write_arrays

FEWEST_PARTS = 10
"""Fewer replica groups are cut into blocks of time before they are divided, so that small fractions can be met."""


@dataclass(frozen=True)
class Ensemble:
    """N simulated conformations of one molecule, as tensors.

    Args:
        positions: (N, n, 3) float32, nm.
        energies: (N,) float64, kJ/mol.
        replica_group: (N,) int64; frames of different replica groups are statistically independent.
        time: (N,) float64, ps.
        temperature_index: (N,) int64, 0 the lowest temperature.
    """

    positions: Tensor
    energies: Tensor
    replica_group: Tensor
    time: Tensor
    temperature_index: Tensor

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def num_atoms(self) -> int:
        """Atoms of each conformation."""
        return self.positions.shape[1]

    def select(self, index: Tensor) -> "Ensemble":
        """The frames of a boolean mask or an index tensor."""
        return Ensemble(**{field.name: getattr(self, field.name)[index] for field in fields(self)})


def load_ensemble(
    folder: str | Path,
    *,
    num_atoms: int | None = None,
    temperature_index: int | None = 0,
    start_ps: float = 0.0,
) -> Ensemble:
    """Read the frames that a simulation or an import wrote into a folder, as an `Ensemble`.

    Args:
        folder: that `molecular.dynamics.simulate` or `import_trajectory` wrote.
        num_atoms: what the caller's molecule has; None accepts whatever the first shard has.
        temperature_index: which temperature to keep; None keeps all that were saved.
        start_ps: drop frames before this time, ps.

    Raises:
        FileNotFoundError: no such folder, or no frames in it.
        ValueError: a wrong number of atoms, positions, energies or times that are not finite (the message names file
            and frame), a damaged file, or nothing left after selection.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder; give the output of a simulation or an import.")
    shards = list_shards(folder)
    if not shards:
        raise FileNotFoundError(
            f"{folder} holds no frames-*.npz; give a folder that `python -m molecular simulate` or `import` wrote."
        )
    frames = concatenate(list(read_shards(shards, num_atoms)))
    ensemble = Ensemble(
        positions=torch.from_numpy(frames.positions.astype(np.float32, copy=False)),
        energies=torch.from_numpy(frames.energies.astype(np.float64, copy=False)),
        replica_group=torch.from_numpy(frames.replica_group.astype(np.int64)),
        time=torch.from_numpy(frames.time.astype(np.float64, copy=False)),
        temperature_index=torch.from_numpy(frames.temperature_index.astype(np.int64)),
    )
    keep = ensemble.time >= start_ps
    if temperature_index is not None:
        keep &= ensemble.temperature_index == temperature_index
    if not keep.any():
        chosen = "" if temperature_index is None else f" at temperature index {temperature_index}"
        raise ValueError(
            f"{folder} has {len(ensemble)} frames but none{chosen} from"
            f" {start_ps} ps on; it holds indices {ensemble.temperature_index.unique().tolist()} up to"
            f" {float(ensemble.time.max()):g} ps."
        )
    return ensemble if keep.all() else ensemble.select(keep)


def split_by_replica_group(ensemble: Ensemble, fractions: Sequence[float], seed: int = 0) -> tuple[Ensemble, ...]:
    """Split an ensemble by whole replica groups, at random, so that no two parts hold correlated frames.

    Fewer than ten groups, as of an imported trajectory, are first cut into blocks of time, some ten in all. Parts are
    then less independent: frames beside a cut are correlated, and what is slower than a block is in no part alone.

    Args:
        ensemble: to split.
        fractions: share of the groups, or blocks, for each part, for instance ``(0.8, 0.1, 0.1)``; they must sum to 1.
            Every part with a positive fraction gets at least one.
        seed: of the random choice.

    Raises:
        ValueError: fractions that do not sum to 1 or are negative, or fewer frames than parts.

    >>> zeros = torch.zeros(20, dtype=torch.int64)
    >>> ensemble = Ensemble(torch.zeros(20, 3, 3), zeros.double(), torch.arange(20) % 10, zeros.double(), zeros)
    >>> [len(part) for part in split_by_replica_group(ensemble, (0.8, 0.1, 0.1))]
    [16, 2, 2]
    """
    if not fractions or any(share < 0 for share in fractions) or abs(sum(fractions) - 1.0) > 1e-6:
        raise ValueError(f"fractions must not be negative and must sum to 1, not {tuple(fractions)}.")
    block = _replica_groups_or_blocks(ensemble)
    groups = block.unique()
    wanted = [i for i, share in enumerate(fractions) if share > 0]
    if len(groups) < len(wanted):
        raise ValueError(f"{len(ensemble)} frames cannot be split into {len(wanted)} parts; simulate for longer.")
    counts = [int(share * len(groups)) for share in fractions]
    for i in wanted:
        counts[i] = max(counts[i], 1)
    while (excess := sum(counts) - len(groups)) != 0:
        # Towards the exact shares: the part that is furthest above (or below) its own gives (or takes) one
        # replica group.
        surplus = [counts[i] - fractions[i] * len(groups) for i in wanted]
        if excess > 0:
            movable = [j for j, i in enumerate(wanted) if counts[i] > 1]
            counts[wanted[max(movable, key=surplus.__getitem__)]] -= 1
        else:
            counts[wanted[min(range(len(wanted)), key=surplus.__getitem__)]] += 1
    generator = torch.Generator().manual_seed(seed)
    shuffled = groups[torch.randperm(len(groups), generator=generator)]
    return tuple(ensemble.select(torch.isin(block, part)) for part in shuffled.split(counts))


def _replica_groups_or_blocks(ensemble: Ensemble) -> Tensor:
    """(N,) the group of each frame or, where there are fewer than `FEWEST_PARTS`, its block of consecutive frames."""
    groups = ensemble.replica_group.unique()
    if len(groups) >= FEWEST_PARTS:
        return ensemble.replica_group
    block, first = torch.empty_like(ensemble.replica_group), 0
    for group in groups:
        rows = torch.nonzero(ensemble.replica_group == group)[:, 0]
        rows = rows[ensemble.time[rows].argsort(stable=True)]
        # By the replica group's length, so that blocks are alike.
        number = min(len(rows), -(-FEWEST_PARTS * len(rows) // len(ensemble)))
        block[rows] = first + torch.arange(len(rows)) * number // len(rows)
        first += number
    return block


def save_reference(folder: str | Path, num_frames: int, path: str | Path, start_ps: float = 0.0) -> None:
    """Write a thin reference ensemble for plots: evenly spaced frames of a simulation's lowest temperature.

    Args:
        folder: of the simulation.
        num_frames: how many.
        path: of the .npz file, which holds "positions" ``(num_frames, n, 3)``, float32 in nm.
        start_ps: drop frames before this time, ps.

    Raises:
        ValueError: the simulation has fewer frames.
    """
    positions = load_ensemble(folder, start_ps=start_ps).positions
    if not 1 <= num_frames <= len(positions):
        raise ValueError(f"{folder} has {len(positions)} frames, so a reference cannot have {num_frames} of them.")
    chosen = torch.linspace(0, len(positions) - 1, num_frames).round().long()
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_arrays(path, {"positions": positions[chosen].numpy()})
