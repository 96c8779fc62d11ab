"""``python -m video``: library functions whose options become arguments, in YAML files too (``--config``)."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

from nflib.command_line import run_command
from video.commands.app import app
from video.commands.edit import edit
from video.commands.evaluate import evaluate
from video.commands.generate import generate
from video.commands.likelihood import likelihood
from video.commands.options import DrawingOptions, ModelOptions, OutputOptions
from video.conversion.convert import convert
from video.data.options import FolderOptions
from video.training.autoencoder import AutoencoderOptions
from video.training.families import FlowOptions
from video.training.flow import train
from video.training.folder import train_autoencoder_on_folder

COMMANDS: dict[str, Callable[..., Any]] = {
    "generate": generate,
    "edit": edit,
    "likelihood": likelihood,
    "convert": convert,
    "train": train,
    "train_autoencoder": train_autoencoder_on_folder,
    "evaluate": evaluate,
    "app": app,
}
# Words that are no names in Python, and options that are given again to append to them.
ALIASES = {"--continue": "--continue_clip", "--others": "--others+", "--prompt": "--prompt+"}


def _quoted(arguments: Sequence[str]) -> list[str]:
    """The arguments, with each prompt as a JSON list of one: prompts are text, whatever they would mean in YAML."""
    quoted: list[str] = []
    for argument in arguments:
        option, equals, text = argument.partition("=")
        if quoted and quoted[-1] == "--prompt":
            argument = json.dumps([argument])
        elif option == "--prompt" and equals:
            argument = f"--prompt={json.dumps([text])}"
        quoted.append(argument)
    return quoted


def main(arguments: list[str] | None = None) -> None:
    """Run a command; a user's mistake ends in one sentence on standard error and exit status 1."""
    arguments = sys.argv[1:] if arguments is None else arguments
    run_command(
        "python -m video",
        "Images and video from text, with likelihoods.",
        COMMANDS,
        _quoted(arguments),
        positional=("edit", "likelihood"),
        aliases=ALIASES,
        groups=[FolderOptions, FlowOptions, AutoencoderOptions, ModelOptions, DrawingOptions, OutputOptions],
    )
