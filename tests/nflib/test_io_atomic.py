"""Files that are written whole or not at all: full disks, killed runs, two at once, permissions, names."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from nflib.io.atomic import check_writable, complete_file, complete_folder, only_run
from tests.nflib.full_disk import full_disk


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


WRITERS = {
    "text": lambda path: path.write_text("x" * 100_000),
    "safetensors": lambda path: save_file({"x": torch.zeros(100_000)}, path),
    "torch": lambda path: torch.save({"x": torch.zeros(100_000)}, path),
}


def one_sentence(error: pytest.ExceptionInfo) -> str:
    message = error.value.strerror if isinstance(error.value, OSError) and error.value.strerror else str(error.value)
    assert message.endswith(".") and "\n" not in message
    return message


@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_is_one_sentence_and_the_last_good_file_stays(writer, tmp_path):
    (tmp_path / "file").write_text("good")
    with pytest.raises(OSError) as error, full_disk(10_000), complete_file(tmp_path / "file") as temporary:
        WRITERS[writer](temporary)
    assert str(tmp_path) in one_sentence(error) and "keeps what it had" in str(error.value)
    assert names(tmp_path) == ["file"] and (tmp_path / "file").read_text() == "good"


def test_no_file_moves_before_all_are_written(tmp_path):
    (tmp_path / "a").write_text("good")
    with pytest.raises(OSError), full_disk(10_000), complete_folder(tmp_path) as temporary:
        (temporary / "a").write_text("new")
        (temporary / "b").write_text("x" * 100_000)
    assert names(tmp_path) == ["a"] and (tmp_path / "a").read_text() == "good"


def test_what_another_run_wrote_is_replaced_once_all_is_there(tmp_path):
    for name in ("map-1.csv", "map-2.csv", "other.csv"):
        (tmp_path / name).write_text("old")
    with suppress(ZeroDivisionError), complete_folder(tmp_path, replaces=["map-*.csv"]):
        raise ZeroDivisionError
    assert len(list(tmp_path.iterdir())) == 3
    (tmp_path / "map-3.csv").mkdir()
    with complete_folder(tmp_path, replaces=["map-*.csv"]) as folder:
        (folder / "map-1.csv").write_text("new")
    (tmp_path / "map-3.csv").rmdir()
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"map-1.csv": "new", "other.csv": "old"}


def test_whether_a_folder_can_be_written_leaves_nothing(tmp_path):
    check_writable(tmp_path / "new" / ".." / "other" / "deep")
    assert not list(tmp_path.iterdir())


def test_a_folder_of_other_content_is_not_replaced(tmp_path):
    for name in ("a", "text"):
        (tmp_path / name).mkdir()
    (tmp_path / "text" / "novel.txt").write_text("mine")
    with pytest.raises(FileExistsError) as error, complete_folder(tmp_path) as temporary:
        for name in ("a", "text"):
            (temporary / name).mkdir()
            (temporary / name / "config.json").write_text("new")
    assert "text holds other files (novel.txt)" in one_sentence(error)
    assert names(tmp_path) == ["a", "text"] and not names(tmp_path / "a") and names(tmp_path / "text") == ["novel.txt"]


def test_no_space_left(tmp_path):
    with pytest.raises(OSError, match="No space left on device.*another folder") as error, complete_folder(tmp_path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert error.value.errno == errno.ENOSPC


@pytest.mark.parametrize("mistake", [KeyError("x"), FileNotFoundError(errno.ENOENT, "gone"), KeyboardInterrupt()])
def test_other_errors_are_passed_on(mistake, tmp_path):
    with pytest.raises(type(mistake)) as error, complete_file(tmp_path / "file") as temporary:
        temporary.write_text("half")
        raise mistake
    assert error.value is mistake and names(tmp_path) == []


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="another folder"), complete_file(tmp_path / "file" / "model"):
        raise AssertionError("the block must not begin")


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_permissions_are_those_of_the_umask(umask, tmp_path):
    before = os.umask(umask)
    try:
        with complete_folder(tmp_path / "new") as temporary:
            save_file({"x": torch.zeros(3)}, temporary / "weights")
            (temporary / "inner").mkdir()
            (temporary / "inner" / "text").write_text("x")
    finally:
        os.umask(before)
    for path, full in (("weights", 0o666), ("inner/text", 0o666), ("inner", 0o777)):
        assert stat.S_IMODE((tmp_path / "new" / path).stat().st_mode) == full & ~umask


@pytest.mark.parametrize("name", ["ünï cödé", "模型", "with space", "🙂"])
def test_names_of_any_script(name, tmp_path):
    with complete_file(tmp_path / name / name) as temporary:
        save_file({"x": torch.zeros(3)}, temporary)
    assert names(tmp_path / name) == [name]


def test_no_file_replaces_a_folder(tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "precious").write_text("x")
    with pytest.raises(IsADirectoryError, match="results is a folder"), complete_file(tmp_path / "results"):
        raise AssertionError("the block is not to begin")
    assert names(tmp_path) == ["results"] and names(tmp_path / "results") == ["precious"]


def test_folders_are_replaced_whole_and_others_stay(tmp_path):
    for content in ("old", "new"):
        with complete_folder(tmp_path) as temporary:
            (temporary / "step").mkdir()
            for name in (content, "config.json"):
                (temporary / "step" / name).write_text(content)
        (tmp_path / "other").write_text("mine")
    assert names(tmp_path) == ["other", "step"] and names(tmp_path / "step") == ["config.json", "new"]


KILLED = """
import os, signal, sys, time
from nflib.io.atomic import complete_folder
with complete_folder(sys.argv[1]) as temporary:
    (temporary / "file").write_text("half")
    print("writing", flush=True)
    time.sleep(60)
"""


def start_writing(folder: Path) -> subprocess.Popen:
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "writing\n"
    return process


def test_what_a_killed_run_left_is_removed_by_the_next_one(tmp_path):
    process = start_writing(tmp_path)
    left = names(tmp_path)
    try:
        # While it lives, its files are its own.
        with complete_file(tmp_path / "other") as temporary:
            temporary.write_text("whole")
        assert names(tmp_path) == sorted([*left, "other"]) and left
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert names(tmp_path) == sorted([*left, "other"])
    with complete_file(tmp_path / "other") as temporary:
        temporary.write_text("again")
    assert names(tmp_path) == ["other"] and (tmp_path / "other").read_text() == "again"


def test_killed_between_two_renames_the_old_folder_comes_back(tmp_path):
    """The state of the disk at that moment, made by hand: the old folder moved aside, the new one not yet in place."""
    aside = tmp_path / ".incomplete-abc" / ".incomplete-step"
    aside.mkdir(parents=True)
    (aside / "good").write_text("good")
    (tmp_path / ".incomplete-abc" / "step").mkdir()
    with complete_file(tmp_path / "other") as temporary:
        temporary.write_text("x")
    assert names(tmp_path) == ["other", "step"] and names(tmp_path / "step") == ["good"]


def test_two_at_once(tmp_path):
    """Two processes write the same file over and over: at every moment it is one of theirs, whole."""
    script = """
import sys
from nflib.io.atomic import complete_file
for _ in range(20):
    with complete_file(sys.argv[1]) as temporary:
        temporary.write_text(sys.argv[2] * 10_000)
"""
    path = tmp_path / "file"
    processes = [subprocess.Popen([sys.executable, "-c", script, str(path), digit]) for digit in "01"]
    seen = set()
    while any(process.poll() is None for process in processes):
        if path.exists():
            text = path.read_text()
            assert len(text) == 10_000 and len(set(text)) == 1
            seen.add(text[0])
        time.sleep(0.01)
    assert [process.returncode for process in processes] == [0, 0]
    assert names(tmp_path) == ["file"] and seen


def test_where_there_are_no_locks_files_are_written_all_the_same(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("nflib.io.atomic.fcntl.flock", refuse)
    with only_run(tmp_path), complete_file(tmp_path / "file") as temporary:
        temporary.write_text("whole")
    assert names(tmp_path) == ["file"]


def test_a_forked_process_does_not_hold_the_folder(tmp_path):
    its_end, forks_end = os.pipe()
    with only_run(tmp_path):
        child = os.fork()
        if child == 0:
            os.write(forks_end, b"x")
            time.sleep(60)
            os._exit(0)
    os.read(its_end, 1)
    try:
        with only_run(tmp_path):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
