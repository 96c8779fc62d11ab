"""Parallel tempering: groups of replicas, one at each temperature, whose neighbours exchange conformations."""

import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from molecular.dynamics.checkpoint import CHECKPOINT, load_checkpoint, save_checkpoint
from molecular.dynamics.frames import Frames, FrameWriter, list_shards
from molecular.dynamics.langevin import EnergyAndForce, Langevin
from molecular.dynamics.replicas import MakeIntegrator, Replicas, TemperingSettings
from nflib.threads import one_thread

MAX_PENDING_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Trajectories:
    """The result of `parallel_tempering`.

    Args:
        report: plain numbers, as report.json holds them.
        writer: that the frames were written by.
    """

    report: dict[str, object]
    writer: FrameWriter

    @property
    def frames(self) -> Frames | None:
        """All frames, read from their shards at each call; None where there are none."""
        return self.writer.frames()


def geometric_temperatures(lowest: float, highest: float, number: int) -> tuple[float, ...]:
    """Temperatures in geometric progression, both ends included; of one temperature, the lowest.

    Args:
        lowest: K.
        highest: K.
        number: how many.

    Raises:
        ValueError: temperatures that are not positive and in order, or a number below 1.

    >>> [round(temperature) for temperature in geometric_temperatures(300.0, 600.0, 3)]
    [300, 424, 600]
    """
    if number == 1:
        return (float(lowest),)
    if not 0 < lowest < highest or number < 1:
        raise ValueError(f"temperatures need 0 < lowest < highest, not {lowest} and {highest} with {number} of them.")
    return tuple(float(value) for value in np.geomspace(lowest, highest, number))


@torch.no_grad()
def parallel_tempering(
    energy: EnergyAndForce,
    masses: Tensor,
    start: Tensor,
    settings: TemperingSettings,
    *,
    num_steps: int,
    generator: torch.Generator,
    progress: bool = True,
    checkpoint: Path | None = None,
    checkpoint_seconds: float = 60.0,
    storage: str = "float32",
    integrator: MakeIntegrator = Langevin,
    degrees_of_freedom: int | None = None,
) -> Trajectories:
    """Parallel tempering: Langevin dynamics of all replicas in one batch, with swaps inside each replica group.

    Every ``swap_interval`` steps neighbours i, j exchange conformations with probability
    ``min(1, exp((1/kT_i - 1/kT_j)(E_i - E_j)))`` (even and odd pairs in turn), velocities scaled by the root
    of the temperature ratio. Before that all replicas spend ``hot_steps`` at the highest temperature, without swaps.
    Every ``save_interval`` steps after ``hot_steps + equilibration_steps`` the ``saved_temperatures`` lowest
    temperatures are saved. A replica that blows up is restarted from a sound one and counted in the report.

    Args:
        energy: energies and forces of batches; see `EnergyAndForce`.
        masses: (n,) amu.
        start: (n, 3), or one for each replica (B, n, 3), nm; its dtype and device are those of the
            simulation.
        settings: temperatures, replica groups, time step and intervals.
        num_steps: steps of production.
        generator: on the device of ``start``.
        progress: show a bar.
        checkpoint: a folder for shards of frames and the checkpoint, rewritten every ``checkpoint_seconds``.
            Called again with the same settings the simulation goes on from there (or is extended to a larger
            ``num_steps``). A run that is killed at any moment loses what came after its last checkpoint, no more.
        checkpoint_seconds: wall-clock time between checkpoints.
        storage: of the frames in shards: "float32", "float16" or "xtc".
        integrator: makes the integrator from masses, temperatures (B,), time step and friction.
        degrees_of_freedom: of one molecule; fewer than 3n where the integrator keeps constraints.

    Raises:
        ValueError: shapes that make no sense, or a checkpoint made with other settings.
    """
    hot_steps, timestep = settings.hot_steps, settings.timestep
    batch = settings.num_replica_groups * len(settings.temperatures)
    if start.dim() == 2:
        start = start.expand(batch, *start.shape)
    if start.shape != (batch, len(masses), 3):
        raise ValueError(f"start has shape {tuple(start.shape)} but (n, 3) or {(batch, len(masses), 3)} is needed.")
    replicas = Replicas(energy, masses, start, settings, generator, integrator, degrees_of_freedom)

    step, wall, num_shards = 0, 0.0, 0
    stored = None
    if checkpoint is not None:
        stored = load_checkpoint(checkpoint, asdict(settings), replicas.tensors())
    if checkpoint is not None and stored is not None:
        try:
            replicas.restore(stored[0])
        except ValueError as error:
            raise ValueError(f"{checkpoint / CHECKPOINT} is damaged: {error}") from error
        step, num_shards, wall = (
            int(stored[1]["step"]),
            int(stored[1]["num_shards"]),
            stored[1]["wall_seconds"],
        )
    elif checkpoint is not None and list_shards(checkpoint):
        raise ValueError(f"{checkpoint} holds frames but no checkpoint to go on from; simulate into another folder.")
    writer = FrameWriter(checkpoint, num_shards, storage)
    unsaved = hot_steps + settings.equilibration_steps
    total = unsaved + num_steps
    began = last_saved = time.monotonic()

    def save() -> None:
        writer.flush()
        if checkpoint is not None:
            seconds = wall + time.monotonic() - began
            counters = {"step": step, "num_shards": writer.num_shards, "wall_seconds": seconds}
            save_checkpoint(checkpoint, replicas.tensors(), counters, asdict(settings))

    if stored is None:
        save()  # so that there is never a shard without a checkpoint
    max_pending = max(1, MAX_PENDING_BYTES // (12 * len(masses)))
    with tqdm(total=total, initial=step, unit="step", disable=not progress, mininterval=1.0) as bar:
        while step < total:
            following = _next_event(step, total, settings)
            replicas.advance(following - step, hot=step < hot_steps)
            bar.update(following - step)
            step = following
            with one_thread():
                produced = step - unsaved
                replicas.restart_broken(check_heat=produced > 0)
                if produced > 0:
                    replicas.measure(produced * timestep)
                    if produced % settings.save_interval == 0:
                        writer.add(replicas.frames(produced * timestep))
                if step == hot_steps:
                    replicas.cool()
                elif step > hot_steps and (step - hot_steps) % settings.swap_interval == 0:
                    replicas.swap(((step - hot_steps) // settings.swap_interval) % 2, count=produced > 0)
            overdue = time.monotonic() - last_saved >= checkpoint_seconds
            if step < total and checkpoint is not None and (overdue or writer.pending_frames > max_pending):
                save()
                last_saved = time.monotonic()
    save()
    seconds = wall + time.monotonic() - began
    report: dict[str, object] = {
        "temperatures_K": list(settings.temperatures),
        "num_replica_groups": settings.num_replica_groups,
    }
    report |= replicas.statistics.summary()
    report |= {
        "steps": step,
        "wall_seconds": seconds,
        "steps_per_second": step / seconds if seconds > 0 else None,
        "simulated_ns": batch * step * timestep / 1000.0,
        "simulated_ns_per_replica": step * timestep / 1000.0,
    }
    return Trajectories(report, writer)


def _next_event(step: int, total: int, settings: TemperingSettings) -> int:
    """The first step after ``step`` at which something is to be done other than integrating."""
    hot, unsaved = settings.hot_steps, settings.hot_steps + settings.equilibration_steps
    if step < hot:
        # Replicas that blew up are looked for as often as they are swapped later.
        return min(step + settings.swap_interval, hot)
    swap = hot + ((step - hot) // settings.swap_interval + 1) * settings.swap_interval
    if step < unsaved:
        return min(swap, unsaved, total)
    save = unsaved + ((step - unsaved) // settings.save_interval + 1) * settings.save_interval
    return min(swap, save, total)
