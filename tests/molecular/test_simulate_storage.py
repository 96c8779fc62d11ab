"""How frames are stored, and that a killed simulation neither loses nor repeats any."""

import os
import random
import signal
import time
from pathlib import Path

import mdtraj
import numpy as np
import pytest
import torch

from molecular.data.ensembles import load_ensemble
from molecular.dynamics import Frames, FrameWriter, TemperingSettings, list_shards, parallel_tempering, read_shard
from molecular.dynamics.frames import write_shard
from molecular.molecule.trajectories import MOST_UNROUNDED


def make_frames(count: int = 5, num_atoms: int = 6, seed: int = 0) -> Frames:
    rng = np.random.default_rng(seed)
    return Frames(
        positions=rng.uniform(-1, 1, size=(count, num_atoms, 3)).astype(np.float32),
        energies=rng.normal(size=count),
        temperature_index=np.zeros(count, dtype=np.int16),
        replica_group=np.arange(count, dtype=np.int32),
        time=np.arange(count, dtype=np.float64),
    )


@pytest.mark.parametrize(("storage", "rounding"), [("float32", 0.0), ("float16", 2.5e-4), ("xtc", 5.1e-4)])
def test_frames_come_back(tmp_path, storage, rounding):
    writer = FrameWriter(tmp_path, storage=storage)
    parts = [make_frames(seed=0), make_frames(seed=1)]
    for part in parts:
        writer.add(part)
        writer.flush()
    for path, part in zip(list_shards(tmp_path), parts, strict=True):
        frames = read_shard(path)
        assert frames.positions.dtype == np.float32
        assert np.abs(frames.positions - part.positions).max() <= rounding
        np.testing.assert_array_equal(frames.energies, part.energies)
    whole = writer.frames()
    assert whole is not None and len(whole) == 10
    assert load_ensemble(tmp_path).positions.dtype == torch.float32
    assert {path.suffix for path in tmp_path.iterdir()} == ({".npz", ".xtc"} if storage == "xtc" else {".npz"})
    if storage == "xtc":
        with mdtraj.formats.XTCTrajectoryFile(str(tmp_path / "frames-000001.xtc")) as trajectory:
            xyz, times, *_ = trajectory.read()
        assert np.abs(xyz - parts[1].positions).max() <= rounding
        np.testing.assert_allclose(times, parts[1].time)


def test_xtc_rounds_positions_of_more_than_nine_atoms(tmp_path):
    for num_atoms in (MOST_UNROUNDED, MOST_UNROUNDED + 1):
        frames = make_frames(num_atoms=num_atoms)
        write_shard(tmp_path / "frames-000000.npz", frames, "xtc")
        stored = read_shard(tmp_path / "frames-000000.npz").positions
        assert np.array_equal(stored, frames.positions) == (num_atoms == MOST_UNROUNDED)


def test_unknown_storage_and_damaged_xtc(tmp_path):
    with pytest.raises(ValueError, match="stored as float32, float16, xtc, not 'hdf5'"):
        writer = FrameWriter(tmp_path, storage="hdf5")
        writer.add(make_frames())
        writer.flush()
    writer = FrameWriter(tmp_path, storage="xtc")
    writer.add(make_frames())
    writer.flush()
    whole = (tmp_path / "frames-000000.xtc").read_bytes()
    (tmp_path / "frames-000000.xtc").write_bytes(whole[:40])
    with pytest.raises(ValueError, match=r"frames-000000\.npz is not a shard"):
        read_shard(tmp_path / "frames-000000.npz")
    (tmp_path / "frames-000000.xtc").unlink()
    with pytest.raises(ValueError, match=r"frames-000000\.npz is not a shard"):
        read_shard(tmp_path / "frames-000000.npz")


def test_what_no_checkpoint_vouches_for_is_removed(tmp_path):
    writer = FrameWriter(tmp_path, storage="xtc")
    for seed in (0, 1):
        writer.add(make_frames(seed=seed))
        writer.flush()
    (tmp_path / "frames-000002.xtc").write_bytes(b"an .xtc whose .npz was never written")
    (tmp_path / "frames-notes.txt").write_text("mine")
    FrameWriter(tmp_path, 1, "xtc")
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"frames-000000.npz", "frames-000000.xtc", "frames-notes.txt"}


class Slow:
    """A harmonic well that takes its time, so that a signal hits anywhere."""

    def energy_and_force(self, x):
        time.sleep(1e-4)
        return 500.0 * x.square().sum(dim=(1, 2)), -1000.0 * x


def tempering(folder: Path | None, energy, storage: str = "float32"):
    return parallel_tempering(
        energy, torch.tensor([12.0, 16.0]), torch.zeros(2, 3),
        TemperingSettings((300.0, 400.0), num_replica_groups=2, timestep=0.005, swap_interval=5, save_interval=5),
        num_steps=600, generator=torch.Generator().manual_seed(0), progress=False,
        checkpoint=folder, checkpoint_seconds=0.0, storage=storage,
    )  # fmt: skip


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("storage", ["float32", "xtc"])
def test_killed_at_any_moment_it_ends_with_the_same_frames(tmp_path, storage):
    whole = tempering(None, Slow()).frames
    rng = random.Random(0)
    killed = 0
    for _ in range(5):
        child = os.fork()
        if child == 0:
            tempering(tmp_path, Slow(), storage)
            os._exit(0)
        time.sleep(rng.uniform(0.02, 0.08))
        os.kill(child, signal.SIGKILL)
        killed += os.waitpid(child, 0)[1] == signal.SIGKILL
    assert killed > 0
    resumed = tempering(tmp_path, Slow(), storage).frames
    assert whole is not None and resumed is not None
    np.testing.assert_array_equal(resumed.time, whole.time)
    np.testing.assert_array_equal(resumed.energies, whole.energies)
    tolerance = 6e-4 if storage == "xtc" else 0.0
    assert np.abs(resumed.positions - whole.positions).max() <= tolerance
