"""``python -m examples.moving_digits <train_autoencoder|train|recovery|evaluate>``, from a checkout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from examples.moving_digits.evaluate import evaluate
from examples.moving_digits.recovery import recovery
from examples.moving_digits.train import train, train_autoencoder
from nflib.command_line import run_command

COMMANDS: dict[str, Callable[..., Any]] = {
    "train_autoencoder": train_autoencoder,
    "train": train,
    "recovery": recovery,
    "evaluate": evaluate,
}


def main(arguments: list[str] | None = None) -> None:
    """Run a command; a user's mistake ends in one sentence on standard error and exit status 1."""
    run_command("python -m examples.moving_digits", "A video model of moving digits.", COMMANDS, arguments)


if __name__ == "__main__":
    main()
