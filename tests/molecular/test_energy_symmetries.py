"""Exchanges of atoms that a force field allows, and no others."""

import openmm
import pytest
import torch

from molecular import Molecule, Peptide
from molecular.energy.symmetries import Symmetries


@pytest.mark.parametrize(("sequence", "name"), [("Ace-A-Nme", "HB2"), ("Ace-N-Nme", "HD22")])
def test_only_symmetries_of_the_force_field_are_used(sequence, name):
    """A methyl or NH2 group whose hydrogens have other charges may not be turned."""
    peptide = Peptide(sequence, force_field=["amber99sbildn.xml"])
    assert len(Symmetries(peptide).groups) == 3
    system = openmm.XmlSerializer.deserialize(openmm.XmlSerializer.serialize(peptide.system))
    force = next(force for force in system.getForces() if isinstance(force, openmm.NonbondedForce))
    hydrogen = peptide.topology.atom_names.index(name)
    charge, sigma, epsilon = force.getParticleParameters(hydrogen)
    force.setParticleParameters(hydrogen, 1.5 * charge, sigma, epsilon)
    molecule = Molecule(peptide.topology, system, peptide.positions)
    groups = Symmetries(molecule).groups
    assert len(groups) == 2 and not any(hydrogen in group for group in groups)


def test_symmetries_keep_the_energy():
    peptide = Peptide("Ace-V-Nme", force_field=["amber99sbildn.xml"])
    from molecular.energy import compile_system

    energy = compile_system(peptide.system, torch.float64)
    x = torch.from_numpy(peptide.positions).expand(20, -1, -1).clone()
    x += 0.003 * torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(1))
    turned = Symmetries(peptide)(x, torch.Generator().manual_seed(2))
    assert not torch.equal(turned, x)
    torch.testing.assert_close(energy.energy(turned), energy.energy(x), rtol=1e-9, atol=1e-7)


def test_half_turns_are_among_the_symmetries_of_one_molecule():
    """Of phenyl, amide, guanidinium and carboxylate, by the bonds alone, whatever the residues are called."""
    names = {
        "Ace-F-Nme": [{"CD1", "CD2", "CE1", "CE2", "HD1", "HD2", "HE1", "HE2"}],
        "Ace-N-Nme": [{"HD21", "HD22"}],
        "Ace-R-Nme": [{"NH1", "NH2", "HH11", "HH12", "HH21", "HH22"}, {"HH11", "HH12"}, {"HH21", "HH22"}],
        "Ace-P-Nme": [],
        "Ace-V-Nme": [],
        "AA": [{"O", "OXT"}],
    }
    for sequence, turned in names.items():
        peptide = Peptide(sequence)
        groups = [group for group in Symmetries(peptide).groups if len(group) == 2]
        assert [{peptide.topology.atom_names[atom] for atom in group[0]} for group in groups] == turned


def test_turns_of_a_branch_and_of_what_it_is_on_come_all_alike():
    """Arginine's guanidinium has eight arrangements, and hydrogens stay on their nitrogen."""
    peptide = Peptide("Ace-R-Nme")
    index = peptide.topology.atom_names.index
    atoms = [index(name) for name in ("NH1", "NH2", "HH11", "HH12", "HH21", "HH22")]
    x = torch.arange(float(peptide.num_atoms))[:, None].expand(8000, -1, 3)
    turned = Symmetries(peptide)(x, torch.Generator().manual_seed(0))[..., 0].long()[:, atoms]
    rows, counts = turned.unique(dim=0, return_counts=True)
    assert len(rows) == 8 and (counts - 1000).abs().max() < 150  # five standard deviations
    hydrogens = {atoms[0]: set(atoms[2:4]), atoms[1]: set(atoms[4:6])}
    for first, second, *others in rows.tolist():
        assert hydrogens[first] == set(others[:2]) and hydrogens[second] == set(others[2:])


def test_symmetries_of_a_force_that_openmm_alone_knows():
    peptide = Peptide("Ace-A-Nme")
    system = openmm.XmlSerializer.clone(peptide.system)
    force = openmm.CustomBondForce("0*r")
    force.addBond(0, 1)
    system.addForce(force)
    assert len(Symmetries(Molecule(peptide.topology, system, peptide.positions)).groups) == 3
