"""Functions as commands: which errors are told in one sentence, and which keep their traceback."""

from __future__ import annotations

import logging

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


def test_mistakes_of_the_program_keep_their_traceback() -> None:
    def go() -> None:
        torch.ones(2) @ torch.ones(3)

    with pytest.raises(RuntimeError, match="inconsistent tensor size"):
        run_command("program", "Does it.", {"go": go}, ["go"])
