"""Trajectories of other programs, into a folder that `train`, `evaluate` and `analyse` read."""

from __future__ import annotations

import logging
from pathlib import Path

from molecular.commands.options import MoleculeOptions
from molecular.data.trajectories import ImportReport
from molecular.data.trajectories import import_trajectory as run

log = logging.getLogger(__name__)


def import_trajectory(
    output: Path,
    molecule: MoleculeOptions,
    trajectory: list[Path],
    topology: Path | None = None,
    highest_energy: float = 100.0,
    stride: int = 1,
    seed: int = 0,
) -> ImportReport:
    """Import trajectories of a molecule, mend what can be mended, and say what was done.

    Args:
        output: folder for frames, the molecule, settings and import.json, the report.
        molecule: what was simulated, in the force field that is sampled; its temperature is that of the trajectory.
        trajectory: XTC, TRR, DCD, NetCDF, H5, models of a PDB, or NPZ with positions; may be given again for more
            independent ones.
        topology: the atoms of the trajectories, water and ions included: PDB, mmCIF, GRO, prmtop, PSF or MOL2; without
            it they must be those of the molecule in its order.
        highest_energy: kT above the median, beyond which frames are left out.
        stride: take every so many-th frame.
        seed: of bond lengths that are drawn anew where they were constrained.
    """
    report = run(
        molecule.build(),
        trajectory,
        output,
        topology=topology,
        highest_energy=highest_energy,
        stride=stride,
        seed=seed,
    )
    for line in report.lines():
        log.info("%s", line)
    log.info("Written to %s; train on it with `python -m molecular train --data %s`.", output, output)
    return report
