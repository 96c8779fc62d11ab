"""Trajectories of any program as the ensemble of one molecule, mended where they can be, and a report of what was done.

What is written is what `molecular.dynamics.simulate` writes, so that `load_ensemble` and all that follows read it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from molecular.data.trajectories.bond_temperature import check_temperature
from molecular.data.trajectories.files import read_atoms
from molecular.data.trajectories.mending import (
    Collected,
    draw_constrained,
    mend,
    no_frame,
    with_energies,
)
from molecular.data.trajectories.reading import read_matched
from molecular.data.trajectories.report import ImportReport
from molecular.dynamics.frames import Frames, shard_path, write_shard
from molecular.energy import compile_system
from molecular.molecule.molecule import Molecule
from molecular.molecule.storage import refuse_other_content, save_molecule
from nflib.io import complete_folder, only_run, write_json

SHARD = 10_000


def import_trajectory(
    molecule: Molecule,
    trajectories: str | Path | Sequence[str | Path],
    output: str | Path,
    *,
    topology: str | Path | None = None,
    temperature: float | None = None,
    highest_energy: float = 100.0,
    stride: int = 1,
    seed: int = 0,
) -> ImportReport:
    """Import trajectories of other programs, as an ensemble that `molecular.data.ensembles.load_ensemble` reads.

    Atoms are matched by names, otherwise by bonds and elements; water, ions and other molecules are left out; lengths
    become nm; molecules are made whole across a periodic box; equivalent hydrogens and branches get the names that they
    have in `molecule.positions`; lengths of constrained bonds are drawn anew from the flexible force field's thermal
    distribution; energies are those of `molecule.system`. Left out and counted are frames that are not finite, torn, of
    the wrong handedness, repeated, or of too high an energy.

    Args:
        molecule: whose force field is flexible.
        trajectories: one file or several, taken for independent, each a replica group: XTC, TRR, DCD, NetCDF,
            H5, models of a PDB, mmCIF or GRO file, or NPZ with positions (N, n, 3), and, if wanted, time (N,) and box
            (3, 3) or (N, 3, 3).
        output: a folder for topology.pdb, settings.json, frames-*.npz and import.json.
        topology: the atoms of the trajectories (PDB, mmCIF, GRO, prmtop, PSF, MOL2, H5). Without it, files
            that do not tell their atoms must have those of the molecule in its order.
        temperature: K that was simulated at; by default the molecule's.
        highest_energy: kT above the median; frames beyond it are left out.
        stride: take every so many-th frame.
        seed: of the bond lengths that are drawn.

    Returns:
        What was found and done.

    Raises:
        FileNotFoundError: a file that is not there.
        OSError: the folder cannot be written, or another run is at work in it.
        ValueError: an option that makes no sense, a damaged file, another molecule, constraints that cannot be undone,
            or no frame that can be used; nothing is written then.
    """
    output = Path(output)
    files = [Path(path) for path in ([trajectories] if isinstance(trajectories, str | Path) else trajectories)]
    temperature = molecule.temperature if temperature is None else float(temperature)
    _check(molecule, files, output, temperature, highest_energy, stride)
    molecule = molecule.at(temperature)
    energy = compile_system(molecule.system, dtype=torch.float64, fallback=True)
    report = ImportReport(molecule.name, temperature)
    atoms, owner = (None, molecule.name) if topology is None else (read_atoms(Path(topology)), str(topology))
    parts = [read_matched(molecule, path, atoms, owner, stride, report) for path in files]
    frames = Collected(
        np.concatenate([part.positions for part in parts]),
        np.concatenate([part.time for part in parts]),
        np.repeat(np.arange(len(parts), dtype=np.int32), [len(part.time) for part in parts]),
    )
    if not len(frames.time):
        raise no_frame(report)
    mend(molecule, frames, report, energy)
    check_temperature(molecule, frames, report, energy)
    draw_constrained(molecule, frames, report, seed)
    written = with_energies(frames, energy, molecule.kT, highest_energy, report)
    report.frames_kept = len(written)
    report.energy_mean, report.energy_deviation = float(written.energies.mean()), float(written.energies.std())
    with only_run(output), complete_folder(output) as folder:
        _check_output(output)  # another import may have ended meanwhile
        save_molecule(molecule, folder)
        write_json(
            folder / "settings.json",
            {
                "molecule": molecule.name,
                "num_atoms": molecule.num_atoms,
                "temperatures": [temperature],
                "imported": [str(path) for path in files],
                "topology": None if topology is None else str(topology),
                "highest_energy": highest_energy,
                "stride": stride,
                "seed": seed,
            },
        )
        write_json(folder / "import.json", asdict(report))
        for index, start in enumerate(range(0, len(written), SHARD)):
            rows = slice(start, start + SHARD)
            shard = Frames(**{name: array[rows] for name, array in written.arrays().items()})
            write_shard(shard_path(folder, index), shard)
    return report


def _check(
    molecule: Molecule, files: list[Path], output: Path, temperature: float, highest_energy: float, stride: int
) -> None:
    if not files:
        raise ValueError("there is no trajectory; give one or more files.")
    if not (math.isfinite(temperature) and temperature > 0.0):
        raise ValueError(f"temperature is {temperature} K; give a positive number.")
    if not highest_energy > 0.0:
        raise ValueError(f"highest_energy is {highest_energy} kT above the median; give a positive number.")
    if stride < 1:
        raise ValueError(f"stride is {stride}; give a positive whole number.")
    if molecule.system.getNumConstraints():
        raise ValueError(
            f"the System of {molecule.name} has constraints; make it by createSystem(constraints=None) (the trajectory "
            "itself may be constrained)."
        )
    _check_output(output)


def _check_output(output: Path) -> None:
    refuse_other_content(output)
    if (output / "settings.json").exists():
        raise ValueError(f"{output} holds a simulation already; give another folder.")
    if output.exists() and not output.is_dir():
        raise ValueError(f"{output} is a file; give a folder.")
