"""Simulate one peptide by parallel tempering, into a folder."""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import mdtraj
import numpy as np
import torch
from numpy.typing import NDArray
from openmm import unit

from molecular.dynamics import (
    EnergyAndForce,
    TemperingSettings,
    Trajectories,
    geometric_temperatures,
    list_shards,
    parallel_tempering,
    read_shard,
    relax,
)
from molecular.dynamics.checkpoint import CHECKPOINT
from molecular.folders import make_folder

if TYPE_CHECKING:
    from molecular.peptide import Peptide

POSITIVE_PHI = (0.0, np.deg2rad(150.0))
"""The left-handed basin of alanine dipeptide, separated from the rest by its highest barrier, rad."""

MAY_CHANGE = {"picoseconds", "num_steps", "device", "torch", "num_threads"}
"""Settings that may differ when a simulation is taken up again."""


def simulate(
    peptide: "Peptide",
    output: str | Path,
    *,
    picoseconds: float,
    equilibration_ps: float = 20.0,
    highest_temperature: float = 900.0,
    num_temperatures: int = 8,
    num_ladders: int = 32,
    timestep: float = 0.001,
    friction: float = 1.0,
    swap_ps: float = 0.1,
    save_ps: float = 1.0,
    saved_temperatures: int = 1,
    seed: int = 0,
    device: str = "cpu",
    energy: EnergyAndForce | None = None,
    progress: bool = True,
    checkpoint_seconds: float = 60.0,
) -> Trajectories:
    """Parallel tempering of ``peptide`` from its temperature to ``highest_temperature``; see
    `parallel_tempering`.

    Writes into ``output``: topology.pdb, settings.json, frames-*.npz (read by
    `molecular.datasets.load_ensemble`), checkpoint.npz and, at the end, report.json. Run again after an
    interruption with the same arguments it goes on from the last checkpoint; with more ``picoseconds`` it is
    extended.

    Args:
        picoseconds: production time of each replica. equilibration_ps: before it, not saved.
        timestep: ps. friction: 1/ps. swap_ps, save_ps: intervals, whole multiples of the time step.
        energy: another energy than ``compile_system(peptide.system)``.

    Raises:
        ValueError: an impossible setting, constraints in the system, or a folder of another simulation.
    """
    constraints = peptide.system.getNumConstraints()
    if constraints:
        raise ValueError(
            f"the system of {peptide.sequence} has {constraints} constraints but this integrator has none;"
            " build the peptide with constraints=None."
        )
    temperatures = geometric_temperatures(peptide.temperature, highest_temperature, num_temperatures)
    tempering = TemperingSettings(
        temperatures=temperatures,
        num_ladders=num_ladders,
        timestep=timestep,
        friction=friction,
        swap_interval=_steps(swap_ps, timestep, "swap_ps"),
        save_interval=_steps(save_ps, timestep, "save_ps"),
        equilibration_steps=_steps(equilibration_ps, timestep, "equilibration_ps"),
        saved_temperatures=saved_temperatures,
        recentre=True,
    )
    num_steps = _steps(picoseconds, timestep, "picoseconds")
    output = Path(output)
    settings = {
        "sequence": peptide.sequence,
        "num_atoms": len(peptide.positions),
        "seed": seed,
        "picoseconds": picoseconds,
        "num_steps": num_steps,
        "device": device,
        "torch": torch.__version__,
        "num_threads": torch.get_num_threads(),
    } | asdict(tempering)
    _check_folder(output, settings)

    if energy is None:
        from molecular.energy import compile_system

        energy = compile_system(peptide.system).to(device)
    dtype = torch.float32
    start = torch.as_tensor(np.asarray(peptide.positions), dtype=dtype, device=device)
    start = relax(energy, start[None])[0]
    start = start - start.mean(dim=0)
    # Those of the system, not the natural ones: hydrogen mass repartitioning is there to be used here.
    system = peptide.system
    masses = [system.getParticleMass(i).value_in_unit(unit.dalton) for i in range(system.getNumParticles())]

    make_folder(output)
    peptide.save_pdb(output / "topology.pdb")
    _write_json(output / "settings.json", settings)
    result = parallel_tempering(
        energy,
        torch.tensor(masses, dtype=dtype, device=device),
        start,
        generator=torch.Generator(device).manual_seed(seed),
        num_steps=num_steps,
        progress=progress,
        checkpoint=output,
        checkpoint_seconds=checkpoint_seconds,
        **asdict(tempering),
    )
    phi, psi = peptide.phi_psi_indices()
    result.report["torsions"] = torsion_statistics(output, phi, psi)
    _write_json(output / "report.json", result.report)
    return result


def torsion_statistics(folder: Path, phi: NDArray[np.int64], psi: NDArray[np.int64]) -> list[dict[str, object]]:
    """How well the frames at the lowest temperature mix over each residue's backbone torsions.

    ``phi``, ``psi`` are (k, 4) atom indices. For each phi: the share of frames in the left-handed basin
    (0 < phi < 150 degrees) with its standard error over ladders, and jumps between the basins from one saved
    frame of a ladder to the next; for each psi the same for 'psi in (-120, 50) degrees', which is the
    helical side.
    """
    angles, ladders = [], []
    for path in list_shards(folder):
        frames = read_shard(path)
        lowest = frames.temperature_index == 0
        trajectory = mdtraj.Trajectory(frames.positions[lowest], None)
        angles.append(
            [mdtraj.compute_dihedrals(trajectory, index, periodic=False) for index in (phi, psi) if len(index)]
        )
        ladders.append(frames.ladder[lowest])
    if not ladders or not angles[0]:
        return []
    ladder = np.concatenate(ladders)
    # Sorted by ladder and, because the sort is stable and shards are in order, by time inside each.
    order = np.argsort(ladder, kind="stable")
    ladder = ladder[order]
    names = [name for name, index in (("phi", phi), ("psi", psi)) if len(index)]
    rows: list[dict[str, object]] = []
    for position, name in enumerate(names):
        torsion = np.concatenate([part[position] for part in angles])[order]
        low, high = POSITIVE_PHI if name == "phi" else (np.deg2rad(-120.0), np.deg2rad(50.0))
        inside = (torsion > low) & (torsion < high)
        same = ladder[1:] == ladder[:-1]
        for column in range(torsion.shape[1]):
            state = inside[:, column]
            shares = np.array([state[ladder == index].mean() for index in np.unique(ladder)])
            error = float(shares.std(ddof=1) / np.sqrt(len(shares))) if len(shares) > 1 else None
            rows.append(
                {
                    "torsion": f"{name} {column + 1}",
                    "basin_degrees": [float(np.rad2deg(low)), float(np.rad2deg(high))],
                    "share_in_basin": float(state.mean()),
                    "standard_error_over_ladders": error,
                    "jumps": int(((state[1:] != state[:-1]) & same).sum()),
                    "frames": len(state),
                }
            )
    return rows


def _steps(picoseconds: float, timestep: float, name: str) -> int:
    """A duration in whole time steps."""
    if not timestep > 0:
        raise ValueError(f"timestep must be positive, not {timestep}.")
    steps = round(picoseconds / timestep)
    if picoseconds < 0 or abs(steps * timestep - picoseconds) > 1e-6 * max(picoseconds, timestep):
        raise ValueError(f"{name} is {picoseconds} ps, which is not a multiple of the time step {timestep} ps.")
    return steps


def _check_folder(output: Path, settings: dict[str, object]) -> None:
    """Refuse to go on with another molecule, seed or method than a folder was started with."""
    path = output / "settings.json"
    if not path.exists() or not (output / CHECKPOINT).exists():
        return
    before = json.loads(path.read_text())
    # Through JSON, so that a tuple equals the list it was stored as.
    for name, value in json.loads(json.dumps(settings)).items():
        if name not in MAY_CHANGE and before.get(name) != value:
            raise ValueError(
                f"{output} holds a simulation with {name} {before.get(name)}, not {value}; use another folder."
            )


def _write_json(path: Path, content: dict[str, object]) -> None:
    """Write JSON so that a reader never sees half a file."""
    temporary = path.with_name(path.name + ".partial")
    temporary.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(temporary, path)
