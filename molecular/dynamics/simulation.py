"""Simulate one molecule by parallel tempering, into a folder."""

import json
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from openmm import unit
from torch import Tensor

from molecular.dynamics.checkpoint import CHECKPOINT, stored_step
from molecular.dynamics.former_names import with_current_names
from molecular.dynamics.frames import STORAGE
from molecular.dynamics.langevin import EnergyAndForce, Langevin
from molecular.dynamics.relaxation import relax
from molecular.dynamics.replicas import MakeIntegrator, TemperingSettings
from molecular.dynamics.report import concerns, torsion_statistics
from molecular.dynamics.starts import start_structures
from molecular.dynamics.tempering import Trajectories, geometric_temperatures, parallel_tempering
from molecular.molecule.molecule import Molecule
from molecular.molecule.storage import load_molecule, refuse_other_content, save_molecule
from molecular.molecule.torsions import reported_torsions
from nflib.devices import usable_device
from nflib.errors import at_least, is_whole
from nflib.io import complete_folder, only_run, read_json, write_json
from nflib.random import derived_generator

ENGINES = ("batched", "openmm")

# (molecule, number, seed) -> positions (number, n, 3) in nm.
Starts = Callable[[Molecule, int, int], Tensor]
MAY_CHANGE = {"picoseconds", "num_steps", "device", "torch", "num_threads", "compile", "platform"}
"""Settings that may differ when a simulation is taken up again."""

log = logging.getLogger(__name__)


def simulate(
    molecule: Molecule,
    output: str | Path,
    *,
    picoseconds: float,
    hot_ps: float | None = None,
    equilibration_ps: float = 20.0,
    highest_temperature: float = 700.0,
    num_temperatures: int | None = None,
    num_replica_groups: int = 32,
    timestep_ps: float = 0.001,
    friction: float = 1.0,
    swap_ps: float = 0.1,
    save_ps: float = 1.0,
    saved_temperatures: int = 1,
    storage: str = "float32",
    seed: int = 0,
    engine: str = "batched",
    device: str = "cpu",
    platform: str = "CPU",
    compile: bool = False,
    energy: EnergyAndForce | None = None,
    starts: Starts | None = None,
    progress: bool = True,
    checkpoint_seconds: float = 60.0,
) -> Trajectories:
    """Simulate one molecule by parallel tempering, from its temperature to ``highest_temperature``, into a folder.

    Writes into ``output``: topology.pdb, settings.json, shards frames-* (read by `load_ensemble`), checkpoint.npz and,
    at the end, report.json, what the simulation tells of its equilibration (`molecular.dynamics.report_lines` makes a
    table of it). Run again after an interruption with the same arguments it goes on from the last checkpoint; with more
    ``picoseconds`` it is extended, with fewer than there are it stays as it is. Each replica starts from a structure of
    its own (`start_structures`, or what ``starts`` gives). See `parallel_tempering` for the method.

    Args:
        molecule: at the lowest temperature.
        output: folder.
        picoseconds: production time of each replica.
        hot_ps: time that all replicas first spend at the highest temperature, to cross barriers; default 20, and 0 from
            starts in equilibrium, which it would destroy: of an earlier ensemble, or a flow's draws, not tempered.
        equilibration_ps: time at all temperatures before production, not saved either.
        highest_temperature: the highest, K; beyond 700 K amide bonds turn over.
        num_temperatures: temperatures in each replica group; default 6, and 1 from starts in equilibrium.
        num_replica_groups: independent groups of replicas, one at each temperature, all in one batch.
        timestep_ps: integration step; the intervals are whole multiples of it.
        friction: of the Langevin thermostat, 1/ps.
        swap_ps: time between attempts to swap neighbouring temperatures.
        save_ps: time between saved frames.
        saved_temperatures: how many, from the lowest on, have their frames saved.
        storage: of the frames' positions: float32 or float16 (npz), or xtc (`molecular.dynamics.frames.write_shard`).
        seed: of the random numbers.
        engine: batched (all replicas as tensors, on the device) or openmm (the reference, OpenMM's own integrator, one
            replica after the other).
        device: cpu, cuda or mps, of the batched engine.
        platform: of the openmm engine: CPU, Reference, CUDA ...
        compile: fuse the batched engine's energies by torch.compile, which takes about a minute first.
        energy: for the batched engine, another energy than ``compile_system(molecule.system)``.
        starts: gives the conformations that the replicas start from instead, such as a flow's weighted draws; settings
            and report keep what it is as a string. Where its attribute ``in_equilibrium`` is true, the defaults of
            hot_ps and num_temperatures are those of equilibrium.
        progress: show a bar.
        checkpoint_seconds: wall-clock time between checkpoints.

    Returns:
        The report, and the frames, which are read from the folder when asked for.

    Raises:
        ValueError: an impossible setting, constraints for the batched engine, or a folder of another simulation.
        OSError: the folder cannot be written, or another run is at work in it.
    """
    if engine not in ENGINES:
        raise ValueError(f"there is no engine {engine!r}; the engines are {', '.join(ENGINES)}.")
    usable_device(device)
    if engine == "openmm" and (energy is not None or compile):
        raise ValueError("energy and compile are of the batched engine, not of OpenMM's; leave them out.")
    if not picoseconds > 0:
        raise ValueError(f"picoseconds is {picoseconds}; simulate for a positive time.")
    if storage not in STORAGE:
        raise ValueError(f"frames are stored as {', '.join(STORAGE)}, not {storage!r}.")
    constraints = molecule.system.getNumConstraints()
    if constraints and engine == "batched":
        raise ValueError(
            f"the System of {molecule.name} has {constraints} constraints but this integrator has none;"
            " build it without constraints, or use engine='openmm'."
        )
    in_equilibrium = getattr(starts, "in_equilibrium", False)
    if hot_ps is None:
        hot_ps = 0.0 if in_equilibrium else 20.0
    if num_temperatures is None:
        num_temperatures = 1 if in_equilibrium else 6
    num_temperatures = at_least(1, "num_temperatures", num_temperatures)
    num_replica_groups = at_least(1, "num_replica_groups", num_replica_groups)
    if not is_whole(seed, -(2**63)) or seed >= 2**64:
        raise ValueError(f"seed must be an integer of 64 bits, got {seed!r}.")
    seed = int(seed)
    tempering = TemperingSettings(
        temperatures=geometric_temperatures(molecule.temperature, highest_temperature, num_temperatures),
        num_replica_groups=num_replica_groups,
        timestep=timestep_ps,
        friction=friction,
        swap_interval=_steps(swap_ps, timestep_ps, "swap_ps"),
        save_interval=_steps(save_ps, timestep_ps, "save_ps"),
        hot_steps=_steps(hot_ps, timestep_ps, "hot_ps"),
        equilibration_steps=_steps(equilibration_ps, timestep_ps, "equilibration_ps"),
        saved_temperatures=saved_temperatures,
        recentre=True,
    )
    num_steps = _steps(picoseconds, timestep_ps, "picoseconds")
    output = Path(output)
    settings: dict[str, Any] = {
        "molecule": molecule.name,
        "num_atoms": molecule.num_atoms,
        "engine": engine,
        "storage": storage,
        "seed": seed,
        "picoseconds": picoseconds,
        "num_steps": num_steps,
        "device": device,
        "platform": platform,
        "compile": compile,
        "torch": torch.__version__,
        "num_threads": torch.get_num_threads(),
    } | asdict(tempering)
    with only_run(output):
        before = _check_folder(output, settings, molecule)
        simulated = stored_step(output) - tempering.hot_steps - tempering.equilibration_steps
        if simulated > num_steps:
            num_steps, picoseconds = simulated, round(simulated * timestep_ps, 9)
            log.warning(
                "%s holds %g ps already, more than the %g asked for; all of them stay.",
                *(output, picoseconds, settings["picoseconds"]),
            )
            settings |= {"picoseconds": picoseconds, "num_steps": num_steps}
        if num_steps < tempering.save_interval:
            raise ValueError(f"no frame would be saved: picoseconds is {picoseconds}, less than save_ps, {save_ps}.")
        # One that goes on has the starts it once had, whatever is asked for now.
        asked = None if starts is None else str(starts)
        settings["starts"] = before.get("starts") if before else asked

        if engine == "openmm":
            chosen = _openmm_engine(molecule, platform)
        else:
            chosen = _batched_engine(molecule, energy, device, compile)
        with complete_folder(output) as folder:
            save_molecule(molecule, folder)
            write_json(folder / "settings.json", settings)
        # Masses of the system, not the natural ones: hydrogen mass repartitioning is there to be used here.
        system = molecule.system
        masses = [system.getParticleMass(i).value_in_unit(unit.dalton) for i in range(system.getNumParticles())]
        result = parallel_tempering(
            chosen.energy,
            torch.tensor(masses, dtype=chosen.dtype, device=chosen.device),
            _start(molecule, output, chosen, num_replica_groups * num_temperatures, starts, seed),
            tempering,
            generator=torch.Generator(chosen.device).manual_seed(seed),
            num_steps=num_steps,
            progress=progress,
            checkpoint=output,
            checkpoint_seconds=checkpoint_seconds,
            storage=storage,
            integrator=chosen.integrator,
            degrees_of_freedom=chosen.degrees_of_freedom,
        )
        result.report.update(molecule=molecule.name, engine=engine, starts=settings["starts"])
        result.report["torsions"] = torsion_statistics(output, reported_torsions(molecule), save_ps)
        result.report["concerns"] = concerns(result.report)
        write_json(output / "report.json", result.report)
        return result


@dataclass(frozen=True)
class _Engine:
    """What integrates the replicas, and the tensors that it does so with."""

    energy: EnergyAndForce
    minimise: Callable[[Tensor], Tensor]  # positions (B, n, 3) nm
    integrator: MakeIntegrator
    dtype: torch.dtype
    device: str
    degrees_of_freedom: int | None = None  # all


def _openmm_engine(molecule: Molecule, platform: str) -> _Engine:
    from molecular.dynamics.openmm_engine import OpenMMEngine

    engine = OpenMMEngine(molecule.system, platform)
    return _Engine(engine, engine.minimise, engine.integrator, torch.float64, "cpu", engine.degrees_of_freedom)


def _batched_engine(molecule: Molecule, energy: EnergyAndForce | None, device: str, compile: bool) -> _Engine:
    if energy is None:
        from molecular.energy import UnsupportedForce, compile_system

        try:
            energy = compile_system(molecule.system, compile=compile).to(device)
        except UnsupportedForce as error:
            raise ValueError(f"{error} Simulate it with engine='openmm'.") from error
    return _Engine(energy, partial(relax, energy), Langevin, torch.float32, device)


def _start(molecule: Molecule, output: Path, engine: _Engine, number: int, starts: Starts | None, seed: int) -> Tensor:
    """Centred positions (number, n, 3) that the replicas start from."""
    structure = torch.as_tensor(np.asarray(molecule.positions), dtype=engine.dtype, device=engine.device)
    if (output / CHECKPOINT).exists():
        start = structure.expand(number, -1, -1)  # the checkpoint knows better
    elif starts is not None:
        start = torch.as_tensor(starts(molecule, number, seed)).to(structure)
    else:
        generator = derived_generator(seed % 2**64, 1)  # not that of the dynamics
        start = start_structures(structure, molecule.topology, number, engine.minimise, generator)
    return start - start.mean(dim=1, keepdim=True)


def _steps(picoseconds: float, timestep: float, name: str) -> int:
    """A duration in whole time steps."""
    if not timestep > 0:
        raise ValueError(f"timestep must be positive, not {timestep}.")
    steps = round(picoseconds / timestep)
    if picoseconds < 0 or abs(steps * timestep - picoseconds) > 1e-6 * max(picoseconds, timestep):
        raise ValueError(f"{name} is {picoseconds} ps, which is not a multiple of the time step {timestep} ps.")
    return steps


def _check_folder(output: Path, settings: dict[str, object], molecule: Molecule) -> dict[str, Any]:
    """The settings that a simulation which goes on was started with; none of a new one.

    Raises ValueError where they are of another molecule, seed or method.
    """
    path = output / "settings.json"
    if not (output / CHECKPOINT).exists():
        refuse_other_content(output)
        return {}
    before = with_current_names(read_json(path, "simulate into another folder")) if path.exists() else {}
    # Through JSON, so that a tuple equals the list it was stored as.
    for name, value in json.loads(json.dumps(settings)).items():
        if name not in MAY_CHANGE and name in before and before[name] != value:
            raise ValueError(
                f"{output} holds a simulation with {name} {before.get(name)}, not {value}; use another folder."
            )
    difference = molecule.difference(load_molecule(output), masses=True)
    if difference is not None:
        raise ValueError(f"{output} holds a simulation of another molecule: {difference}; use another folder.")
    return before
