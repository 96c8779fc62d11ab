"""The state of a sequential Monte Carlo run, on disk complete enough to go on bit for bit; nothing is pickled."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nflib.errors import first_line
from nflib.events import finite_rows
from nflib.io.arrays import read_arrays, within, write_arrays
from nflib.io.documents import differences
from nflib.montecarlo.genealogy import Resamplings
from nflib.montecarlo.history import History
from nflib.montecarlo.path import Particles
from nflib.montecarlo.run import RunState

__all__ = ["load_state", "save_state"]

MESSAGE = "{path} is no checkpoint of smc ({reason}); delete it, or name another file."
PARTICLES = tuple(f"particles.{name}" for name in Particles._fields)
ARRAYS = {"particles.x": "fiu", "particles.log_proposal": "f", "particles.log_target": "f", "log_weights": "f"}
ARRAYS |= {"ancestors": "iu", "generator": "iu", "counters": "U", "settings": "U"}
GRADIENTS = {"particles.proposal_gradient": "f", "particles.target_gradient": "f"}
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
    write_arrays(path, arrays)


def load_state(
    path: Path, generator: torch.Generator, settings: dict[str, Any], device: torch.device | None = None
) -> RunState:
    """The state in `path`, and the generator set to where it was.

    Raises ValueError for a file that cannot be read, or that belongs to a run with other settings.
    """
    arrays = read_arrays(path, ARRAYS, GRADIENTS, MESSAGE)
    try:
        before = json.loads(str(arrays["settings"]))
        state = _state(arrays, json.loads(str(arrays["counters"])), device)
        generator_state = torch.from_numpy(arrays["generator"])
        torch.Generator(generator.device).set_state(generator_state)  # which refuses what is none
        if not isinstance(before, dict):
            raise ValueError("its settings are none")
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(MESSAGE.format(path=path, reason=first_line(error))) from error
    # Earlier versions did not write all of them.
    if changed := differences({**settings, **before}, settings):
        raise ValueError(f"{path} belongs to a run with other settings ({changed}); name another file.")
    generator.set_state(generator_state)
    return state


def _state(arrays: dict[str, NDArray], counters: dict[str, Any], device: torch.device | None) -> RunState:
    """The state in the arrays of a file; whatever is wrong with them is raised."""
    tensors = {name: torch.from_numpy(value).to(device) for name, value in arrays.items() if name in PARTICLES}
    particles = Particles(**{name: tensors.get(f"particles.{name}") for name in Particles._fields})  # type: ignore[arg-type]
    resamplings = Resamplings(**counters.pop("resamplings"))
    history = History.from_arrays(within("history", arrays))
    log_weights, ancestors = (torch.from_numpy(arrays[name]).to(device) for name in ("log_weights", "ancestors"))
    state = RunState(particles, log_weights, ancestors, history, resamplings=resamplings, **counters)
    _check(state)
    return state


def _check(state: RunState) -> None:
    """Raise ValueError, or TypeError, for numbers that no run arrives at."""
    particles, count, alive = state.particles, len(state.particles.x), state.particles.alive
    rows = {"log_weights": state.log_weights, "ancestors": state.ancestors}
    rows |= {"log_proposal": particles.log_proposal, "log_target": particles.log_target}
    gradients = {"proposal_gradient": particles.proposal_gradient, "target_gradient": particles.target_gradient}
    for name, value in rows.items():
        if value.shape != (count,) or not bool((value < torch.inf).all()):
            raise ValueError(f"its {name} are not those of {count} particles")
    for name, gradient in gradients.items():
        both = (particles.proposal_gradient is None) == (particles.target_gradient is None)
        if not both or (gradient is not None and gradient.shape != particles.x.shape):
            raise ValueError(f"its {name} is not that of {count} particles")
    points = [value for value in (particles.x, *gradients.values()) if value is not None]
    if not all(bool(finite_rows(value[alive]).all()) for value in points):
        raise ValueError("its particles are not finite")
    numbers = [*asdict(state.resamplings).values(), *(getattr(state, name) for name in COUNTERS)]
    if not all(isinstance(number, (int, float, type(None))) for number in numbers):
        raise TypeError("its counters are no numbers")
    steps = state.history.inverse_temperatures
    if state.inverse_temperature != (steps[-1] if steps else 0.0):
        raise ValueError("its counters are not those of its history")
    if min(state.num_rejected, state.num_evaluations, state.num_gradients, int(state.ancestors.min())) < 0:
        raise ValueError("its counters are negative")
