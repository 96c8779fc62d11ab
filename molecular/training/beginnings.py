"""What a run was begun with, so that it goes on with the same."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nflib.io import differences, read_json, write_json
from nflib.processes import is_first_process
from nflib.training import has_begun

# In the folder of a run.
CONFORMATIONS = "conformations.json"
FINGERPRINTED = 1000


def some_rows(count: int) -> Tensor:
    """Numbers of some of so many rows, evenly spaced: those by which data are told from others."""
    return torch.linspace(0, count - 1, min(count, FINGERPRINTED), dtype=torch.float64).long()


def check_initial(initial: str | Path | None, architecture: Mapping[str, Any], refit_marginals: bool) -> None:
    """Raise ValueError for an architecture beside an initial flow, which has its own, or a refit without one."""
    if initial is None and refit_marginals:
        raise ValueError("refit_marginals is for an initial flow; a new one is fitted in any case: leave it out.")
    if initial is not None and architecture:
        names = ", ".join(architecture)
        raise ValueError(f"the initial flow has its own {names}: leave {names} out, or initial.")


def refuse_another_beginning(
    output: Path, data: str | Path, conformations: str | None, initial: str | None, settings: Mapping[str, Any]
) -> None:
    """Raise ValueError where the run in a folder was begun with others than these; a new run's are written down.

    Other conformations, of another temperature or force field, may well be as many. Runs of earlier versions tell none.

    Args:
        output: folder of the run.
        data: where conformations are from, for the message.
        conformations: their fingerprint; None where they have none.
        initial: the fingerprint of the flow that it starts from; None for a new one.
        settings: of its objective, by name.
    """
    now = {"fingerprint": conformations, "initial": initial}
    path = output / CONFORMATIONS
    if not has_begun(output):
        if is_first_process():
            write_json(path, now | {"settings": dict(settings)})
        return
    begun = read_json(path) if path.is_file() else {}
    changed = [name for name, value in now.items() if None not in (begun.get(name), value) and begun[name] != value]
    if "fingerprint" in changed:
        raise ValueError(
            f"the run in {output} was begun with other conformations than those in {data}, as of another temperature, "
            "force field or seed; go on with the same data, or choose another output."
        )
    if changed:
        raise ValueError(
            f"the run in {output} was begun from another flow than this one; go on from the same, or choose another "
            "output."
        )
    before = begun.get("settings", {})
    if told := differences(before, {name: value for name, value in settings.items() if name in before}):
        raise ValueError(
            f"the run in {output} was begun with other settings ({told}); go on with the same, or choose another "
            "output."
        )
