"""Topologies of uncapped peptides by their atoms' names alone, without building a structure."""

import torch
from openmm import app

from molecular.molecule.orderings import SIDE_CHAINS

NAMES = """
    ALA ARG ASN ASP CYS GLN GLU GLY HIS ILE LEU LYS MET PHE PRO SER THR TRP TYR VAL
"""
LETTERS = dict(zip("ARNDCQEGHILKMFPSTWYV", NAMES.split(), strict=True))


def atoms_of(residue, first, last):
    """The atoms' names in OpenMM's order, as far as the tests need it."""
    names = ["N", *(["H"] if residue != "PRO" else []), *(["H2", "H3"] if first else []), "CA"]
    names += ["HA2", "HA3"] if residue == "GLY" else ["HA"]
    names += " ".join(SIDE_CHAINS[residue].replace("|", " ").split()).split()
    return [*names, "C", "O", *(["OXT"] if last else [])]


def make_topology(sequence, seed=None):
    """The topology of a sequence; with a seed, each residue's atoms in a random order."""
    topology = app.Topology()
    chain = topology.addChain()
    generator = torch.Generator().manual_seed(seed or 0)
    for number, letter in enumerate(sequence):
        residue = topology.addResidue(LETTERS[letter], chain)
        names = atoms_of(LETTERS[letter], number == 0, number == len(sequence) - 1)
        if seed is not None:
            names = [names[place] for place in torch.randperm(len(names), generator=generator)]
        for name in names:
            topology.addAtom(name, app.Element.getBySymbol(name[0]), residue)
    topology.createStandardBonds()
    return topology


def draw_positions(topology, count, seed=0, dtype=torch.float64):
    """Conformations ``(count, n, 3)`` of no physics, in which no three atoms are collinear."""
    shape = (count, topology.getNumAtoms(), 3)
    return 0.2 * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def padded(positions):
    """One batch of molecules of several sizes."""
    longest = max(x.shape[1] for x in positions)
    return torch.cat([torch.nn.functional.pad(x, (0, 0, 0, longest - x.shape[1])) for x in positions])
