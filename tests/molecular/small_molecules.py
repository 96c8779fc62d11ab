"""Small molecules with force fields of the tests' own, as a user would bring them: a PDB file and a System as XML."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import openmm
from openmm import app, unit
from rdkit import Chem
from rdkit.Chem import AllChem

from molecular.molecule.topology import Residue, Topology

# Harmonic, of the size that general force fields have: kJ/mol/nm^2, kJ/mol/rad^2, kJ/mol; sigma nm, epsilon kJ/mol.
BOND, ANGLE = 250_000.0, 400.0
LENNARD_JONES = {"H": (0.25, 0.12), "C": (0.35, 0.28), "O": (0.31, 0.71)}
# Of peptides, without solvent: quick to build.
VACUUM = ["amber14-all.xml"]
SMILES = {"butane": "CCCC", "glycol": "OCCO", "propane": "CCC", "butene": "C/C=C/C", "methanol": "CO"}


def build(name: str, partial_charges: bool = True) -> tuple[app.Topology, openmm.System, np.ndarray]:
    """Topology with bonds, System and positions (nm) of a small molecule, without constraints."""
    molecule = Chem.AddHs(Chem.MolFromSmiles(SMILES[name]))
    AllChem.EmbedMolecule(molecule, randomSeed=1)
    AllChem.MMFFOptimizeMolecule(molecule)
    AllChem.ComputeGasteigerCharges(molecule)
    x = molecule.GetConformer().GetPositions() / 10
    atoms = list(molecule.GetAtoms())
    topology = app.Topology()
    residue = topology.addResidue("MOL", topology.addChain("A"))
    counts: dict[str, int] = {}
    placed = []
    for atom in atoms:
        symbol = atom.GetSymbol()
        counts[symbol] = counts.get(symbol, 0) + 1
        placed.append(topology.addAtom(f"{symbol}{counts[symbol]}", app.Element.getBySymbol(symbol), residue))
    pairs = [(bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()) for bond in molecule.GetBonds()]
    neighbours = {k: [n.GetIdx() for n in atom.GetNeighbors()] for k, atom in enumerate(atoms)}
    system = openmm.System()
    bonds, angles = openmm.HarmonicBondForce(), openmm.HarmonicAngleForce()
    torsions, nonbonded = openmm.PeriodicTorsionForce(), openmm.NonbondedForce()
    for atom in atoms:
        system.addParticle(atom.GetMass())
        sigma, epsilon = LENNARD_JONES[atom.GetSymbol()]
        charge = float(atom.GetProp("_GasteigerCharge")) if partial_charges else 0.0
        nonbonded.addParticle(charge, sigma, epsilon)
    for i, j in pairs:
        topology.addBond(placed[i], placed[j])
        bonds.addBond(i, j, float(np.linalg.norm(x[i] - x[j])), BOND)
        for a in neighbours[i]:
            for b in neighbours[j]:
                if len({a, b, i, j}) == 4:
                    torsions.addTorsion(a, i, j, b, 3, 0.0, 0.65)
    for centre, others in neighbours.items():
        for i, j in combinations(others, 2):
            arms = x[[i, j]] - x[centre]
            angle = np.arccos(arms[0] @ arms[1] / np.linalg.norm(arms[0]) / np.linalg.norm(arms[1]))
            angles.addAngle(i, centre, j, float(angle), ANGLE)
    nonbonded.createExceptionsFromBonds(pairs, 0.8333, 0.5)
    for force in (bonds, angles, torsions, nonbonded):
        system.addForce(force)
    return topology, system, x


def write(name: str, folder: Path, connect: bool = False) -> tuple[Path, Path]:
    """NAME.pdb, without CONECT records unless asked for, and NAME.xml in a folder."""
    topology, system, x = build(name)
    path = folder / f"{name}.pdb"
    with path.open("w") as file:
        app.PDBFile.writeFile(topology, x * unit.nanometer, file)
    if not connect:
        lines = [line for line in path.read_text().splitlines() if not line.startswith("CONECT")]
        path.write_text("\n".join(lines) + "\n")
    (folder / f"{name}.xml").write_text(openmm.XmlSerializer.serialize(system))
    return path, folder / f"{name}.xml"


def of_bonds(elements: Sequence[str], bonds: Iterable[tuple[int, int]]) -> Topology:
    """A topology of one residue, whose atoms are named by their numbers."""
    names = tuple(f"{element}{number}" for number, element in enumerate(elements))
    return Topology(names, tuple(elements), (Residue("MOL"),), (0,) * len(names), tuple(sorted(bonds)))
