"""One file's frames of a molecule, whatever order, unit and box the file has."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from molecular.data.trajectories.bonds import distances, made_whole, may_be_bonds, near_pairs
from molecular.data.trajectories.files import Part, has_atoms, read_atoms, read_frames, solute
from molecular.data.trajectories.report import ImportReport
from molecular.molecule.matching import match_bonds, match_names, perceive_bonds
from molecular.molecule.molecule import Molecule
from molecular.molecule.topology import Topology

UNITS = {1.0: "nm", 0.1: "ångström", 1e-3: "pm", 10.0: "10 nm, an ångström converted twice"}
"""Lengths of files, in nm, that are told by the distances of bonded atoms."""
SAMPLE = 50
"""Frames that atoms and units are judged by."""
GRIDS = (1e-2, 1e-3, 1e-4)
NOT_FINITE = "with positions that are not finite"


def read_matched(
    molecule: Molecule, path: Path, topology: Topology | None, owner: str, stride: int, report: ImportReport
) -> Part:
    """Read one file's frames of a molecule: its atoms in its order, in nm, made whole across a box.

    Args:
        molecule: to look for.
        path: of the trajectory.
        topology: the atoms of the file, where it does not tell them.
        owner: what says which atoms the file has, for messages.
        stride: keep every so many-th frame.
        report: is told what was found and done.
    """
    if topology is None and has_atoms(path):
        topology, owner = read_atoms(path), str(path)
    num_atoms = molecule.num_atoms if topology is None else topology.num_atoms
    sample = _finite(read_frames(path, num_atoms, owner=owner, most=SAMPLE))
    if not len(sample.time):
        raise ValueError(f"none of the first frames of {path} is finite; give a trajectory that is.")
    candidates = (
        list(range(num_atoms)) if topology is None else solute(topology, [r.name for r in molecule.topology.residues])
    )
    if not candidates:
        raise ValueError(f"{path} holds nothing but water and ions; give a trajectory of {molecule.name}.")
    scale = _length_unit(path, sample.positions[:, candidates], molecule)
    sample = _scaled(sample, scale)
    order, matched = _match(molecule, path, topology, candidates, sample, report)
    part = _scaled(read_frames(path, num_atoms, order, owner=owner, stride=stride), scale)
    count = len(part.time)
    report.frames_read += count
    time, spacing = _increasing(part.time)
    part = _finite(replace(part, time=time))
    if len(part.time) < count:
        report.left_out[NOT_FINITE] = report.left_out.get(NOT_FINITE, 0) + count - len(part.time)
    positions, torn = made_whole(part, molecule.topology)
    report.unwrapped += torn
    report.files.append(
        {
            "file": str(path),
            "frames": count,
            "atoms": num_atoms,
            "other_atoms": num_atoms - molecule.num_atoms,
            "unit": UNITS[scale],
            "matched": matched,
            "rounding": _grid(part.positions),
            "spacing": spacing,
            "drawn_bonds": 0,
        }
    )
    return Part(positions, part.time, None)


def _increasing(time: NDArray[np.float64]) -> tuple[NDArray[np.float64], float | None]:
    """Times (N,) as they are where they increase strictly from 0 or more; otherwise, as where runs were joined, which
    would mix them frame by frame, new ones of the usual spacing, and this."""
    if np.isfinite(time).all() and (time >= 0.0).all() and (np.diff(time) > 0.0).all():
        return time, None
    steps = np.diff(time[np.isfinite(time)])
    spacing = float(np.median(steps[steps > 0.0])) if (steps > 0.0).any() else 1.0
    return np.arange(len(time), dtype=np.float64) * spacing, spacing


def _finite(part: Part) -> Part:
    return part.select(np.flatnonzero(np.isfinite(part.positions).all(axis=(1, 2))))


def _scaled(part: Part, scale: float) -> Part:
    positions = np.asarray(part.positions, dtype=np.float64) * scale
    return Part(positions, part.time, None if part.box is None else part.box * scale)


def _length_unit(path: Path, positions: NDArray[np.floating], molecule: Molecule) -> float:
    """The file's length in nm, by the distance from each atom to its nearest; that needs no names."""

    def nearest(points: NDArray[np.floating]) -> float:
        return float(np.median(cKDTree(points).query(points, k=2)[0][:, 1])) if len(points) > 1 else math.nan

    found = float(np.median([nearest(np.asarray(frame, dtype=np.float64)) for frame in positions]))
    ratio = nearest(molecule.positions) / found if found > 0.0 else math.nan
    for scale in UNITS:
        if abs(math.log(ratio / scale)) < math.log(1.6):
            return scale
    raise ValueError(
        f"atoms of {path} are typically {found:g} from their nearest, which is a bond in none of nm, ångström and pm; "
        "give positions in nm."
    )


def _match(
    molecule: Molecule,
    path: Path,
    topology: Topology | None,
    candidates: list[int],
    sample: Part,
    report: ImportReport,
) -> tuple[list[int], str]:
    """The file's atoms in the molecule's order, and how they were found."""
    if topology is None:
        if not _has_bonds(molecule, sample, candidates):
            raise ValueError(
                f"atoms of {path} in their order do not have the bonds of {molecule.name}; give the topology that "
                "belongs to it."
            )
        return candidates, "the order of its atoms"
    chosen = topology.select(candidates)
    by_name = match_names(molecule.topology, chosen)
    if by_name is not None:
        order = [candidates[atom] for atom in by_name]
        if _has_bonds(molecule, sample, order):
            return order, "its atoms' names"
    pairs = near_pairs(sample, candidates)
    ends = np.array(candidates)[pairs]
    medians = np.median(distances(sample, ends), axis=0)
    bonds = perceive_bonds(chosen.elements, medians, pairs)
    graph = Topology(chosen.atom_names, chosen.elements, chosen.residues, chosen.residue_indices, bonds)
    found = []
    whole = made_whole(sample.select(slice(1), np.array(candidates)), graph)[0][0]
    for component in graph.components:
        if len(component) == molecule.num_atoms:
            structures = molecule.positions, whole[list(component)]
            by_bonds = match_bonds(molecule.topology, graph.select(component), structures)
            if by_bonds is not None:
                found.append([candidates[component[atom]] for atom in by_bonds])
    if not found:
        raise ValueError(_other_molecule(molecule, path, graph))
    if len(found) > 1:
        report.warnings.append(f"{path} has {len(found)} molecules like {molecule.name}; the first was taken.")
    return found[0], "its bonds, elements and names"


def _other_molecule(molecule: Molecule, path: Path, graph: Topology) -> str:
    """What the file has instead, in words."""
    component = max(graph.components, key=len)
    theirs = _formula([graph.elements[atom] for atom in component])
    ours = _formula(molecule.topology.elements)
    if theirs == ours:
        return f"the molecule in {path} has the atoms of {molecule.name} ({ours}) but other bonds; give that molecule."
    return (
        f"{path} holds no molecule like {molecule.name} ({ours}); its largest is {theirs}. Give the molecule that "
        "was simulated, protonated as it was."
    )


def _formula(elements: Sequence[str]) -> str:
    counts = Counter(elements)
    order = sorted(counts, key=lambda symbol: (("C", "H").index(symbol) if symbol in ("C", "H") else 2, symbol))
    return "".join(symbol + (str(counts[symbol]) if counts[symbol] > 1 else "") for symbol in order)


def _has_bonds(molecule: Molecule, sample: Part, order: Sequence[int]) -> bool:
    """Whether the molecule's bonds are bonds in the file, atoms being so ordered."""
    pairs = np.array(molecule.topology.bonds)
    found = np.median(distances(sample, np.array(order)[pairs]), axis=0)
    return bool(may_be_bonds(found[None], molecule).all())


def _grid(positions: NDArray[np.floating]) -> float:
    """The nm that positions were rounded to, 0 if they were not."""
    finite = positions[np.isfinite(positions)][:10_000]
    for grid in GRIDS:
        steps = finite / grid
        if np.abs(steps - np.round(steps)).max(initial=0.0) < 0.05:
            return grid
    return 0.0
