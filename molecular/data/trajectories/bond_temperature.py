"""Whether a simulation was at the temperature that is said of it, told by its bonds."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from molecular.data.trajectories.constrained_bonds import FEWEST_FRAMES, RIGID, lengths
from molecular.data.trajectories.mending import Collected
from molecular.data.trajectories.report import ImportReport
from molecular.energy import PotentialEnergy
from molecular.molecule.constants import MOLAR_GAS_CONSTANT
from molecular.molecule.force_fields import harmonic_bonds
from molecular.molecule.molecule import Molecule
from molecular.molecule.topology import beyond_bond

COARSEST = 0.001
"""nm: positions that were rounded to more than this tell no temperature."""
UNLIKE = 0.15
"""Time steps of 1 fs and the usual integrators make bonds between heavy atoms seem a few per cent too hot."""


def check_temperature(molecule: Molecule, frames: Collected, report: ImportReport, energy: PotentialEnergy) -> None:
    """Warn where bonds vary as at another temperature than the molecule's."""
    for index, file in enumerate(report.files):
        own = frames.positions[frames.file == index]
        if len(own) < FEWEST_FRAMES or file["rounding"] > COARSEST:
            continue
        found = bond_temperature(own, molecule, energy)
        if found is None:
            continue
        kelvin, error = found
        if abs(kelvin - molecule.temperature) > UNLIKE * molecule.temperature + 4.0 * error:
            report.warnings.append(
                f"bonds of {file['file']} vary as at {kelvin:.0f} ± {error:.0f} K in this force field, not "
                f"{molecule.temperature:g} K; give the temperature and the force field that were simulated."
            )


def bond_temperature(
    positions: NDArray[np.floating], molecule: Molecule, energy: PotentialEnergy
) -> tuple[float, float] | None:
    """The temperature at which bonds between heavy atoms vary so much, K, and its standard error; None without such.

    For any displacement v, <v . dU/dx> = kT <div v>. Here v moves all that is beyond a bond by its stretch r - r0 along
    it, so that div v = 3 - 2 r0 / r, and forces across the bond alone take part. Left out are rings and constrained
    bonds.

    Args:
        positions: (N, n, 3) nm.
        molecule: whose harmonic bonds are looked at.
        energy: kJ/mol, of the molecule.
    """
    topology, work, divergence = molecule.topology, np.zeros(len(positions)), np.zeros(len(positions))
    force = energy.energy_and_force(torch.from_numpy(positions))[1].numpy()
    for (i, j), (_, rest) in harmonic_bonds(molecule.system).items():
        beyond = beyond_bond(topology.neighbours, i, j)
        length = lengths(positions, [(i, j)])[:, 0]
        if "H" in (topology.elements[i], topology.elements[j]) or i in beyond or np.ptp(length) < 10.0 * RIGID:
            continue
        pull = -(force[:, sorted(beyond)].sum(axis=1) * (positions[:, j] - positions[:, i])).sum(axis=1)
        work += pull * (1.0 - rest / length)
        divergence += 3.0 - 2.0 * rest / length
    if not divergence.any():
        return None
    kelvin = work / (MOLAR_GAS_CONSTANT * divergence.mean())
    return float(kelvin.mean()), float(kelvin.std(ddof=1) / np.sqrt(len(kelvin)))
