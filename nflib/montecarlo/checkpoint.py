"""The state of a sequential Monte Carlo run, on disk complete enough to go on bit for bit; nothing is pickled."""

from __future__ import annotations

import json
import zipfile
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nflib.montecarlo.archives import save_archive
from nflib.montecarlo.genealogy import NONE, Resamplings
from nflib.montecarlo.history import History
from nflib.montecarlo.path import Particles

__all__ = ["RunState", "load_state", "save_state"]


@dataclass
class RunState:
    """A run between two temperatures.

    The mean of `exp(log_weights)` is the normaliser so far. `step_size` is that of the next move, None before the
    first; `resamplings` are what the standard error needs of them; `num_rejected` counts the particles that were given
    weight zero for a position or density that was not finite; `num_evaluations` and `num_gradients` those of the
    target, in all processes that the run has had.
    """

    particles: Particles
    log_weights: Tensor
    ancestors: Tensor
    history: History
    inverse_temperature: float = 0.0
    step_size: float | None = None
    resamplings: Resamplings = NONE
    num_rejected: int = 0
    num_evaluations: int = 0
    num_gradients: int = 0


COUNTERS = ("inverse_temperature", "step_size", "num_rejected", "num_evaluations", "num_gradients")


def save_state(path: Path, state: RunState, generator: torch.Generator, settings: dict[str, Any]) -> None:
    """Write the state, the generator's and the settings to an .npz file; the folder is made."""
    arrays = {f"history.{name}": value for name, value in state.history.arrays().items()}
    arrays |= {
        f"particles.{name}": value.cpu().numpy()
        for name, value in state.particles._asdict().items()
        if value is not None
    }
    arrays["log_weights"] = state.log_weights.cpu().numpy()
    arrays["ancestors"] = state.ancestors.cpu().numpy()
    arrays["generator"] = generator.get_state().cpu().numpy()
    counters = {name: getattr(state, name) for name in COUNTERS} | {"resamplings": asdict(state.resamplings)}
    arrays["counters"] = np.array(json.dumps(counters))
    arrays["settings"] = np.array(json.dumps(settings))
    path.parent.mkdir(parents=True, exist_ok=True)
    save_archive(path, arrays)


def load_state(
    path: Path, generator: torch.Generator, settings: dict[str, Any], device: torch.device | None = None
) -> RunState | None:
    """The state in `path`, and the generator set to where it was; None if there is no such file.

    Raises ValueError for a file that cannot be read, or that belongs to a run with other settings.
    """
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = dict(stored)
        before = json.loads(str(arrays["settings"]))
        counters = json.loads(str(arrays["counters"]))
        counters["resamplings"] = Resamplings(**counters["resamplings"])
        tensors = {
            name: torch.from_numpy(value).to(device)
            for name, value in arrays.items()
            if name.startswith("particles.") or name in ("log_weights", "ancestors")
        }
        history = History.from_arrays(
            {name.removeprefix("history."): value for name, value in arrays.items() if name.startswith("history.")}
        )
        generator_state = torch.from_numpy(arrays["generator"])
    except (KeyError, TypeError, zipfile.BadZipFile, zlib.error, ValueError, EOFError) as error:
        raise ValueError(f"{path} is no checkpoint of smc ({error}); delete it, or name another file.") from error
    changed = [name for name in sorted(settings | before) if settings.get(name) != before.get(name)]
    if changed:
        differences = ", ".join(f"{name} {before.get(name)} then, {settings.get(name)} now" for name in changed)
        raise ValueError(f"{path} belongs to a run with other settings ({differences}); name another file.")
    generator.set_state(generator_state)
    particles = Particles(**{name: tensors.get(f"particles.{name}") for name in Particles._fields})  # type: ignore[arg-type]
    return RunState(particles, tensors["log_weights"], tensors["ancestors"], history, **counters)
