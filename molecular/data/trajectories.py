"""Trajectories of any program as the ensemble of one molecule, mended where they can be, and a report of what was done.

What is written is what `molecular.dynamics.simulate` writes, so that `load_ensemble` and all that follows read it.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from molecular.data.constrained_bonds import FEWEST_FRAMES, constrained_bonds, draw_lengths, lengths
from molecular.data.import_report import ImportReport
from molecular.data.trajectory_files import Part, has_atoms, read_atoms, read_frames, solute
from molecular.dynamics.frames import Frames, list_shards, shard_path, write_shard
from molecular.energy import PotentialEnergy, compile_system
from molecular.molecule.matching import match_bonds, match_names, perceive_bonds
from molecular.molecule.molecule import Molecule
from molecular.molecule.relabel import Exchange, find_exchanges, relabel, swap, volumes
from molecular.molecule.storage import save_molecule
from molecular.molecule.topology import Topology
from nflib.io import complete_folder, only_run, write_json

UNITS = {1.0: "nm", 0.1: "ångström", 1e-3: "pm", 10.0: "10 nm, an ångström converted twice"}
"""Lengths of files, in nm, that are told by the distances of bonded atoms."""
SAMPLE = 50
"""Frames that atoms and units are judged by."""
STRETCHED = (0.6, 1.5)
"""Bonds beyond these multiples of the structure's lengths are torn, or of other atoms."""
NARROWEST_BOX = 0.5
"""nm: a narrower box is a program's way to say that there is none."""
SAME_ENERGY = 0.25
"""kT, root mean square: atoms whose exchange changes the energy by more are not equivalent in the force field."""
GRIDS = (1e-2, 1e-3, 1e-4)
SHARD = 10_000
NOT_FINITE = "with positions that are not finite"


def import_trajectory(
    molecule: Molecule,
    trajectories: str | Path | Sequence[str | Path],
    output: str | Path,
    *,
    topology: str | Path | None = None,
    temperature: float | None = None,
    highest_energy: float = 100.0,
    stride: int = 1,
    num_parts: int = 10,
    seed: int = 0,
) -> ImportReport:
    """Trajectories of a molecule as an ensemble that `molecular.data.ensembles.load_ensemble` reads.

    Atoms are matched by names, otherwise by bonds and elements; water, ions and other molecules are left out; lengths
    become nm; molecules are made whole across a periodic box; equivalent hydrogens and branches get the names that they
    have in `molecule.positions`; lengths of constrained bonds are drawn anew from the flexible force field's thermal
    distribution; energies are those of `molecule.system`. Left out and counted are frames that are not finite, torn, of
    the wrong handedness, repeated, or of too high an energy.

    Args:
        molecule: whose force field is flexible.
        trajectories: one file or several, which are taken for independent: XTC, TRR, DCD, NetCDF, H5, models of a PDB,
            mmCIF or GRO file, or NPZ with positions (N, n, 3), and, if wanted, time (N,) and box (3, 3) or (N, 3, 3).
        output: a folder for topology.pdb, settings.json, frames-*.npz and import.json.
        topology: the atoms of the trajectories (PDB, mmCIF, GRO, prmtop, PSF, MOL2, H5). Without it, files
            that do not tell their atoms must have those of the molecule in its order.
        temperature: K that was simulated at; by default the molecule's.
        highest_energy: kT above the median; frames beyond it are left out.
        stride: take every so many-th frame.
        num_parts: parts for training and validation, at least: contiguous blocks where there are fewer files.
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
    _check(files, output, temperature, highest_energy, stride, num_parts)
    molecule = molecule.at(temperature)
    energy = compile_system(molecule.system, dtype=torch.float64, fallback=True)
    report = ImportReport(molecule.name, temperature)
    atoms = None if topology is None else read_atoms(Path(topology))
    parts = [_read(molecule, path, atoms, stride, report) for path in files]
    frames = _Collected(
        np.concatenate([part.positions for part in parts]),
        np.concatenate([part.time for part in parts]),
        np.concatenate(_ladders([len(part.time) for part in parts], num_parts)),
        np.repeat(np.arange(len(parts)), [len(part.time) for part in parts]),
    )
    if not len(frames.time):
        raise _no_frame(report)
    _mend(molecule, frames, report, energy)
    _draw_constrained(molecule, frames, report, seed)
    written = _with_energies(frames, energy, molecule.kT, highest_energy, report)
    report.frames_kept, report.ladders = len(written), len(np.unique(written.ladder))
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


@dataclass
class _Collected:
    """Frames on the way: positions (N, n, 3) nm in the molecule's order; time (N,) ps; ladder (N,); file (N,)."""

    positions: NDArray[np.floating]
    time: NDArray[np.float64]
    ladder: NDArray[np.int32]
    file: NDArray[np.integer]

    def keep(self, kept: NDArray[np.bool_], reason: str, report: ImportReport) -> None:
        """Leave frames out for one reason; raises ValueError if that leaves none."""
        if kept.all():
            return
        report.left_out[reason] = int((~kept).sum())
        self.positions, self.time = self.positions[kept], self.time[kept]
        self.ladder, self.file = self.ladder[kept], self.file[kept]
        if not kept.any():
            raise _no_frame(report)


def _no_frame(report: ImportReport) -> ValueError:
    files = ", ".join(file["file"] for file in report.files)
    reasons = ", ".join(f"{count} {reason}" for reason, count in report.left_out.items())
    return ValueError(f"no frame of {files} can be used for {report.molecule}: {reasons}.")


def _check(
    files: list[Path], output: Path, temperature: float, highest_energy: float, stride: int, num_parts: int
) -> None:
    if not files:
        raise ValueError("there is no trajectory; give one or more files.")
    if not (math.isfinite(temperature) and temperature > 0.0):
        raise ValueError(f"temperature is {temperature} K; give a positive number.")
    if not highest_energy > 0.0:
        raise ValueError(f"highest_energy is {highest_energy} kT above the median; give a positive number.")
    for name, value in (("stride", stride), ("num_parts", num_parts)):
        if value < 1:
            raise ValueError(f"{name} is {value}; give a positive whole number.")
    _check_output(output)


def _check_output(output: Path) -> None:
    if output.is_dir() and (list_shards(output) or (output / "settings.json").exists()):
        raise ValueError(f"{output} holds frames already; give another folder.")
    if output.exists() and not output.is_dir():
        raise ValueError(f"{output} is a file; give a folder.")


def _ladders(counts: list[int], num_parts: int) -> list[NDArray[np.int32]]:
    """A number for each frame's part: files, or contiguous blocks of them, as equal as may be."""
    each = -(-num_parts // len(counts))
    found, first = [], 0
    for count in counts:
        blocks = min(each, count)
        found.append((first + np.arange(count) * blocks // count).astype(np.int32))
        first += blocks
    return found


def _read(molecule: Molecule, path: Path, topology: Topology | None, stride: int, report: ImportReport) -> Part:
    """One file's frames of the molecule's atoms, in its order, nm, whole."""
    if topology is None and has_atoms(path):
        topology = read_atoms(path)
    num_atoms = molecule.num_atoms if topology is None else topology.num_atoms
    sample = _finite(read_frames(path, num_atoms, most=SAMPLE))
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
    part = _scaled(read_frames(path, num_atoms, order, stride=stride), scale)
    count = len(part.time)
    report.frames_read += count
    part = _finite(part)
    if len(part.time) < count:
        report.left_out[NOT_FINITE] = report.left_out.get(NOT_FINITE, 0) + count - len(part.time)
    positions, torn = _made_whole(part, molecule.topology)
    report.unwrapped += torn
    report.files.append(
        {
            "file": str(path),
            "frames": count,
            "atoms": num_atoms,
            "unit": UNITS[scale],
            "matched": matched,
            "rounding": _grid(part.positions),
            "drawn_bonds": 0,
        }
    )
    time = part.time
    if not (np.isfinite(time).all() and (time >= 0.0).all()):
        time = np.arange(len(time), dtype=np.float64)
    return Part(positions, time, None)


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
    pairs = _near_pairs(sample, candidates)
    ends = np.array(candidates)[pairs]
    distances = np.median(_distances(sample, ends), axis=0)
    bonds = perceive_bonds(chosen.elements, distances, pairs)
    graph = Topology(chosen.atom_names, chosen.elements, chosen.residues, chosen.residue_indices, bonds)
    found = []
    whole = _made_whole(sample.select(slice(1), np.array(candidates)), graph)[0][0]
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
    found = np.median(_distances(sample, np.array(order)[pairs]), axis=0)
    ratio = found / lengths(molecule.positions[None], molecule.topology.bonds)[0]
    return bool(((ratio > STRETCHED[0]) & (ratio < STRETCHED[1])).all())


def _distances(part: Part, pairs: NDArray[np.integer]) -> NDArray[np.float64]:
    """(N, k) distances of pairs of atoms (k, 2), to the nearest image; right for bonds, and too long for no other."""
    vectors = part.positions[:, pairs[:, 1]] - part.positions[:, pairs[:, 0]]
    box, inverse = _boxes(part)
    return np.linalg.norm(vectors - np.round(vectors @ inverse) @ box, axis=-1)


def _boxes(part: Part) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Boxes (N, 3, 3) and their inverses, zeros where a frame has none.

    Rounding fractional coordinates finds the shortest image of every vector below half the box's width, that is, of
    every bond, in triclinic boxes too.
    """
    count = len(part.positions)
    box = np.zeros((count, 3, 3)) if part.box is None else part.box
    sound: NDArray[np.bool_] = np.asarray(np.isfinite(box).all(axis=(1, 2)))
    volume = np.where(sound, np.abs(np.linalg.det(np.where(sound[:, None, None], box, 0.0))), 0.0)
    sound &= volume > NARROWEST_BOX**3
    box = np.where(sound[:, None, None], box, np.eye(3))
    inverse = np.linalg.inv(box)
    # The columns of the inverse are normal to the faces, and the longer the closer two faces are.
    sound &= 1.0 / np.linalg.norm(inverse, axis=1).max(axis=1) >= NARROWEST_BOX
    return np.where(sound[:, None, None], box, 0.0), np.where(sound[:, None, None], inverse, 0.0)


def _near_pairs(sample: Part, candidates: list[int], cutoff: float = 0.35) -> NDArray[np.int64]:
    """Pairs (k, 2) of candidates, by their places, that are near each other in the first frame, across its box too."""
    points = sample.positions[0, candidates]
    first = Part(sample.positions[:1], sample.time[:1], None if sample.box is None else sample.box[:1])
    (box,), (inverse,) = _boxes(first)
    owner = np.arange(len(points))
    if inverse.any():
        fraction = points @ inverse
        fraction -= np.floor(fraction)
        margin = cutoff * np.linalg.norm(inverse, axis=0)
        # Images beyond each face in turn; an axis's images are imaged along the next.
        for axis in range(3):
            below = fraction[:, axis] < margin[axis]
            above = fraction[:, axis] > 1.0 - margin[axis]
            step = np.eye(3)[axis]
            fraction = np.concatenate([fraction, fraction[below] + step, fraction[above] - step])
            owner = np.concatenate([owner, owner[below], owner[above]])
        points = fraction @ box
    pairs = owner[cKDTree(points).query_pairs(cutoff, output_type="ndarray")]
    pairs = np.unique(np.sort(pairs, axis=1), axis=0)
    return pairs[pairs[:, 0] < pairs[:, 1]].reshape(-1, 2)


def _made_whole(part: Part, topology: Topology) -> tuple[NDArray[np.floating], int]:
    """Positions whose bonds are not torn by the box, and how many frames had been torn."""
    box, inverse = _boxes(part)
    positions, torn = part.positions.copy(), np.zeros(len(part.positions), dtype=bool)
    seen = set[int]()
    for first in range(topology.num_atoms):
        queue = deque([] if first in seen else [first])
        while queue:
            atom = queue.popleft()
            seen.add(atom)
            for other in topology.neighbours[atom]:
                if other not in seen:
                    vectors = (positions[:, other] - positions[:, atom])[:, None]
                    images = np.round(vectors @ inverse)
                    positions[:, other] -= (images @ box)[:, 0]
                    torn |= images.any(axis=(1, 2))
                    seen.add(other)
                    queue.append(other)
    return positions, int(torn.sum())


def _grid(positions: NDArray[np.floating]) -> float:
    """The nm that positions were rounded to, 0 if they were not."""
    finite = positions[np.isfinite(positions)][:10_000]
    for grid in GRIDS:
        steps = finite / grid
        if np.abs(steps - np.round(steps)).max(initial=0.0) < 0.05:
            return grid
    return 0.0


def _mend(molecule: Molecule, frames: _Collected, report: ImportReport, energy: PotentialEnergy) -> None:
    """Leave out what cannot be mended, and name equivalent atoms as the molecule's structure does."""
    topology = molecule.topology
    frames.positions -= frames.positions.mean(axis=1, keepdims=True)
    ratio = lengths(frames.positions, topology.bonds) / lengths(molecule.positions[None], topology.bonds)
    whole = np.asarray(((ratio > STRETCHED[0]) & (ratio < STRETCHED[1])).all(axis=1))
    frames.keep(whole, "with bonds that are torn or crossed", report)
    right = np.ones(len(frames.time), dtype=bool)
    for corners in topology.stereocentres:
        right &= volumes(frames.positions, corners) * volumes(molecule.positions, corners) > 0.0
    frames.keep(right, "of the wrong handedness", report)
    frames.keep(_first_of_their_kind(frames.positions), "that repeat another frame", report)
    exchanges = _equivalent(molecule, frames.positions, report, energy)
    frames.positions, exchanged = relabel(frames.positions, molecule.positions, exchanges)
    report.relabelled = int(exchanged.any(axis=1).sum())
    for exchange, count in zip(exchanges, exchanged.sum(axis=0).tolist(), strict=True):
        if count:
            report.exchanged[_pair_label(topology, exchange)] = count
    for corners in _amides(topology):
        cis = _is_cis(frames.positions, corners)
        if cis.any():
            report.cis_amides[f"{topology.label(corners[1])} - {topology.label(corners[2])}"] = int(cis.sum())


def _draw_constrained(molecule: Molecule, frames: _Collected, report: ImportReport, seed: int) -> None:
    """New lengths for the bonds that the simulation behind a file held at theirs."""
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


def _is_cis(positions: NDArray[np.floating], corners: tuple[int, int, int, int]) -> NDArray[np.bool_]:
    a, b, c, d = (positions[:, atom] for atom in corners)
    return (np.cross(a - b, c - b) * np.cross(d - c, c - b)).sum(-1) > 0.0


def _with_energies(
    frames: _Collected, energy: PotentialEnergy, kT: float, highest_energy: float, report: ImportReport
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
        ladder=frames.ladder,
        time=frames.time,
    )
