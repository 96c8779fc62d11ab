"""Trajectories in: one trajectory, spoilt in many ways, gives the ensemble of the clean one, or one sentence."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from itertools import combinations

import mdtraj
import numpy as np
import openmm
import pytest
import torch
from openmm import unit
from rdkit import Chem
from rdkit.Chem import rdDistGeom

from molecular import Peptide
from molecular.analysis.analyse import analyse
from molecular.analysis.observables import CollectiveVariable
from molecular.data.ensembles import load_ensemble, split_by_replica_group
from molecular.data.trajectories import files, import_trajectory, worker
from molecular.data.trajectories.bond_temperature import bond_temperature
from molecular.data.trajectories.constrained_bonds import (
    constrained_bonds,
    draw_lengths,
    lengths,
    thermal_lengths,
)
from molecular.dynamics import Langevin, relax, start_structures
from molecular.energy import compile_system
from molecular.molecule.force_fields import harmonic_bonds
from molecular.molecule.geometry import signed_volumes
from molecular.molecule.matching import match_bonds, match_names, perceive_bonds
from molecular.molecule.molecule import Molecule
from molecular.molecule.relabel import find_exchanges, relabel, swap
from molecular.molecule.topology import Residue, Topology, beyond_bond
from tests.damage import damaged
from tests.molecular.small_molecules import build

TRICLINIC = np.array([[1.9, 0.0, 0.0], [0.6, 1.8, 0.0], [-0.5, 0.7, 1.7]])
GROMACS = {
    "ACE": {"H1": "HH31", "H2": "HH32", "H3": "HH33"},
    "ALA": {"H": "HN"},
    "NME": {"H": "HN", "C": "CH3", "H1": "HH31", "H2": "HH32", "H3": "HH33"},
}


@dataclass
class Clean:
    """A molecule and its frames as they should come out."""

    molecule: Peptide
    positions: np.ndarray  # (N, n, 3) float64 nm, centred, every label right


def simulated(molecule, number, rounds, steps=40, seed=0):
    """Frames (number * rounds, n, 3) of Langevin dynamics from turned torsions."""
    energy = compile_system(molecule.system, dtype=torch.float64)
    x = torch.from_numpy(molecule.positions)
    generator = torch.Generator().manual_seed(seed)
    x = start_structures(x, molecule.topology, number, lambda y: relax(energy, y), generator) + 0.002 * torch.randn(
        number, molecule.num_atoms, 3, generator=generator, dtype=torch.float64
    )
    kelvin = torch.full((number,), molecule.temperature, dtype=torch.float64)
    integrator = Langevin(torch.from_numpy(molecule.masses), kelvin, 0.0005, 50.0)
    v, force = torch.zeros_like(x), energy.energy_and_force(x)[1]
    frames = []
    for _ in range(rounds):
        _, force = integrator.run(energy, x, v, force, steps, generator)
        frames.append(x.clone())
    return torch.stack(frames, 1).flatten(0, 1).numpy()


@pytest.fixture(scope="module")
def clean():
    molecule = Peptide("Ace-A-Nme")
    positions = simulated(molecule, 12, 5)
    positions, _ = relabel(positions, molecule.positions, find_exchanges(molecule.topology))
    positions = positions.astype(np.float32).astype(np.float64)
    return Clean(molecule, positions - positions.mean(axis=1, keepdims=True))


def write_pdb(path, topology, positions, box=None):
    """Models in nm; the atoms in any order, which libraries that write residue by residue would undo."""
    lines = (
        [] if box is None else [f"CRYST1{box[0]:9.3f}{box[1]:9.3f}{box[2]:9.3f}  90.00  90.00  90.00 P 1           1"]
    )
    for model, frame in enumerate(positions, start=1):
        lines.append(f"MODEL     {model:4d}")
        for atom, (x, y, z) in enumerate(10.0 * frame):
            residue = topology.residues[topology.residue_indices[atom]]
            name = topology.atom_names[atom]
            name = name if len(name) == 4 else f" {name:<3}"
            lines.append(
                f"ATOM  {(atom + 1) % 100000:5d} {name} {residue.name:>3} A{int(residue.number):4d}    "
                f"{x:8.3f}{y:8.3f}{z:8.3f}  1.00  0.00          {topology.elements[atom]:>2}"
            )
        lines.append("ENDMDL")
    path.write_text("\n".join([*lines, "END", ""]))


def write_dcd(path, positions, box=None):
    cell = {}
    if box is not None:
        edges = np.linalg.norm(box, axis=-1)
        cosines = [box[1] @ box[2] / edges[1] / edges[2], box[0] @ box[2] / edges[0] / edges[2]]
        cosines.append(box[0] @ box[1] / edges[0] / edges[1])
        cell = {
            "cell_lengths": np.tile(10 * edges, (len(positions), 1)).astype(np.float32),
            "cell_angles": np.tile(np.degrees(np.arccos(cosines)), (len(positions), 1)).astype(np.float32),
        }
    with mdtraj.formats.DCDTrajectoryFile(str(path), "w") as file:
        file.write((10 * positions).astype(np.float32), **cell)


def ordered(folder, clean, order, names=None):
    """A DCD and a PDB of the molecule's atoms in another order, or of other names."""
    topology = clean.molecule.topology.select(order)
    if names is not None:
        rows = zip(topology.atom_names, topology.residue_names, strict=True)
        renamed = tuple(names[residue].get(name, name) for name, residue in rows)
        residues = tuple(Residue({"NME": "NAC"}.get(r.name, r.name), r.number) for r in topology.residues)
        topology = Topology(renamed, topology.elements, residues, topology.residue_indices, topology.bonds)
    write_pdb(folder / "top.pdb", topology, clean.positions[:1, order])
    write_dcd(folder / "run.dcd", clean.positions[:, order])
    return folder / "run.dcd", folder / "top.pdb"


def angstrom(folder, clean):
    np.savez(folder / "run.npz", positions=(10.0 * clean.positions).astype(np.float32))
    return folder / "run.npz", None


def shuffled(folder, clean):
    return ordered(folder, clean, np.random.default_rng(3).permutation(clean.molecule.num_atoms).tolist())


def heavy_first(folder, clean):
    elements = clean.molecule.topology.elements
    return ordered(folder, clean, sorted(range(len(elements)), key=lambda atom: elements[atom] == "H"))


def torn(folder, clean):
    rng = np.random.default_rng(0)
    shift = rng.uniform(-3, 3, (len(clean.positions), 1, 3))
    fraction = (clean.positions + shift) @ np.linalg.inv(TRICLINIC)
    write_pdb(folder / "top.pdb", clean.molecule.topology, clean.positions[:1])
    write_dcd(folder / "run.dcd", (fraction - np.floor(fraction)) @ TRICLINIC, TRICLINIC)
    return folder / "run.dcd", folder / "top.pdb"


def duplicates(folder, clean):
    order = np.sort(np.concatenate([np.arange(len(clean.positions)), [3, 3, 3, 17, 40]]))
    order = np.concatenate([order, [5, 0]])
    np.savez(folder / "run.npz", positions=clean.positions[order].astype(np.float32))
    return folder / "run.npz", None


def not_finite(folder, clean):
    spoilt = np.insert(clean.positions, [0, 4, 30], clean.positions[0], axis=0).astype(np.float32)
    spoilt[0, 3, 1], spoilt[5, 0, 0], spoilt[32] = np.nan, np.inf, np.nan
    np.savez(folder / "run.npz", positions=spoilt)
    return folder / "run.npz", None


def exchanged(folder, clean):
    spoilt = clean.positions.copy()
    for number, exchange in enumerate(find_exchanges(clean.molecule.topology)):
        spoilt[number::3] = swap(spoilt[number::3], exchange)
    np.savez(folder / "run.npz", positions=spoilt.astype(np.float32))
    return folder / "run.npz", None


def with_water(folder, clean):
    """Waters and ions before and after, in a box that tears them all."""
    rng = np.random.default_rng(1)
    own = clean.molecule.topology
    number, edge = 60, 2.4
    water = Topology(
        ("O", "H1", "H2") * number + ("NA", "CL"),
        ("O", "H", "H") * number + ("Na", "Cl"),
        tuple(Residue("SOL", str(100 + i)) for i in range(number)) + (Residue("NA", "300"), Residue("CL", "301")),
        tuple(i // 3 for i in range(3 * number)) + (number, number + 1),
        (),
    )
    place = rng.uniform(0, edge, (len(clean.positions), number, 1, 3))
    shape = np.array([[0.0, 0.0, 0.0], [0.0957, 0.0, 0.0], [-0.024, 0.0927, 0.0]])
    oxygens = (place + shape).reshape(len(place), -1, 3)
    ions = rng.uniform(0, edge, (len(place), 2, 3))
    together = np.concatenate([oxygens[:, :90], clean.positions + edge, oxygens[:, 90:], ions], axis=1) % edge
    residues = water.residues[:30] + own.residues + water.residues[30:]
    indices = water.residue_indices[:90] + tuple(30 + i for i in own.residue_indices)
    indices += tuple(3 + i for i in water.residue_indices[90:])
    names = water.atom_names[:90] + own.atom_names + water.atom_names[90:]
    elements = water.elements[:90] + own.elements + water.elements[90:]
    whole = Topology(names, elements, residues, indices, ())
    write_pdb(folder / "top.pdb", whole, together[:1])
    write_dcd(folder / "run.dcd", together, edge * np.eye(3))
    return folder / "run.dcd", folder / "top.pdb"


def gromacs_names(folder, clean):
    return ordered(folder, clean, list(range(clean.molecule.num_atoms)), GROMACS)


SPOILERS = {
    "ångström": (angstrom, "in ångström"),
    "shuffled atoms": (shuffled, "found by its"),
    "heavy atoms first": (heavy_first, "found by its"),
    "torn by the box": (torn, "Made whole across the periodic box: "),
    "duplicates": (duplicates, "Left out: 7 that repeat another frame."),
    "not finite": (not_finite, "Left out: 3 with positions that are not finite."),
    "hydrogens exchanged": (exchanged, "Equivalent atoms exchanged in 60 frames: "),
    "water and ions": (with_water, "of 204 atoms in nm; Ace-A-Nme found by its atoms' names.\n    Left out: 182 atoms"),
    "GROMACS names": (gromacs_names, "found by its bonds, elements and names"),
}


@pytest.mark.parametrize("name", SPOILERS)
def test_a_spoilt_trajectory_gives_the_training_set_of_the_clean_one(name, clean, tmp_path):
    spoil, told = SPOILERS[name]
    trajectory, topology = spoil(tmp_path, clean)
    report = import_trajectory(clean.molecule, [trajectory], tmp_path / "out", topology=topology)
    ensemble = load_ensemble(tmp_path / "out", num_atoms=clean.molecule.num_atoms)
    assert told in "\n".join(report.lines())
    assert report.frames_kept == len(ensemble) == len(clean.positions)
    np.testing.assert_allclose(ensemble.positions.numpy(), clean.positions, atol=1e-6)
    expected = compile_system(clean.molecule.system, dtype=torch.float64)(ensemble.positions.double())
    torch.testing.assert_close(ensemble.energies, expected)
    assert (ensemble.replica_group == 0).all() and (ensemble.time.diff() > 0).all()
    assert json.loads((tmp_path / "out" / "settings.json").read_text())["temperatures"] == [300.0]
    assert json.loads((tmp_path / "out" / "import.json").read_text())["frames_kept"] == len(ensemble)
    assert sum(len(part) for part in split_by_replica_group(ensemble, (0.8, 0.2))) == 60


@pytest.mark.parametrize("suffix", ["pdb", "gro"])
def test_a_topology_without_elements(suffix, clean, tmp_path):
    trajectory, path = with_water(tmp_path, clean)
    if suffix == "pdb":
        text = "\n".join(line[:66] for line in path.read_text().splitlines())
        path.write_text(text.replace(" H   ALA", " HN  ALA").replace(" HB1 ALA", "1HB  ALA"))
    else:
        mdtraj.load_frame(str(path), 0).save(str(tmp_path / "top.gro"))
        path = tmp_path / "top.gro"
        path.write_text(path.read_text().replace("    H    ", "   HN    "))
    import_trajectory(clean.molecule, trajectory, tmp_path / "out", topology=path)
    np.testing.assert_allclose(load_ensemble(tmp_path / "out").positions, clean.positions, atol=1e-6)


def test_a_mirrored_trajectory_is_refused(clean, tmp_path):
    np.savez(tmp_path / "run.npz", positions=clean.positions * [1, 1, -1])
    with pytest.raises(ValueError, match=r"no frame of .*run.npz can be used for Ace-A-Nme: 60 of the wrong handed"):
        import_trajectory(clean.molecule, [tmp_path / "run.npz"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_mirrored_frames_are_left_out(clean, tmp_path):
    spoilt = np.concatenate([clean.positions, clean.positions[::20] * [1, 1, -1]])
    np.savez(tmp_path / "run.npz", positions=spoilt)
    report = import_trajectory(clean.molecule, [tmp_path / "run.npz"], tmp_path / "out")
    assert report.left_out == {"of the wrong handedness": 3}
    np.testing.assert_allclose(load_ensemble(tmp_path / "out").positions, clean.positions, atol=1e-6)


def test_constrained_bonds_of_hydrogens_are_drawn_anew(clean, tmp_path):
    molecule, topology = clean.molecule, clean.molecule.topology
    parameters = harmonic_bonds(molecule.system)
    spoilt = np.tile(clean.positions, (20, 1, 1))
    rng = np.random.default_rng(0)
    # A different frame each: heavy atoms move a little, hydrogens with them; then every X-H length is that of the force
    # field.
    spoilt += 1e-4 * rng.standard_normal(spoilt.shape)
    bonds = [bond for bond in topology.bonds if "H" in (topology.elements[bond[0]], topology.elements[bond[1]])]
    for i, j in bonds:
        heavy, hydrogen = (i, j) if topology.elements[j] == "H" else (j, i)
        arm = spoilt[:, hydrogen] - spoilt[:, heavy]
        spoilt[:, hydrogen] = spoilt[:, heavy] + parameters[i, j][1] * arm / np.linalg.norm(arm, axis=-1)[:, None]
    np.savez(tmp_path / "run.npz", positions=spoilt.astype(np.float32))
    report = import_trajectory(molecule, [tmp_path / "run.npz"], tmp_path / "out", seed=1)
    assert report.files[0]["drawn_bonds"] == 12
    found = load_ensemble(tmp_path / "out").positions.double().numpy()
    assert len(found) == len(spoilt)
    heavy = [atom for atom, element in enumerate(topology.elements) if element != "H"]
    np.testing.assert_allclose(centred(found[:, heavy]), centred(spoilt[:, heavy]), atol=1e-6)
    for bond in bonds:
        k, rest = parameters[bond]
        mean, variance = thermal_moments(k, rest, molecule.kT)
        drawn = lengths(found, [bond])[:, 0]
        assert abs(drawn.mean() - mean) < 4 * np.sqrt(variance / len(drawn))
        assert abs(drawn.var() / variance - 1) < 4 * np.sqrt(2 / len(drawn))
        arms = [frames[:, bond[1]] - frames[:, bond[0]] for frames in (found, spoilt)]
        arms = [arm / np.linalg.norm(arm, axis=-1, keepdims=True) for arm in arms]
        np.testing.assert_allclose(*arms, atol=1e-5)


def centred(positions):
    return positions - positions.mean(axis=1, keepdims=True)


def thermal_moments(k, rest, kT):
    """Mean and variance of r of density r² exp(-k (r - rest)² / 2 kT): from a Gaussian's moments."""
    s = kT / k
    norm = rest**2 + s
    mean = (rest**3 + 3 * rest * s) / norm
    return mean, (rest**4 + 6 * rest**2 * s + 3 * s**2) / norm - mean**2


def test_thermal_lengths_have_the_moments_of_their_density():
    k, rest, kT = 2000.0, 0.11, 2.5  # soft, so that r² matters
    drawn = thermal_lengths(k, rest, kT, 200_000, np.random.default_rng(0))
    mean, variance = thermal_moments(k, rest, kT)
    assert abs(drawn.mean() - mean) < 4 * np.sqrt(variance / len(drawn))
    assert abs(drawn.var() / variance - 1) < 0.02


def constrained(positions, topology, bonds, length=0.13):
    """Frames whose bonds all have one length, branches moved as a whole."""
    positions = positions.copy()
    from molecular.molecule.topology import beyond_bond

    for i, j in bonds:
        arm = positions[:, j] - positions[:, i]
        shift = (length / np.linalg.norm(arm, axis=-1, keepdims=True) - 1) * arm
        positions[:, sorted(beyond_bond(topology.neighbours, i, j))] += shift[:, None]
    return positions


def test_two_harmonic_bonds_between_the_same_atoms_are_their_sum():
    system, force = openmm.System(), openmm.HarmonicBondForce()
    force.addBond(1, 0, 0.1, 3000.0)
    force.addBond(0, 1, 0.2, 1000.0)
    system.addForce(force)
    assert harmonic_bonds(system) == {(0, 1): (4000.0, pytest.approx(0.125))}


def test_all_bonds_constrained_move_branches_as_a_whole(clean):
    topology = clean.molecule.topology
    spoilt = constrained(clean.positions, topology, topology.bonds)
    bonds = constrained_bonds(spoilt, topology)
    assert sorted(bonds) == list(topology.bonds)
    drawn = draw_lengths(spoilt, topology, bonds, clean.molecule.system, 2.5, np.random.default_rng(0))
    deviation = lengths(drawn, topology.bonds).std(axis=0)
    expected = [np.sqrt(2.5 / harmonic_bonds(clean.molecule.system)[bond][0]) for bond in topology.bonds]
    np.testing.assert_allclose(deviation, expected, rtol=0.35)
    for centre, near in enumerate(topology.neighbours):
        for one, two in combinations(near, 2):
            np.testing.assert_allclose(angle(drawn, one, centre, two), angle(spoilt, one, centre, two), atol=1e-9)


def angle(positions, one, centre, two):
    a, b = positions[:, one] - positions[:, centre], positions[:, two] - positions[:, centre]
    return np.arccos((a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1))


def test_constraints_that_cannot_be_undone_are_refused(clean, tmp_path):
    molecule = clean.molecule
    rng = np.random.default_rng(0)
    rigid = molecule.positions + 1e-6 * rng.standard_normal((30, molecule.num_atoms, 3))
    np.savez(tmp_path / "run.npz", positions=rigid)
    with pytest.raises(ValueError, match=r"run.npz: angles of hydrogens do not vary"):
        import_trajectory(molecule, [tmp_path / "run.npz"], tmp_path / "out")
    proline = Peptide("Ace-P-Nme")
    ring = [proline.topology.atoms_by_name[1][name] for name in ("CB", "CG")]
    frames = proline.positions[None] + 0.004 * rng.standard_normal((30, proline.num_atoms, 3))
    with pytest.raises(ValueError, match=r"the bond CB of PRO 2 - CG of PRO 2 of a ring at one length"):
        draw_lengths(frames, proline.topology, [tuple(sorted(ring))], proline.system, 2.5, rng)
    assert not (tmp_path / "out").exists()


def test_xtc_rounding_is_not_taken_for_motion(clean, tmp_path):
    topology = clean.molecule.topology
    bonds = [bond for bond in topology.bonds if topology.elements[bond[1]] == "H"]
    frames = constrained(clean.positions, topology, bonds, length=0.109)
    for name, positions, drawn in (("rigid", frames, 12), ("flexible", clean.positions, 0)):
        with mdtraj.formats.XTCTrajectoryFile(str(tmp_path / f"{name}.xtc"), "w") as file:
            file.write(positions.astype(np.float32))
        report = import_trajectory(clean.molecule, [tmp_path / f"{name}.xtc"], tmp_path / name)
        assert report.files[0]["drawn_bonds"] == drawn
        assert report.files[0]["rounding"] == 1e-3
        assert "stored to 0.001 nm" in "\n".join(report.lines())


@pytest.mark.parametrize("suffix", ["xtc", "trr", "dcd", "nc", "pdb", "npz", "h5"])
def test_every_format_in_a_folder_of_any_name(suffix, clean, tmp_path):
    if suffix == "h5":
        pytest.importorskip("tables")
    folder = tmp_path / "ünï cödé ✓"
    folder.mkdir()
    trajectory = mdtraj.Trajectory(
        clean.positions.astype(np.float32), clean.molecule.topology.to_mdtraj(), time=np.arange(60) * 2.0
    )
    if suffix == "npz":
        np.savez(folder / "run.npz", positions=clean.positions, time=np.arange(60) * 2.0)
    else:
        trajectory.save(str(tmp_path / f"run.{suffix}"))
        (tmp_path / f"run.{suffix}").rename(folder / f"run.{suffix}")
    write_pdb(folder / "töp.pdb", clean.molecule.topology, clean.positions[:1])
    for topology in (None, folder / "töp.pdb"):
        out = folder / f"öut {topology is None}"
        import_trajectory(clean.molecule, [folder / f"run.{suffix}"], out, topology=topology, stride=2)
        ensemble = load_ensemble(out)
        atol = {"xtc": 1.1e-3, "pdb": 2e-4}.get(suffix, 1e-6)
        np.testing.assert_allclose(ensemble.positions, clean.positions[::2], atol=atol)
        if suffix not in ("dcd", "pdb"):  # they know no time
            np.testing.assert_allclose(ensemble.time, np.arange(60)[::2] * 2.0)


def test_files_are_replica_groups_and_a_high_energy_is_left_out(clean, tmp_path):
    paths = []
    for number in range(3):
        positions = clean.positions[20 * number : 20 * number + 20].copy()
        if number == 1:
            carbon, hydrogen = (clean.molecule.topology.atoms_by_name[1][name] for name in ("CB", "HB1"))
            positions[4, hydrogen] += 0.45 * (positions[4, hydrogen] - positions[4, carbon])
        paths.append(tmp_path / f"run{number}.npz")
        np.savez(paths[-1], positions=positions)
    report = import_trajectory(clean.molecule, paths, tmp_path / "out", temperature=320, highest_energy=30)
    ensemble = load_ensemble(tmp_path / "out")
    assert report.left_out == {"with an energy of more than 30 kT above the median": 1}
    assert torch.bincount(ensemble.replica_group).tolist() == [20, 19, 20]
    with pytest.raises(ValueError, match="holds frames, whose molecule must stay"):
        import_trajectory(clean.molecule, paths, tmp_path / "out")


@pytest.mark.parametrize(
    ("times", "spacing"),
    [
        (np.tile(np.arange(30.0), 2) * 2.5, 2.5),  # two runs joined
        (np.arange(60) // 2 * 5.0, 5.0),  # each frame twice
        (np.arange(60.0)[::-1], 1.0),
        (np.zeros(60), 1.0),
        (np.where(np.arange(60) == 7, np.nan, np.arange(60) * 0.5), 0.5),
        (np.arange(60) * 0.5 - 3.0, 0.5),
        (np.cumsum(np.arange(60) % 3 + 1.0), None),
    ],
)
def test_times_that_do_not_increase_are_given_anew(times, spacing, clean, tmp_path):
    np.savez(tmp_path / "run.npz", positions=clean.positions.astype(np.float32), time=times)
    report = import_trajectory(clean.molecule, tmp_path / "run.npz", tmp_path / "out")
    ensemble = load_ensemble(tmp_path / "out")
    np.testing.assert_allclose(ensemble.positions, clean.positions, atol=1e-6)
    np.testing.assert_allclose(ensemble.time, times if spacing is None else spacing * np.arange(60))
    told = [line for line in report.lines() if "no times that increase" in line]
    assert len(told) == (spacing is not None) and all(f"put {spacing:g} ps apart" in line for line in told)


@pytest.mark.parametrize("suffix", ["dcd", "pdb", "npz"])
def test_files_without_times_are_said_to_have_none(suffix, clean, tmp_path):
    path = tmp_path / f"run.{suffix}"
    if suffix == "npz":
        np.savez(path, positions=clean.positions[::2])
    elif suffix == "pdb":
        write_pdb(path, clean.molecule.topology, clean.positions[::2])
    else:
        write_dcd(path, clean.positions[::2])
    report = import_trajectory(clean.molecule, path, tmp_path / "out", stride=3)
    assert any("no times that increase" in line and "1 ps apart" in line for line in report.lines())
    np.testing.assert_array_equal(load_ensemble(tmp_path / "out").time, np.arange(10.0))


@pytest.mark.parametrize(("factor", "told"), [(1.0, 0), (0.4, 1), (2.5, 1)])
def test_another_temperature_is_told_by_bonds(factor, told, tmp_path):
    # Three carbons joined by springs alone, whose Boltzmann distribution is drawn from.
    topology = Topology(("C1", "C2", "C3"), ("C", "C", "C"), (Residue("MOL"),), (0, 0, 0), ((0, 1), (1, 2)))
    system, bonds, k, generator = openmm.System(), openmm.HarmonicBondForce(), 2.5e5, np.random.default_rng(0)
    for _ in range(3):
        system.addParticle(12.0)
    for pair in topology.bonds:
        bonds.addBond(*pair, 0.15, k)
    system.addForce(bonds)
    molecule = Molecule(topology, system, [[0.15, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.15, 0.0]], 300.0)
    arms = generator.standard_normal((400, 2, 3))
    arms /= np.linalg.norm(arms, axis=-1, keepdims=True)
    arms *= thermal_lengths(k, 0.15, molecule.kT, 800, generator).reshape(400, 2, 1)
    positions = np.stack([arms[:, 0], np.zeros((400, 3)), arms[:, 1]], axis=1)
    np.savez(tmp_path / "run.npz", positions=positions)
    report = import_trajectory(molecule, tmp_path / "run.npz", tmp_path / "out", temperature=300.0 * factor)
    found = [line for line in report.lines() if "vary as at" in line]
    assert len(found) == told and all(f"not {300.0 * factor:g} K" in line for line in found)
    energy = compile_system(system, dtype=torch.float64)
    kelvin, error = bond_temperature(positions, molecule, energy)
    assert abs(kelvin - 300.0) < 4.0 * error < 60.0


def test_one_transition_has_no_error_however_it_is_imported(clean, tmp_path):
    """700 frames on one side and 300 on the other, in one file: its parts are not independent."""
    molecule = clean.molecule
    phi = CollectiveVariable.of("phi 1", molecule)(torch.from_numpy(clean.positions))
    ends = clean.positions[[int((phi - wanted).abs().argmin()) for wanted in (-90.0, 70.0)]]
    noise = 5e-4 * np.random.default_rng(0).standard_normal((1000, molecule.num_atoms, 3))
    positions = np.repeat(ends, [700, 300], axis=0) + noise
    basin = {"high": "0 < phi 1 < 150"}
    for name, time in (("increasing", np.arange(1000.0)), ("restarting", np.tile(np.arange(20.0), 50))):
        np.savez(tmp_path / f"{name}.npz", positions=positions, time=time)
        import_trajectory(molecule, tmp_path / f"{name}.npz", tmp_path / name, highest_energy=1e9)
        found = analyse(load_ensemble(tmp_path / name), molecule, ["phi 1"], basins=basin)
        assert found.populations["high"].value == pytest.approx(0.3)
        assert found.populations["high"].error == np.inf
        assert any("simulate for longer" in note for note in found.notes)


def test_another_molecule_is_told_in_one_sentence(clean, tmp_path):
    np.savez(tmp_path / "run.npz", positions=clean.positions)
    write_pdb(tmp_path / "run.pdb", clean.molecule.topology, clean.positions)
    glycine = Peptide("Ace-G-Nme")
    with pytest.raises(ValueError, match=r"run.pdb holds no molecule like Ace-G-Nme \(C5H10N2O2\); .* C6H12N2O2"):
        import_trajectory(glycine, [tmp_path / "run.pdb"], tmp_path / "out")
    with pytest.raises(ValueError, match=r"run.npz has 22 atoms but Ace-G-Nme has 19; give the topology"):
        import_trajectory(glycine, [tmp_path / "run.npz"], tmp_path / "out")
    glycine.save_pdb(tmp_path / "other.pdb")
    write_dcd(tmp_path / "run.dcd", clean.positions)
    with pytest.raises(ValueError, match=r"run.dcd has 22 atoms but \S*other.pdb has 19; give the topology"):
        import_trajectory(clean.molecule, [tmp_path / "run.dcd"], tmp_path / "out", topology=tmp_path / "other.pdb")
    # The same atoms with other bonds, and without a topology to tell it.
    np.savez(tmp_path / "order.npz", positions=clean.positions[:, ::-1])
    with pytest.raises(
        ValueError, match=r"order.npz in their order do not have the bonds of Ace-A-Nme; give the topol"
    ):
        import_trajectory(clean.molecule, [tmp_path / "order.npz"], tmp_path / "out")
    isomer = clean.positions.copy()
    nitrogen, carbon = (clean.molecule.topology.atoms_by_name[1][name] for name in ("H", "O"))
    isomer[:, nitrogen] = isomer[:, carbon] + [0.0, 0.0, 0.097]
    write_pdb(tmp_path / "isomer.pdb", clean.molecule.topology, isomer)
    with pytest.raises(ValueError, match=r"has the atoms of Ace-A-Nme \(C6H12N2O2\) but other bonds"):
        import_trajectory(clean.molecule, [tmp_path / "isomer.pdb"], tmp_path / "out")
    np.savez(tmp_path / "feet.npz", positions=clean.positions * 3.3)
    with pytest.raises(ValueError, match=r"feet.npz are typically .* from their nearest"):
        import_trajectory(clean.molecule, [tmp_path / "feet.npz"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def half_turned(frames, topology, fixed, turning):
    """Frames in which everything beyond a bond is turned by 180 degrees."""
    turned, beyond = frames.copy(), sorted(beyond_bond(topology.neighbours, fixed, turning))
    axis = turned[:, turning] - turned[:, fixed]
    axis /= np.linalg.norm(axis, axis=-1, keepdims=True)
    arm = turned[:, beyond] - turned[:, turning, None]
    along = (arm * axis[:, None]).sum(-1, keepdims=True) * axis[:, None]
    turned[:, beyond] = turned[:, turning, None] + 2 * along - arm
    return turned


def test_the_other_isomer_of_a_double_bond_is_told(tmp_path):
    """Frames of cis-2-butene went into trans-2-butene without a word: their bonds and hands are the same."""
    molecule = Molecule(*build("butene"), name="butene")
    frames = molecule.positions + np.random.default_rng(0).normal(scale=1e-4, size=(6, 12, 3))
    frames[:2] = half_turned(frames[:2], molecule.topology, 1, 2)
    np.savez(tmp_path / "run.npz", positions=frames)
    report = import_trajectory(molecule, [tmp_path / "run.npz"], tmp_path / "out", highest_energy=1e9)
    assert report.turned_bonds == {"C2 of MOL 1 - C3 of MOL 1": 2} and not report.cis_amides
    assert any("2 of 6 frames are cis where the structure is trans" in line for line in report.lines())


def test_cis_amides_are_counted_and_kept(clean, tmp_path):
    topology = clean.molecule.topology
    carbon, nitrogen = topology.atoms_by_name[0]["C"], topology.atoms_by_name[1]["N"]
    cis = half_turned(clean.positions[:10], topology, carbon, nitrogen)
    np.savez(tmp_path / "run.npz", positions=np.concatenate([clean.positions, cis]))
    report = import_trajectory(clean.molecule, [tmp_path / "run.npz"], tmp_path / "out", highest_energy=1e9)
    assert report.cis_amides == {"C of ACE 1 - N of ALA 2": 10}
    assert report.frames_kept == 70


def test_atoms_that_the_force_field_tells_apart_are_not_exchanged(clean, tmp_path):
    system = openmm.XmlSerializer.deserialize(openmm.XmlSerializer.serialize(clean.molecule.system))
    (nonbonded,) = (force for force in system.getForces() if isinstance(force, openmm.NonbondedForce))
    atom = clean.molecule.topology.atoms_by_name[1]["HB3"]
    charge, radius, depth = nonbonded.getParticleParameters(atom)
    nonbonded.setParticleParameters(atom, charge + 0.2 * unit.elementary_charge, radius, depth)
    molecule = Molecule(clean.molecule.topology, system, clean.molecule.positions)
    (exchange,) = (each for each in find_exchanges(molecule.topology) if atom in (each.first[0], each.second[0]))
    spoilt = clean.positions.copy()
    spoilt[::2] = swap(spoilt[::2], exchange)
    np.savez(tmp_path / "run.npz", positions=spoilt)
    report = import_trajectory(molecule, tmp_path / "run.npz", tmp_path / "out", highest_energy=1e9)
    assert list(report.not_equivalent) == ["HB2/HB3 of ALA 2"]
    assert report.relabelled == 0
    assert "Not exchanged: HB2/HB3 of ALA 2" in "\n".join(report.lines())
    np.testing.assert_allclose(load_ensemble(tmp_path / "out").positions, spoilt, atol=1e-6)


def test_the_first_of_two_like_molecules_is_taken_and_told(clean, tmp_path):
    own = clean.molecule.topology
    residues = own.residues + tuple(Residue(r.name, str(int(r.number) + 10)) for r in own.residues)
    indices = own.residue_indices + tuple(index + len(own.residues) for index in own.residue_indices)
    two = Topology(own.atom_names * 2, own.elements * 2, residues, indices, ())
    together = np.concatenate([clean.positions, clean.positions[::-1] + 2.0], axis=1)
    write_pdb(tmp_path / "top.pdb", two, together[:1])
    np.savez(tmp_path / "run.npz", positions=together)
    report = import_trajectory(clean.molecule, tmp_path / "run.npz", tmp_path / "out", topology=tmp_path / "top.pdb")
    assert "has 2 molecules like Ace-A-Nme; the first was taken." in report.warnings[0]
    np.testing.assert_allclose(load_ensemble(tmp_path / "out").positions, clean.positions, atol=1e-6)


CHARMM = {
    "HIS": {"H": "HT1", "H2": "HT2", "H3": "HT3", "HB2": "HB1", "HB3": "HB2"},
    "ILE": {"CD1": "CD", "HD11": "HD1", "HD12": "HD2", "HD13": "HD3", "HG12": "HG11", "HG13": "HG12", "O": "OT1"}
    | {"OXT": "OT2", "H": "HN"},
}


def test_names_of_charmm_are_matched_by_bonds():
    molecule = Peptide("HI")
    topology = molecule.topology
    names = tuple(
        CHARMM[residue].get(name, name)
        for name, residue in zip(topology.atom_names, topology.residue_names, strict=True)
    )
    residues = tuple(Residue({"HIS": "HSE"}.get(r.name, r.name), r.number) for r in topology.residues)
    renamed = Topology(names, topology.elements, residues, topology.residue_indices, topology.bonds)
    order = np.random.default_rng(0).permutation(topology.num_atoms).tolist()
    assert match_names(topology, renamed) is None
    found = match_bonds(topology, renamed.select(order))
    # Atoms that the bonds tell apart are themselves, and others are of their class.
    assert [topology.symmetry_classes[order[atom]] for atom in found] == list(topology.symmetry_classes)
    unique = [
        a for a in range(topology.num_atoms) if topology.symmetry_classes.count(topology.symmetry_classes[a]) == 1
    ]
    assert [order[found[atom]] for atom in unique] == unique
    assert len(unique) > 20
    assert match_bonds(topology, Peptide("IH").topology) is None


def test_matching_keeps_the_hands_of_centres_that_bonds_cannot_tell_apart():
    acid = Chem.AddHs(Chem.MolFromSmiles("O[C@H]([C@H](O)C(O)=O)C(O)=O"))
    rdDistGeom.EmbedMolecule(acid, randomSeed=1)
    positions = acid.GetConformer().GetPositions() / 10
    atoms = list(acid.GetAtoms())
    bonds = tuple(sorted(tuple(sorted((b.GetBeginAtomIdx(), b.GetEndAtomIdx()))) for b in acid.GetBonds()))
    elements = tuple(atom.GetSymbol() for atom in atoms)
    names = tuple(f"{element}{index}" for index, element in enumerate(elements))
    topology = Topology(names, elements, (Residue("TAR"),), (0,) * len(atoms), bonds)
    assert len(topology.stereocentres) == 2
    rng = np.random.default_rng(0)
    for _ in range(4):
        order = rng.permutation(len(atoms)).tolist()
        other = topology.select(order)
        other = Topology(tuple("X" * len(atoms)), other.elements, other.residues, other.residue_indices, other.bonds)
        found = match_bonds(topology, other, (positions, positions[order]))
        for corners in topology.stereocentres:
            assert signed_volumes(positions[order][found], corners) * signed_volumes(positions, corners) > 0
        mirrored = match_bonds(topology, other, (positions, -positions[order]))  # meso: its own mirror image
        for corners in topology.stereocentres:
            assert signed_volumes(-positions[order][mirrored], corners) * signed_volumes(positions, corners) > 0


def test_matching_takes_back_choices_that_fail():
    """Two squares and a cube-like graph, where refinement alone tells nothing apart."""
    prism = ((0, 1), (0, 2), (1, 2), (3, 4), (3, 5), (4, 5), (0, 3), (1, 4), (2, 5))
    bipartite = tuple((i, j) for i in range(3) for j in range(3, 6))
    names = tuple(f"C{i}" for i in range(6))
    one, two = (Topology(names, ("C",) * 6, (Residue("X"),), (0,) * 6, bonds) for bonds in (prism, bipartite))
    assert match_bonds(one, two) is None
    shuffled = one.select([4, 2, 0, 1, 5, 3])
    found = match_bonds(one, shuffled)
    assert {(min(found[i], found[j]), max(found[i], found[j])) for i, j in prism} == set(shuffled.bonds)


@pytest.mark.parametrize("sequence", ["Ace-A-Nme", "Ace-RNVLK-Nme", "GDFP", "MCW"])
def test_bonds_are_perceived_from_distances(sequence):
    molecule = Peptide(sequence)
    pairs = np.array([(i, j) for j in range(molecule.num_atoms) for i in range(j)])
    distances = lengths(molecule.positions[None], pairs)[0]
    assert perceive_bonds(molecule.topology.elements, distances, pairs) == molecule.topology.bonds


@pytest.mark.parametrize("sequence", ["Ace-RNQ-Nme", "Ace-VLK-Nme", "GDIP"])
def test_relabelling_undoes_every_exchange_and_keeps_the_energy(sequence):
    molecule = Peptide(sequence)
    energy = compile_system(molecule.system, dtype=torch.float64)
    exchanges = find_exchanges(molecule.topology)
    right, none = relabel(simulated(molecule, 4, 3), molecule.positions, exchanges)
    again, none = relabel(right, molecule.positions, exchanges)
    assert not none.any()
    rng = np.random.default_rng(0)
    spoilt = right.copy()
    for exchange in exchanges[::-1]:
        rows = rng.random(len(spoilt)) < 0.5
        spoilt[rows] = swap(spoilt[rows], exchange)
    mended, changed = relabel(spoilt, molecule.positions, exchanges)
    assert changed.any(axis=1).all()
    # Exchanges of two hydrogens of three leave a rotation of the three, which is no exchange of names.
    hydrogens = molecule.topology.elements.count("H")
    assert np.isclose(again, right).all() and hydrogens
    before = energy(torch.from_numpy(right))
    for exchange in exchanges:
        after = energy(torch.from_numpy(swap(right, exchange)))
        if exchange.handed:
            torch.testing.assert_close(after, before, rtol=1e-5, atol=0)
        else:  # impropers of planar groups depend on the order of their atoms: a little
            assert (after - before).square().mean().sqrt() < 0.25 * molecule.kT
    np.testing.assert_allclose(mended, right, atol=1e-12)


def test_what_relabelling_covers():
    topology = Peptide("Ace-RNVLKFD-Nme").topology
    pairs = {
        (topology.atom_names[exchange.first[0]], topology.label(exchange.second[0]), len(exchange.first))
        for exchange in find_exchanges(topology)
    }
    assert {
        ("NH1", "NH2 of ARG 2", 3),
        ("HH11", "HH12 of ARG 2", 1),
        ("HD21", "HD22 of ASN 3", 1),
        ("CG1", "CG2 of VAL 4", 4),
        ("CD1", "CD2 of LEU 5", 4),
        ("HB2", "HB3 of LYS 6", 1),
        ("HZ2", "HZ3 of LYS 6", 1),
    } <= pairs
    # Rings and carboxylates turn over in a simulation.
    assert not {name for name, _, _ in pairs} & {"CD1", "OD1"} - {"CD1"}
    assert ("CD1", "CD2 of PHE 7", 4) not in pairs


@pytest.mark.parametrize("suffix", ["xtc", "dcd", "trr", "nc", "npz", "pdb"])
def test_damaged_files_are_told_in_one_sentence(suffix, clean, tmp_path):
    told_or_right(suffix, clean, tmp_path, 4)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("suffix", ["xtc", "dcd", "trr", "nc", "npz", "pdb"])
def test_many_damaged_files_are_told_in_one_sentence(suffix, clean, tmp_path, monkeypatch):
    """The reader's process is a fork of this one, which need not import everything again for each file."""
    monkeypatch.setattr(files.subprocess, "run", forked)
    told_or_right(suffix, clean, tmp_path, 300)


def forked(command, *, input, **options):
    """As `subprocess.run` of the reader."""
    assert command[-1] == worker.__file__
    with tempfile.TemporaryFile("w+") as asked, tempfile.TemporaryFile("w+") as said:
        asked.write(input)
        asked.seek(0)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                os.dup2(asked.fileno(), 0)
                os.dup2(said.fileno(), 2)
                sys.stdin, sys.stderr = open(0, closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
                worker.main()
                code = 0
            except SystemExit as end:
                code = end.code
            finally:
                sys.stderr.flush()
                os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        said.seek(0)
        return subprocess.CompletedProcess(command, code, "", said.read())


def told_or_right(suffix, clean, tmp_path, number):
    """A damaged file is refused in a sentence that names it, with nothing written, or gives finite frames."""
    whole = tmp_path / f"whole.{suffix}"
    if suffix == "npz":
        np.savez(whole, positions=clean.positions[:20])
    else:
        mdtraj.Trajectory(clean.positions[:20].astype(np.float32), clean.molecule.topology.to_mdtraj()).save(str(whole))
    content = whole.read_bytes()
    rng = np.random.default_rng(0)
    bad, out = tmp_path / f"bad.{suffix}", tmp_path / "out"
    texts = [
        b"",
        b"text",
        content[: len(content) // 2],
        content[:40],
        *(damaged(bad.name, content, [], rng) for _ in range(number)),
    ]
    refused = 0
    for text in texts:
        bad.write_bytes(text)
        try:
            import_trajectory(clean.molecule, [bad], out)
        except ValueError as error:
            refused += 1
            assert f"bad.{suffix}" in str(error)
            assert "\n" not in str(error)
            assert not out.exists()
        else:
            assert torch.isfinite(load_ensemble(out).positions).all()
            shutil.rmtree(out)
    assert refused >= 3


def test_a_missing_file_and_a_wrong_type(clean, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no file .*none.xtc"):
        import_trajectory(clean.molecule, [tmp_path / "none.xtc"], tmp_path / "out")
    with pytest.raises(FileNotFoundError, match=f"{tmp_path} is a folder; give a trajectory or a topology"):
        import_trajectory(clean.molecule, [tmp_path], tmp_path / "out")
    (tmp_path / "run.txt").write_text("1 2 3")
    with pytest.raises(ValueError, match=r"run.txt cannot be read \(the formats are .xtc"):
        import_trajectory(clean.molecule, [tmp_path / "run.txt"], tmp_path / "out")
    for options, sentence in (
        ({"stride": 0}, "stride is 0"),
        ({"temperature": -3.0}, "temperature is -3.0 K"),
        ({"highest_energy": float("nan")}, "highest_energy is nan"),
    ):
        with pytest.raises(ValueError, match=sentence):
            import_trajectory(clean.molecule, [tmp_path / "run.txt"], tmp_path / "out", **options)
    np.savez(tmp_path / "weights.npz", positions=clean.positions, log_weights=np.zeros(len(clean.positions)))
    with pytest.raises(ValueError, match=r"weights.npz holds 'log_weights', but frames of an import all count alike"):
        import_trajectory(clean.molecule, [tmp_path / "weights.npz"], tmp_path / "out")
    with pytest.raises(ValueError, match=r"constraints=None\) \(the trajectory itself may be constrained"):
        import_trajectory(Peptide("Ace-A-Nme", constraints="HBonds"), [tmp_path / "run.txt"], tmp_path / "out")
