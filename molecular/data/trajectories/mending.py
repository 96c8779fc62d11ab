"""Frames of all files together: what cannot be used is left out and counted, and the rest made the molecule's own."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from molecular.data.trajectories.bonds import may_be_bonds
from molecular.data.trajectories.constrained_bonds import (
    FEWEST_FRAMES,
    constrained_bonds,
    draw_lengths,
    lengths,
)
from molecular.data.trajectories.report import ImportReport
from molecular.dynamics.frames import Frames
from molecular.energy import PotentialEnergy
from molecular.molecule.geometry import dihedrals, has_torsion, is_cis, signed_volumes
from molecular.molecule.molecule import Molecule
from molecular.molecule.relabel import Exchange, find_exchanges, relabel, swap
from molecular.molecule.topology import Topology
from molecular.molecule.torsions import rigid_torsions

SAME_ENERGY = 0.25
"""kT, root mean square: atoms whose exchange changes the energy by more are not equivalent in the force field."""
SAMPLE = 50
"""Frames that this is judged by."""
PLANAR = 0.5
"""Sine of 30 degrees: a torsion nearer to 0 or 180 is that of a planar bond."""


@dataclass
class Collected:
    """Frames of all files, on the way to an ensemble.

    Args:
        positions: (N, n, 3) nm, in the molecule's order of atoms.
        time: (N,) ps.
        file: (N,), the number of each frame's file.
    """

    positions: NDArray[np.floating]
    time: NDArray[np.float64]
    file: NDArray[np.int32]

    def keep(self, kept: NDArray[np.bool_], reason: str, report: ImportReport) -> None:
        """Leave frames out for one reason; raises ValueError if that leaves none."""
        if kept.all():
            return
        report.left_out[reason] = int((~kept).sum())
        self.positions, self.time, self.file = self.positions[kept], self.time[kept], self.file[kept]
        if not kept.any():
            raise no_frame(report)


def no_frame(report: ImportReport) -> ValueError:
    files = ", ".join(file["file"] for file in report.files)
    reasons = ", ".join(f"{count} {reason}" for reason, count in report.left_out.items())
    return ValueError(f"no frame of {files} can be used for {report.molecule}: {reasons}.")


def mend(molecule: Molecule, frames: Collected, report: ImportReport, energy: PotentialEnergy) -> None:
    """Leave out what cannot be mended, and name equivalent atoms as the molecule's structure does."""
    topology = molecule.topology
    frames.positions -= frames.positions.mean(axis=1, keepdims=True)
    whole = may_be_bonds(lengths(frames.positions, topology.bonds), molecule)
    frames.keep(whole, "with bonds that are torn or crossed", report)
    right = np.ones(len(frames.time), dtype=bool)
    for corners in topology.stereocentres:
        right &= signed_volumes(frames.positions, corners) * signed_volumes(molecule.positions, corners) > 0.0
    frames.keep(right, "of the wrong handedness", report)
    frames.keep(_first_of_their_kind(frames.positions), "that repeat another frame", report)
    exchanges = _equivalent(molecule, frames.positions, report, energy)
    frames.positions, exchanged = relabel(frames.positions, molecule.positions, exchanges)
    report.relabelled = int(exchanged.any(axis=1).sum())
    for exchange, count in zip(exchanges, exchanged.sum(axis=0).tolist(), strict=True):
        if count:
            report.exchanged[_pair_label(topology, exchange)] = count
    amides = _amides(topology)
    for corners in amides:
        cis = is_cis(frames.positions, corners)
        if cis.any():
            report.cis_amides[_bond_label(topology, corners)] = int(cis.sum())
    for corners in _planar_bonds(molecule, {frozenset(corners[1:3]) for corners in amides}):
        turned = is_cis(frames.positions, corners) != is_cis(molecule.positions[None], corners)
        if turned.any():
            report.turned_bonds[_bond_label(topology, corners)] = int(turned.sum())


def draw_constrained(molecule: Molecule, frames: Collected, report: ImportReport, seed: int) -> None:
    """Draw new lengths for the bonds that the simulation behind a file held at theirs."""
    generator = np.random.default_rng(seed)
    for index, file in enumerate(report.files):
        rows = frames.file == index
        own = frames.positions[rows]
        if 0 < len(own) < FEWEST_FRAMES:
            report.warnings.append(f"{len(own)} frames of {file['file']} are too few to tell whether bonds were rigid.")
        try:
            bonds = constrained_bonds(own, molecule.topology, file["rounding"])
            if bonds:
                frames.positions[rows] = draw_lengths(
                    own, molecule.topology, bonds, molecule.system, molecule.kT, generator
                )
        except ValueError as error:
            raise ValueError(f"{file['file']}: {error}") from error
        file["drawn_bonds"] = len(bonds)


def _first_of_their_kind(positions: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Whether no frame before each one is the same, to 1e-6 nm."""
    seen, first = set[bytes](), np.zeros(len(positions), dtype=bool)
    for index, frame in enumerate(positions):
        digest = hashlib.blake2b(np.round(frame, 6).tobytes(), digest_size=16).digest()
        first[index] = digest not in seen
        seen.add(digest)
    return first


def _equivalent(
    molecule: Molecule, positions: NDArray[np.floating], report: ImportReport, energy: PotentialEnergy
) -> list[Exchange]:
    """The exchanges that the force field allows: those that leave the energy as it is, to a small part of kT."""
    sample = positions[:: max(1, len(positions) // SAMPLE)]
    before = energy(torch.from_numpy(sample))
    allowed = []
    for exchange in find_exchanges(molecule.topology):
        difference = energy(torch.from_numpy(swap(sample, exchange))) - before
        change = float(difference.nan_to_num().square().mean().sqrt()) / molecule.kT
        label = _pair_label(molecule.topology, exchange)
        needed = bool((exchange.signs(positions, molecule.positions) < 0.0).any())
        if change <= SAME_ENERGY:
            allowed.append(exchange)
            # Impropers of amides and guanidinium depend on the order of their atoms.
            if needed and change > 1e-4:
                report.unequal_energies[label] = change
        elif needed:
            report.not_equivalent[label] = change
    return allowed


def _pair_label(topology: Topology, exchange: Exchange) -> str:
    return f"{topology.atom_names[exchange.first[0]]}/{topology.label(exchange.second[0])}"


def _amides(topology: Topology) -> list[tuple[int, int, int, int]]:
    """Heavy atoms (CA, C, N, CA) about each amide bond; of a nitrogen with two carbons beyond, that named CA."""
    found = []
    for i, j in topology.bonds:
        for carbon, nitrogen in ((i, j), (j, i)):
            if (topology.elements[carbon], topology.elements[nitrogen]) != ("C", "N"):
                continue
            near = topology.neighbours[carbon]
            oxygens = [a for a in near if topology.elements[a] == "O" and len(topology.neighbours[a]) == 1]
            before = [a for a in near if a not in (nitrogen, *oxygens) and topology.elements[a] != "H"]
            after = [a for a in topology.neighbours[nitrogen] if a != carbon and topology.elements[a] != "H"]
            after = [a for a in after if topology.atom_names[a] == "CA"] if len(after) > 1 else after
            if len(oxygens) == len(before) == len(after) == 1 and len(near) == 3:
                found.append((before[0], carbon, nitrogen, after[0]))
    return found


def _planar_bonds(molecule: Molecule, left_out: set[frozenset[int]]) -> list[tuple[int, int, int, int]]:
    """Atoms about each bond that is planar in the structure and has no equal branches at an end: double bonds that have
    a cis and a trans isomer, and some single bonds between planar groups."""
    topology = molecule.topology
    quadruples = rigid_torsions(topology)
    structure = torch.from_numpy(molecule.positions)
    quadruples = quadruples[has_torsion(structure, quadruples)]
    planar = dihedrals(structure, quadruples).sin().abs() < PLANAR
    classes, found = topology.symmetry_classes, []
    for a, b, c, d in quadruples[planar].tolist():
        ends = [[classes[atom] for atom in topology.neighbours[i] if atom != j] for i, j in ((b, c), (c, b))]
        if frozenset((b, c)) not in left_out and all(len(set(end)) == len(end) for end in ends):
            found.append((a, b, c, d))
    return found


def _bond_label(topology: Topology, corners: tuple[int, int, int, int]) -> str:
    return f"{topology.label(corners[1])} - {topology.label(corners[2])}"


def with_energies(
    frames: Collected, energy: PotentialEnergy, kT: float, highest_energy: float, report: ImportReport
) -> Frames:
    """The frames as they are stored, with energies of the positions as rounded."""
    centred = frames.positions - frames.positions.mean(axis=1, keepdims=True)
    frames.positions = centred.astype(np.float32)
    energies = energy(torch.from_numpy(frames.positions).double()).numpy()
    finite = np.isfinite(energies)
    frames.keep(finite, "with an energy that is not finite", report)
    energies = energies[finite]
    low = energies <= np.median(energies) + highest_energy * kT
    frames.keep(low, f"with an energy of more than {highest_energy:g} kT above the median", report)
    count = len(frames.time)
    return Frames(
        positions=frames.positions.astype(np.float32, copy=False),
        energies=energies[low],
        temperature_index=np.zeros(count, dtype=np.int16),
        replica_group=frames.file,
        time=frames.time,
    )
