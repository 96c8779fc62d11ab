"""Runs that end before their time: signals, errors, full disks, and files that were damaged since."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from nflib.io import only_run
from nflib.training import TrainingState, alone, checkpoints, fit, loop
from nflib.training.interruption import Interruption
from tests.nflib import train_tiny_flow as tiny
from tests.nflib.full_disk import full_disk
from tests.nflib.training_cases import Gaussian, Record, configuration, logged, normal

ROOT = Path(__file__).parents[2]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]


# --- signals --------------------------------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def interrupts_are_heard() -> Iterator[None]:
    """Also where the tests themselves run in the background of a shell, which lets them ignore SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nobody disturbed, with its losses."""
    output = tmp_path_factory.mktemp("whole")
    tiny.train_slowly(output, 0.0)
    return output


@contextmanager
def training(output: Path, *options: str, launcher: list[str] | None = None) -> Iterator[subprocess.Popen[str]]:
    """A process that trains, past its third step, in a process group of its own."""
    output.mkdir()
    command = [sys.executable, *(launcher or []), tiny.__file__, str(output), *options]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        deadline = time.monotonic() + 120
        while len(list(output.glob("pid-*"))) < (2 if launcher else 1):
            assert process.poll() is None and time.monotonic() < deadline, process.communicate()[1]
            time.sleep(0.05)
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def assert_goes_on(output: Path, uninterrupted: Path) -> None:
    """There is one checkpoint, before the end, and the run goes on from it bit for bit."""
    found = checkpoints.latest_checkpoint(output / "checkpoints")
    assert found is not None and len(list((output / "checkpoints").iterdir())) == 1
    stopped = int(found.name.removeprefix("step-"))
    assert 3 <= stopped < 30
    tiny.train_slowly(output, 0.0)
    for column, count in (("loss", 30), ("gradient_norm", 30), ("validation_loss", 8)):
        parts = [logged(output, column, version) for version in (0, 1)]
        assert parts[0] + parts[1] == logged(uninterrupted, column) and len(parts[0] + parts[1]) == count
    assert len(logged(output)) == stopped


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_signal_before_the_first_checkpoint_loses_nothing(
    tmp_path: Path, uninterrupted: Path, number: signal.Signals, workers: str
) -> None:
    with training(tmp_path / "run", "0.1", workers) as process:
        os.killpg(process.pid, number)  # to all of the group, as a terminal or a scheduler does
        _, errors = process.communicate(timeout=60)
    assert process.returncode == -number, errors
    assert "stopped by a signal after step" in errors
    assert ("KeyboardInterrupt" in errors) == (number == signal.SIGINT)
    assert_goes_on(tmp_path / "run", uninterrupted)


@pytest.mark.parametrize("target", ["launcher", "one"])
def test_several_processes_leave_together(tmp_path: Path, target: str) -> None:
    output = tmp_path / "run"
    with training(output, "0.1", launcher=TORCHRUN) as process:
        os.kill(process.pid if target == "launcher" else int((output / "pid-1").read_text()), signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    assert process.returncode != 0 and "stopped by a signal after step" in errors
    found = checkpoints.latest_checkpoint(output / "checkpoints")
    assert found is not None and len(logged(output)) == int(found.name.removeprefix("step-")) < 30


def test_a_second_run_is_refused_before_it_touches_anything(tmp_path: Path) -> None:
    unfinished = tmp_path / "checkpoints" / ".incomplete-step-000000005"
    unfinished.mkdir(parents=True)
    with only_run(tmp_path), pytest.raises(OSError, match="another run is at work"):
        fit(Gaussian(), normal(32, 2), config=configuration(), output=tmp_path)
    assert unfinished.exists() and [path.name for path in tmp_path.iterdir()] == ["checkpoints"]
    fit(Gaussian(), normal(32, 2), config=configuration(), output=tmp_path)
    assert not unfinished.exists()


def test_what_prepares_a_run_may_hold_its_folder(tmp_path: Path) -> None:
    with alone(tmp_path):
        fit(Gaussian(), normal(32, 2), config=configuration(), output=tmp_path)
        with ThreadPoolExecutor(1) as pool, pytest.raises(OSError, match="another run is at work"):
            pool.submit(lambda: alone(tmp_path).__enter__()).result()
    with only_run(tmp_path), pytest.raises(OSError, match="another run is at work"), alone(tmp_path):
        pytest.fail("not reached")


def test_a_second_interrupt_stops_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0, 0.5, 1.5])
    monkeypatch.setattr(time, "monotonic", lambda: next(times))
    with pytest.raises(KeyboardInterrupt), Interruption() as interruption:
        for number in (signal.SIGINT, signal.SIGINT):  # the second one is the launcher's, of the same Ctrl-C
            signal.raise_signal(number)
        assert interruption.signal == signal.SIGINT
        signal.raise_signal(signal.SIGINT)
        pytest.fail("not reached")


def test_handlers_are_put_back_and_get_the_signal(tmp_path: Path) -> None:
    received: list[int] = []

    def signalled(state: TrainingState) -> None:
        if state.step == 2:
            signal.raise_signal(signal.SIGTERM)
            assert not received

    before = signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    own = signal.getsignal(signal.SIGTERM)
    try:
        # The user's own handler lets the process live: fit then returns what there is.
        result = fit(Gaussian(), normal(32, 2), config=configuration(), output=tmp_path, callbacks=[signalled])
        assert received == [signal.SIGTERM] and result.steps == 3  # seen at the end of the step that follows
        assert signal.getsignal(signal.SIGTERM) is own
        received.clear()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        result = fit(Gaussian(), normal(32, 2), config=configuration(), output=tmp_path / "b", callbacks=[signalled])
        assert result.steps == 12
    finally:
        signal.signal(signal.SIGTERM, before)


def test_other_threads_train_too(tmp_path: Path) -> None:
    results = []
    train = threading.Thread(
        target=lambda: results.append(fit(Gaussian(), normal(32, 2), config=configuration(), output=tmp_path))
    )
    train.start()
    train.join()
    assert results[0].steps == 12


@pytest.mark.parametrize("seconds", [None, 600.0])
def test_the_first_checkpoint_comes_early(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float | None
) -> None:
    assert loop.FIRST_CHECKPOINT_SECONDS <= 60
    monkeypatch.setattr(loop, "FIRST_CHECKPOINT_SECONDS", 1e-9)
    config = configuration(checkpoint_interval=None, checkpoint_seconds=seconds)
    with pytest.raises(InterruptedError):
        fit(Gaussian(), normal(32, 2), config=config, output=tmp_path, callbacks=[Record(fail_at=8)])
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000000001"]


# --- errors ---------------------------------------------------------------------------------------


def test_an_error_in_validation_or_a_callback_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    class Fails(Gaussian):
        def log_prob(self, inputs: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:
            if len(inputs) == 7:
                raise InterruptedError("in validation")
            return super().log_prob(inputs, context)

    whole, second = Record(), Record()
    data, config = normal(32, 2), configuration(validation_interval=8)
    fit(Gaussian(), data, normal(9, 2), config=config, output=tmp_path / "whole", callbacks=[whole])
    with pytest.raises(InterruptedError, match="in validation"):
        fit(Fails(), data, normal(7, 2), config=config, output=tmp_path / "parts")
    fit(Gaussian(), data, normal(9, 2), config=config, output=tmp_path / "parts", callbacks=[second])
    assert second.steps[0] == 6 and second.losses == whole.losses[5:]


@pytest.mark.parametrize("size", [100, 1000, 2000, 4000])  # stops the logs, the weights, the record
def test_a_full_disk_is_one_sentence_and_leaves_the_last_checkpoint(tmp_path: Path, size: int) -> None:
    def fill(state: TrainingState) -> None:
        if state.step == 7:
            stack.append(full_disk(size))
            stack[0].__enter__()

    stack: list = []
    whole, second = Record(), Record()
    data = normal(32, 3)
    fit(tiny.tiny_flow(), data, config=configuration(), output=tmp_path / "whole", callbacks=[whole])
    try:
        with pytest.raises(OSError, match=r"parts/.* \(.+\).*; make room") as caught:
            fit(tiny.tiny_flow(), data, config=configuration(), output=tmp_path / "parts", callbacks=[fill])
    finally:
        stack[0].__exit__(None, None, None)
    assert "\n" not in str(caught.value)
    folder = tmp_path / "parts" / "checkpoints"
    assert [path.name for path in folder.iterdir()] == ["step-000000005"]
    fit(tiny.tiny_flow(), data, config=configuration(), output=tmp_path / "parts", callbacks=[second])
    assert second.losses == whole.losses[5:]


def test_the_working_directory_may_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def leave(state: TrainingState) -> None:
        os.chdir(tmp_path / "elsewhere")

    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    fit(Gaussian(), normal(32, 2), config=configuration(), output="run", callbacks=[leave])
    assert not list((tmp_path / "elsewhere").iterdir())
    assert len(logged(tmp_path / "run")) == 12 and len(list((tmp_path / "run/checkpoints").iterdir())) == 2


@pytest.mark.parametrize("row", [torch.tensor([torch.nan, 0.0]), None])  # an error in this process, and in the worker's
def test_an_error_leaves_no_worker(tmp_path: Path, row: torch.Tensor | None) -> None:
    """While the error is kept: at its end Python waits for workers, which are deaf to signals."""
    data: list = [*normal(32, 2)]
    data[20] = row
    with pytest.raises((ValueError, AttributeError)) as kept:
        fit(Gaussian(), Rows(data), config=configuration(num_workers=1), output=tmp_path)
    assert kept.value is not None and not multiprocessing.active_children()


class Rows(torch.utils.data.Dataset):
    def __init__(self, rows: list) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.rows[index]


class Growing:
    """A source whose state is of another kind once it has been at work."""

    def __init__(self, first: object) -> None:
        self.state = first

    def __len__(self) -> int:
        return 32

    def batch(self, indices: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"inputs": normal(32, 2)[indices]}

    def state_dict(self) -> dict[str, object]:
        return {"state": self.state}

    def load_state_dict(self, state: dict[str, object]) -> None:
        self.state = state["state"]


@pytest.mark.parametrize(("first", "later"), [(1, 0.5), (None, torch.ones(2))])
def test_what_a_source_keeps_may_become_a_fraction_or_a_tensor(tmp_path: Path, first: object, later: object) -> None:
    source, second = Growing(first), Growing(first)
    source.state = later
    fit(Gaussian(), source, config=configuration(), output=tmp_path)
    fit(Gaussian(), second, config=configuration(max_steps=13), output=tmp_path)
    assert str(second.state) == str(later)


def test_what_could_not_be_read_again_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"the state_dict of Growing holds more than tensors .* n\.item\(\)\)\.$"):
        fit(Gaussian(), Growing(np.float64(3)), config=configuration(), output=tmp_path)
    assert checkpoints.latest_checkpoint(tmp_path / "checkpoints") is None


def test_what_a_killed_run_left_is_removed(tmp_path: Path) -> None:
    fit(Gaussian(), normal(32, 2), config=configuration(), output=tmp_path)
    for left in (
        "checkpoints/.incomplete-abc/step-000000099",
        "checkpoints/.incomplete-step-1",
        "model/.incomplete-abc",
    ):
        (tmp_path / left).mkdir(parents=True)
        (tmp_path / left / checkpoints.TRAINING).write_bytes(b"half")
    fit(Gaussian(), normal(32, 2), config=configuration(max_steps=13), output=tmp_path)
    assert not list(tmp_path.rglob(".*"))


def test_an_error_of_the_device_is_no_full_disk(tmp_path: Path) -> None:
    class Broken(Gaussian):
        def state_dict(self, *args: object, **options: object) -> dict:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(RuntimeError, match="^CUDA error: an illegal memory access was encountered$"):
        checkpoints.save_model(Broken(), tmp_path)
    assert not list(tmp_path.iterdir())


# --- damaged files --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("trained")
    fit(tiny.tiny_flow(), normal(32, 3), config=configuration(max_steps=2), output=output)
    return output


@pytest.fixture
def record(trained: Path, tmp_path: Path) -> Path:
    """training.pt of a copy of a trained run, in tmp_path/run."""
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run" / "checkpoints" / "step-000000002" / checkpoints.TRAINING


@contextmanager
def changed(record: Path, path: str = "") -> Iterator[dict]:
    """What stands in training.pt under a path of keys, to be changed."""
    content = part = torch.load(record, weights_only=True)
    for key in path.split("/")[:-1]:
        part = part[key]
    yield part
    torch.save(content, record)


def resume(output: Path) -> None:
    fit(tiny.tiny_flow(), normal(32, 3), config=configuration(max_steps=3), output=output)


def assert_damaged(output: Path) -> None:
    with pytest.raises(ValueError, match=r"step-000000002 is damaged \(.+\); remove that folder") as caught:
        resume(output)
    assert "\n" not in str(caught.value)


KEYS = "config feed state optimizer ema_updates state/step state/best_step feed/order feed/source feed/order/length "
KEYS += "optimizer/state optimizer/param_groups"


@pytest.mark.parametrize("key", KEYS.split())
def test_a_key_that_is_missing(record: Path, tmp_path: Path, key: str) -> None:
    last = key.split("/")[-1]
    with changed(record, key) as part:
        value = part.pop(last)
    assert_damaged(tmp_path / "run")
    with changed(record, key) as part:
        part[last] = [] if isinstance(value, dict) else {}
    if last != "source":
        assert_damaged(tmp_path / "run")


def test_files_of_another_kind(record: Path, tmp_path: Path) -> None:
    for content in (b"", b"[]", b"text, not tensors\n" * 100, b"PK\x03\x04" + bytes(1000)):
        record.write_bytes(content)
        assert_damaged(tmp_path / "run")
    for value in ([], torch.zeros(3), {}):
        torch.save(value, record)
        assert_damaged(tmp_path / "run")
    record.unlink()
    assert_damaged(tmp_path / "run")


@pytest.mark.parametrize("name", [checkpoints.TRAINING, checkpoints.WEIGHTS])
def test_damaged_bytes_are_told_or_harmless(record: Path, tmp_path: Path, name: str) -> None:
    path = record.with_name(name)
    good = path.read_bytes()
    generator = torch.Generator().manual_seed(0)
    for place in torch.randint(len(good), (25,), generator=generator).tolist():
        for content in (good[:place], good[:place] + bytes(8) + good[place + 8 :]):
            path.write_bytes(content)
            try:
                resume(tmp_path / "run")
            except ValueError as error:
                assert "step-000000002" in str(error) and "\n" not in str(error)
            last = tmp_path / "run" / "checkpoints" / "step-000000003"
            if last.exists():
                shutil.rmtree(last)


def test_weights_that_are_others_but_could_be_right(record: Path, tmp_path: Path) -> None:
    """A single bit, or the weights of another run: sound files, from which training went on."""
    weights = record.with_name(checkpoints.WEIGHTS)
    state = load_file(weights)
    next(iter(state.values())).view(-1)[0] += 1.0
    save_file(state, weights)
    assert_damaged(tmp_path / "run")
    with changed(record) as content:
        del content["checksum"]  # as earlier versions wrote it
    resume(tmp_path / "run")


def test_moments_of_other_weights(record: Path, tmp_path: Path) -> None:
    with changed(record) as content:
        content["optimizer"]["state"][0]["exp_avg"] = torch.zeros(7)
    assert_damaged(tmp_path / "run")


@pytest.mark.parametrize("name", ["step", "exp_avg_sq"])
def test_negative_moments(record: Path, tmp_path: Path, name: str) -> None:
    with changed(record) as content:
        content["optimizer"]["state"][0][name] -= 5.0
    assert_damaged(tmp_path / "run")


@pytest.mark.parametrize("count", [-10, True])
@pytest.mark.parametrize("key", ["ema_updates", "state/step", "state/skipped_steps", "feed/order/first_step"])
def test_counts_that_are_none(record: Path, tmp_path: Path, key: str, count: int) -> None:
    with changed(record, key) as part:
        part[key.split("/")[-1]] = count
    assert_damaged(tmp_path / "run")


def test_a_finished_run_whose_model_is_gone(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "run")
    model = tmp_path / "run" / "model" / "model.safetensors"
    model.write_bytes(b"text")
    for _ in range(2):
        with pytest.raises(ValueError, match="model cannot be read"):
            fit(tiny.tiny_flow(), normal(32, 3), config=configuration(max_steps=2), output=tmp_path / "run")
        model.unlink(missing_ok=True)
