"""``python -m molecular``: library functions whose options become arguments, in YAML files too (``--config``)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from molecular.commands.analysis import analyse
from molecular.commands.evaluation import evaluate
from molecular.commands.improvement import improve
from molecular.commands.options import MoleculeOptions
from molecular.commands.sampling import sample
from molecular.commands.simulation import simulate
from molecular.commands.training import train
from molecular.commands.trajectories import import_trajectory
from nflib.command_line import run_command

COMMANDS: dict[str, Callable[..., Any]] = {
    "simulate": simulate,
    "import": import_trajectory,
    "train": train,
    "sample": sample,
    "improve": improve,
    "evaluate": evaluate,
    "analyse": analyse,
}


# Options of lists, which are given again to append to them.
LISTS = ("samples", "force_field", "mixed_with", "trajectory", "variables", "basins")


def main(arguments: list[str] | None = None) -> None:
    """Run a command; a user's mistake ends in one sentence on standard error and exit status 1."""
    run_command(
        "python -m molecular",
        "Equilibrium ensembles of molecules.",
        COMMANDS,
        arguments,
        aliases={f"--{name}": f"--{name}+" for name in LISTS},
        groups=[MoleculeOptions],
        hidden=["energy", "starts"],
    )
