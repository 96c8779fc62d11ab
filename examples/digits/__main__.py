"""``python -m examples.digits <write|evaluate>``, from a checkout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from examples.digits.data import write
from examples.digits.evaluate import evaluate
from nflib.command_line import run_command

COMMANDS: dict[str, Callable[..., Any]] = {"write": write, "evaluate": evaluate}


def main(arguments: list[str] | None = None) -> None:
    """Run a command; a user's mistake ends in one sentence on standard error and exit status 1."""
    run_command("python -m examples.digits", "A flow of handwritten digits.", COMMANDS, arguments)


if __name__ == "__main__":
    main()
