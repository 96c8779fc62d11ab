"""Functions as commands: their arguments become options, in YAML files too (``--config``). Needs jsonargparse."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import itertools
import json
import logging
import re
import signal
import sys
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import jsonargparse
import torch
import yaml

from nflib.errors import ComputationError
from nflib.processes import is_first_process

# Not RuntimeError, which torch raises for mistakes of the program: their traceback is wanted.
USER_ERRORS = (ValueError, OSError, ComputationError, ModuleNotFoundError, torch.OutOfMemoryError)
# What jsonargparse calls the types of options, and what to give for each.
KINDS = {"int": "a whole number", "float": "a number", "bool": "true or false"}


def run_command(
    program: str,
    description: str,
    commands: Mapping[str, Callable[..., None]],
    arguments: Sequence[str] | None = None,
    *,
    positional: Collection[str] = (),
    aliases: Mapping[str, str] | None = None,
    groups: Collection[type] = (),
    hidden: Collection[str] = (),
) -> None:
    """Run a function as a command of a program, with options for its arguments.

    Options may be written with dashes or underscores. A user's mistake ends in one sentence on standard error and exit
    status 1. Under torchrun the first process alone writes to the log, but for errors.

    Args:
        program: its name, for help.
        description: what it does, for help.
        commands: the functions, by the names of the commands; the first paragraph of a docstring is shown as help.
        arguments: of the command line (default: those of the process).
        positional: commands whose required arguments need no option's name.
        aliases: from options that are no names in Python, such as ``--continue``, to those that stand for them.
        groups: dataclasses whose fields are options of their own where a command has a parameter of such a type, so
            that commands share them.
        hidden: parameters that are no options.
    """
    # Of the processes of torchrun one tells what all of them do.
    logging.basicConfig(level=logging.INFO if is_first_process() else logging.ERROR, format="%(message)s")
    parser = jsonargparse.ArgumentParser(prog=program, description=description, exit_on_error=False)
    subcommands = parser.add_subcommands(required=True, dest="command")
    for name, function in commands.items():
        summary = (function.__doc__ or "").split("\n\n")[0]
        command = jsonargparse.ArgumentParser(description=summary, exit_on_error=False)
        if not _has_config(function):
            command.add_argument("--config", action="config", help="a YAML file with these options")
        grouped = _grouped(function, groups)
        command.add_function_arguments(function, as_positional=name in positional, skip={*grouped, *hidden})
        for group in grouped.values():
            command.add_class_arguments(group)
        for action in command._actions:
            if "LIST_OF_PATHS_FILE" in str(action.metavar):  # jsonargparse names it, but reads none
                action.metavar = "FILE"
        subcommands.add_subcommand(name, command, help=summary)
    given = [_option(argument, aliases or {}) for argument in (sys.argv[1:] if arguments is None else arguments)]
    if given and given[0] in commands and not _has_config(commands[given[0]]):
        given = _configured(given, aliases or {})
    try:
        options = parser.instantiate_classes(parser.parse_args(given))
        chosen = dict(options[options.command].items())
        function = commands[options.command]
        if not _has_config(function):
            chosen.pop("config", None)
        _refuse_empty_paths(function, given)
        for parameter, group in _grouped(function, groups).items():
            chosen[parameter] = group(**{field.name: chosen.pop(field.name) for field in dataclasses.fields(group)})
        function(**chosen)
    except argparse.ArgumentError as error:
        sys.exit(f"error: {_told(str(error), given)}")
    except USER_ERRORS as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:  # what can be kept has been written by then
        sys.exit(128 + signal.SIGINT)


def refuse_given(options: Mapping[str, object], reason: str) -> None:
    """Raise ValueError, with the reason, for the first of some options (by name) that is not None."""
    for name, value in options.items():
        if value is not None:
            raise ValueError(f"--{name} {reason}; leave it out.")


def _told(message: str, given: Sequence[str]) -> str:
    """What jsonargparse has against the arguments, in one sentence."""
    message = re.sub(r'^Parser key "(.+?)":', r"--\1:", " ".join(message.split()))
    wrong = re.match(r"(\S+): .*(?:Given|Got) value: ?(.*)", message)
    kinds = [words for kind, words in KINDS.items() if f"<class '{kind}'>" in message]
    if wrong and kinds:
        return f"{wrong[1]} is {wrong[2]}; give {' or '.join(kinds)}."
    if missing := re.fullmatch(r"the following arguments are required: (.+)", message):
        names = " and ".join(name.partition(".")[2] or name for name in missing[1].split(", "))
        return f"{names} {'are' if ' and ' in names else 'is'} missing; --help says what there is."
    for option, _, more in zip(given, given[1:], given[2:], strict=False):
        if message.startswith("unrecognized") and re.match(r"--\w+\+$", option) and not more.startswith("-"):
            return f"{more} is of no option; give {option[:-1]} again for each."
    return f"{message.rstrip('.')}; --help says what there is."


def _has_config(function: Callable[..., None]) -> bool:
    """Whether a function has a configuration of its own, which then is what --config names."""
    return "config" in inspect.signature(function).parameters


def _refuse_empty_paths(function: Callable[..., None], given: Sequence[str]) -> None:
    """An empty path would be the present folder, which nobody means by it."""
    hints = typing.get_type_hints(function)
    for option, value in itertools.pairwise([*itertools.chain.from_iterable(a.split("=", 1) for a in given), "end"]):
        if value == "" and option.startswith("--") and hints.get(option[2:]) in (Path, Path | None):
            raise ValueError(f"{option} is empty; name a path.")


def _grouped(function: Callable[..., None], groups: Collection[type]) -> dict[str, Any]:
    """The parameters of a function whose type is one of the groups."""
    hints = typing.get_type_hints(function)
    return {name: hint for name, hint in hints.items() if name != "return" and hint in groups}


def _option(argument: str, aliases: Mapping[str, str]) -> str:
    """An option's name as the function has it: --first-frame is --first_frame."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    name = "--" + name[2:].replace("-", "_")
    return aliases.get(name, name) + equals + value


def _configured(arguments: Sequence[str], aliases: Mapping[str, str]) -> list[str]:
    """The arguments, with files of options after --config as `_as_options` reads them."""
    read: list[str] = []
    for argument in arguments:
        option, equals, path = argument.partition("=")
        if read and read[-1] == "--config":
            argument = _as_options(argument, aliases)
        elif option == "--config" and equals:
            argument = f"--config={_as_options(path, aliases)}"
        read.append(argument)
    return read


def _as_options(path: str, aliases: Mapping[str, str]) -> str:
    """The options in a YAML file as JSON: as on the command line, aliases hold, and one of a list needs no list.

    The path itself where that changes nothing, and where it cannot be read, for the parser to say so.
    """
    try:
        given = yaml.safe_load(Path(path).read_text(encoding="utf-8-sig"))
        options = {_option(f"--{name}", aliases).removeprefix("--"): given[name] for name in given}
    except (OSError, UnicodeDecodeError, yaml.YAMLError, TypeError, AttributeError):
        return path
    lists = [name for name in options if name.endswith("+")]
    for name in lists:
        value = options.pop(name)
        options[name[:-1]] = value if isinstance(value, list | None) else [str(value)]
    return json.dumps(options, default=str) if lists or options != given else path
