"""Training on one molecule: what is known of it beyond its frames."""

import openmm
import torch

from molecular import Molecule, Peptide
from molecular.training.fit_molecule import Symmetries


def test_only_symmetries_of_the_force_field_are_used():
    """A methyl group whose hydrogens have other charges may not be turned."""
    peptide = Peptide("Ace-A-Nme", force_field=["amber99sbildn.xml"])
    assert len(Symmetries(peptide).groups) == 3
    system = openmm.XmlSerializer.deserialize(openmm.XmlSerializer.serialize(peptide.system))
    force = next(force for force in system.getForces() if isinstance(force, openmm.NonbondedForce))
    hydrogen = peptide.topology.atom_names.index("HB2")
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
