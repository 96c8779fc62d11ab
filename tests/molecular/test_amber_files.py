"""A capped peptide from an Amber prmtop and inpcrd."""

import numpy as np
import openmm
import pytest
from openmm import unit

from molecular import Molecule, Peptide
from molecular.molecule.files import read_molecule
from tests.molecular.amber_files import write_amber
from tests.molecular.openmm_energies import assert_energies_are_openmms


@pytest.fixture(scope="module")
def peptide() -> Peptide:
    return Peptide("Ace-A-Nme", force_field=["amber99sbildn.xml"])


@pytest.fixture(scope="module")
def files(peptide, tmp_path_factory):
    return write_amber(peptide, tmp_path_factory.mktemp("ünï"))


def energy_and_forces(molecule: Molecule, x: np.ndarray) -> tuple[float, np.ndarray]:
    platform = openmm.Platform.getPlatformByName("Reference")
    context = openmm.Context(molecule.system, openmm.VerletIntegrator(0.001), platform)
    context.setPositions(x)
    state = context.getState(energy=True, forces=True)
    forces = state.getForces(asNumpy=True).value_in_unit(unit.kilojoule_per_mole / unit.nanometer)
    return state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole), forces


def test_a_peptide_from_a_prmtop_is_the_one_it_was_written_from(peptide, files):
    prmtop, inpcrd = files
    molecule = read_molecule(prmtop, coordinates=inpcrd)
    assert peptide.topology.difference(molecule.topology) is None
    assert molecule.topology.sequence == "Ace-A-Nme"
    assert molecule.name == "Ace-A-Nme" and molecule.temperature == 300.0
    np.testing.assert_allclose(molecule.positions, peptide.positions, rtol=0, atol=1e-8)
    assert molecule.system.getNumConstraints() == 0
    generator = np.random.default_rng(0)
    for _ in range(4):
        x = peptide.positions + generator.normal(scale=0.005, size=peptide.positions.shape)
        energy, forces = energy_and_forces(molecule, x)
        expected, expected_forces = energy_and_forces(peptide, x)
        assert energy == pytest.approx(expected, rel=1e-5)
        np.testing.assert_allclose(forces, expected_forces, rtol=1e-5, atol=1e-5 * np.abs(expected_forces).max())


@pytest.mark.parametrize("solvent", [None, "HCT", "OBC1", "OBC2", "GBn", "GBn2"])
def test_energies_of_a_prmtop_are_openmms(files, solvent):
    prmtop, inpcrd = files
    molecule = read_molecule(prmtop, coordinates=inpcrd, implicit_solvent=solvent)
    assert_energies_are_openmms(molecule)
    if solvent is not None:  # a peptide of two amides: tens of kJ/mol
        vacuum = read_molecule(prmtop, coordinates=inpcrd)
        difference = energy_and_forces(molecule, vacuum.positions)[0] - energy_and_forces(vacuum, vacuum.positions)[0]
        assert -150.0 < difference < -20.0


def test_a_prmtop_with_positions_of_a_pdb_and_heavy_hydrogens(peptide, files, tmp_path):
    prmtop, _ = files
    peptide.save_pdb(tmp_path / "x.pdb")
    molecule = read_molecule(prmtop, coordinates=tmp_path / "x.pdb", temperature=350.0, hydrogen_mass=3.0, cutoff=1.5)
    np.testing.assert_allclose(molecule.positions, peptide.positions, rtol=0, atol=6e-5)
    hydrogen = molecule.topology.elements.index("H")
    assert molecule.system.getParticleMass(hydrogen).value_in_unit(unit.dalton) == pytest.approx(3.0)
    assert molecule.temperature == 350.0
    assert_energies_are_openmms(molecule)


def test_a_box_is_left_out_with_a_warning(peptide, tmp_path, caplog):
    prmtop, inpcrd = write_amber(peptide, tmp_path)
    read_molecule(prmtop, coordinates=inpcrd)
    assert not caplog.text
    inpcrd.write_text(inpcrd.read_text() + "".join(f"{value:12.7f}" for value in (30, 30, 30, 90, 90, 90)) + "\n")
    molecule = read_molecule(prmtop, coordinates=inpcrd, name="boxed")
    assert f"The box of {inpcrd} is left out: boxed is taken alone, in a vacuum." in caplog.text
    np.testing.assert_allclose(molecule.positions, peptide.positions, rtol=0, atol=1e-8)


def test_positions_of_another_molecule(files, tmp_path):
    prmtop, _ = files
    Peptide("Ace-G-Nme", force_field=["amber99sbildn.xml"]).save_pdb(tmp_path / "glycine.pdb")
    with pytest.raises(ValueError, match=r"\(19, 3\); 22 atoms") as error:
        read_molecule(prmtop, coordinates=tmp_path / "glycine.pdb")
    assert "\n" not in str(error.value)
