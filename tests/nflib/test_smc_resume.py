"""Runs that are stopped: by an exception, by SIGKILL at any moment, and taken up with other settings."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from nflib.montecarlo import HMC, ULA, BoltzmannDensity, IndependentMetropolis, smc
from tests.nflib.smc_cases import Normal

ROOT = Path(__file__).parents[2]
SCRIPT = """
import sys, time, torch
from nflib.montecarlo import BoltzmannDensity, MALA, smc
from tests.nflib.smc_cases import Normal
torch.set_num_threads(1)
def energy(x):
    time.sleep(float(sys.argv[2]))
    return 2.0 * (x - 3.0).square().sum(dim=-1)
samples = smc(Normal(3), BoltzmannDensity(energy), 100, moves=2, kernel=MALA(), seed=4,
    checkpoint=sys.argv[1] + "/run.npz")
samples.save(sys.argv[1] + "/samples.npz")
"""


def energy(x: Tensor) -> Tensor:
    return 2.0 * (x - 3.0).square().sum(dim=-1)


def start(folder: Path, delay: float) -> subprocess.Popen:
    command = [sys.executable, "-c", SCRIPT, str(folder), str(delay)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=ROOT, env=environment)


def kill_and_resume(folder: Path, expected: dict[str, np.ndarray], kills: int, generator: random.Random) -> None:
    """Kill `kills` times, each some time after the run has begun to write checkpoints, and let the last one finish."""
    folder.mkdir()
    killed = 0
    while killed < kills:
        run = start(folder, 0.03)
        before = time.time()
        while run.poll() is None and not any(
            file.stat().st_mtime > before for file in folder.glob("run.npz") if file.exists()
        ):
            time.sleep(0.005)
        time.sleep(generator.uniform(0.0, 0.4))
        run.send_signal(signal.SIGKILL)
        if run.wait() == 0:
            break  # it was faster
        killed += 1
    assert killed == kills
    assert start(folder, 0.0).wait() == 0
    with np.load(folder / "samples.npz") as result:
        assert set(result) == set(expected)
        for name, value in expected.items():
            assert np.array_equal(result[name], value), name
        assert len(np.unique(result["x"], axis=0)) == len(np.unique(expected["x"], axis=0))


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> dict[str, np.ndarray]:
    folder = tmp_path_factory.mktemp("uninterrupted")
    assert start(folder, 0.0).wait() == 0
    with np.load(folder / "samples.npz") as result:
        return dict(result)


def test_killed_twice_and_resumed(tmp_path, uninterrupted):
    kill_and_resume(tmp_path / "run", uninterrupted, 2, random.Random(0))


@pytest.mark.slow
def test_killed_and_resumed_ten_of_ten(tmp_path, uninterrupted):
    generator = random.Random(1)
    for repeat in range(10):
        kill_and_resume(tmp_path / str(repeat), uninterrupted, 1, generator)


@pytest.mark.parametrize(
    ("kernel", "num_draws"),
    [(HMC(), 60), (ULA(), 60), (ULA(), 300), (IndependentMetropolis(), 60)],
    ids=lambda value: str(value) if isinstance(value, int) else type(value).__name__,
)
def test_stopped_at_every_temperature(tmp_path, kernel, num_draws):
    """Interrupted by an exception at one evaluation after another, the run ends with the same numbers."""
    path = tmp_path / "folder" / "run.npz"
    settings = {"kernel": kernel, "seed": 3, "resampling_threshold": 0.7, "num_draws": num_draws}
    expected = smc(Normal(2), BoltzmannDensity(energy), 60, **settings)
    chance, generator = (0.02 if isinstance(kernel, HMC) else 0.25), random.Random(1)

    def flaky(x: Tensor) -> Tensor:
        if generator.random() < chance:
            raise KeyboardInterrupt
        return energy(x)

    interruptions = 0
    while True:
        try:
            samples = smc(Normal(2), BoltzmannDensity(flaky), 60, checkpoint=path, **settings)
            break
        except KeyboardInterrupt:
            interruptions += 1
    assert interruptions > 2
    for name in ("x", "log_weights", "log_prob", "log_target", "ancestors"):
        assert torch.equal(getattr(samples, name), getattr(expected, name)), name
    for one, other in zip(samples.history.parents, expected.history.parents, strict=True):
        assert torch.equal(one, other)
    assert samples.history.inverse_temperatures == expected.history.inverse_temperatures
    for name, value in expected.history.arrays().items():  # the counts of evaluations as well
        np.testing.assert_equal(samples.history.arrays()[name], value, err_msg=name)
    assert samples.summary() == expected.summary()
    # a finished run is read, not repeated
    again = smc(Normal(2), BoltzmannDensity(energy), 60, checkpoint=path, **settings)
    assert torch.equal(again.x, samples.x)


def test_checkpoints_of_other_runs_are_refused(tmp_path):
    path = tmp_path / "run.npz"
    target = BoltzmannDensity(energy)
    smc(Normal(2), target, 30, seed=0, checkpoint=path)
    with pytest.raises(ValueError, match="num_samples 30 then, 31 now"):
        smc(Normal(2), target, 31, seed=0, checkpoint=path)
    with pytest.raises(ValueError, match="seed 0 then, 1 now"):
        smc(Normal(2), target, 30, seed=1, checkpoint=path)
    with pytest.raises(ValueError, match="kernel HMC"):
        smc(Normal(2), target, 30, seed=0, kernel=ULA(), checkpoint=path)
    with pytest.raises(ValueError, match="another target"):
        smc(Normal(2), BoltzmannDensity(lambda x: energy(x) + 1), 30, seed=0, checkpoint=path)
    with pytest.raises(ValueError, match="another proposal"):
        smc(Normal(2, 1.5), target, 30, seed=0, checkpoint=path)
    with pytest.raises(ValueError, match="another target"):
        smc(Normal(2), BoltzmannDensity(lambda x: 1.03 * energy(x)), 30, seed=0, checkpoint=path)
    smc(Normal(2), target, 30, seed=0, checkpoint=path, labels={"temperature": 300})  # of an earlier version
    path.unlink()
    smc(Normal(2), target, 30, seed=0, checkpoint=path, labels={"temperature": 300})
    with pytest.raises(ValueError, match="temperature 300 then, 301 now"):
        smc(Normal(2), target, 30, seed=0, checkpoint=path, labels={"temperature": 301})
    path.write_text("nothing")
    with pytest.raises(ValueError, match="no checkpoint of smc"):
        smc(Normal(2), target, 30, seed=0, checkpoint=path)
