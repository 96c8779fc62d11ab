"""Functions as commands: which errors are told in one sentence, and which keep their traceback."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from nflib.command_line import run_command
from nflib.errors import ComputationError


@pytest.mark.parametrize("error", [ValueError, FileNotFoundError, ComputationError, torch.OutOfMemoryError])
def test_what_a_user_can_mend_is_one_sentence(error: type[Exception]) -> None:
    def go() -> None:
        raise error("it is so, do this.")

    with pytest.raises(SystemExit, match=r"^error: it is so, do this\.$"):
        run_command("program", "Does it.", {"go": go}, ["go"])


@pytest.mark.parametrize(("rank", "level"), [("0", logging.INFO), ("1", logging.ERROR)])
def test_of_the_processes_of_torchrun_one_tells(monkeypatch: pytest.MonkeyPatch, rank: str, level: int) -> None:
    told: list[int] = []
    monkeypatch.setattr(logging, "basicConfig", lambda *, level, format: told.append(level))
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    monkeypatch.setenv("RANK", rank)
    run_command("program", "Does it.", {"go": lambda: None}, ["go"])
    assert told == [level]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--length", "300K", "--out", "a"], "--length is 300K; give a number."),
        (["--number", "1e3", "--out", "a"], "--number is 1000.0; give a whole number."),
        (["--number", "1"], "out is missing; --help says what there is."),
        (["--out", "a", "--number", ""], "--number is ; give a whole number."),
        (["--out", "a", "--flag", "maybe"], "--flag is maybe; give true or false."),
        (["--out", "a", "b"], "b is of no option; give --out again for each."),
        (["--out", "a", "--bogus", "1"], "unrecognized arguments: --bogus 1; --help says what there is."),
    ],
)
def test_options_that_cannot_be_read_are_one_sentence(arguments: list[str], told: str) -> None:
    def go(out: list[Path], number: int = 1, length: float | None = None, flag: bool = False) -> None:
        """Go."""

    with pytest.raises(SystemExit) as stop:
        run_command("program", "Does it.", {"go": go}, ["go", *arguments], aliases={"--out": "--out+"})
    assert stop.value.code == f"error: {told}"


def test_files_that_are_given_again_are_no_list_in_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    def go(out: list[Path]) -> None:
        """Go."""

    with pytest.raises(SystemExit):
        run_command("program", "Does it.", {"go": go}, ["go", "--help"], aliases={"--out": "--out+"})
    assert "--out FILE, --out+ FILE" in capsys.readouterr().out


def test_mistakes_of_the_program_keep_their_traceback() -> None:
    def go() -> None:
        torch.ones(2) @ torch.ones(3)

    with pytest.raises(RuntimeError, match="inconsistent tensor size"):
        run_command("program", "Does it.", {"go": go}, ["go"])
