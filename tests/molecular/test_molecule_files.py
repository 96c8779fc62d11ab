"""Molecules from files of other programs, and in folders of our own."""

from __future__ import annotations

import json
import shutil

import numpy as np
import openmm
import pytest
from openmm import app, unit

from molecular import Molecule, Peptide
from molecular.commands.options import MoleculeOptions
from molecular.energy import compile_system
from molecular.molecule.files import read_molecule
from molecular.molecule.storage import load_molecule, refuse_other_content, save_molecule
from tests.molecular.gromacs_files import write_gromacs
from tests.molecular.openmm_energies import assert_energies_are_openmms, assert_same_energies
from tests.molecular.small_molecules import SMILES, VACUUM, build, write


@pytest.mark.parametrize("name", SMILES)
@pytest.mark.parametrize("connect", [False, True])
def test_small_molecule_from_pdb_and_system(name, connect, tmp_path):
    structure, system = write(name, tmp_path, connect)
    molecule = read_molecule(structure, system=system)
    topology, _, x = build(name)
    bonds = sorted(tuple(sorted((a.index, b.index))) for a, b in topology.bonds())
    assert list(molecule.topology.bonds) == bonds
    np.testing.assert_allclose(molecule.positions, x, atol=1e-4)
    assert molecule.name == name and molecule.temperature == 300.0
    assert molecule.topology.sequence is None
    assert_energies_are_openmms(molecule)


@pytest.mark.parametrize("name", SMILES)
def test_bonds_that_neither_file_nor_system_names_are_told_by_distances(name, tmp_path):
    structure, path = write(name, tmp_path)
    system = openmm.XmlSerializer.deserialize(path.read_text())
    named = read_molecule(structure, system=path).topology
    system.removeForce(0)  # of bonds
    path.write_text(openmm.XmlSerializer.serialize(system))
    assert read_molecule(structure, system=path).topology == named


@pytest.mark.parametrize("sequence", ["Ace-A-Nme", "AL"])
def test_peptide_from_its_own_pdb(sequence, tmp_path):
    """With the default force field it is the same molecule, whichever way it came in."""
    peptide = Peptide(sequence)
    peptide.save_pdb(tmp_path / "x.pdb")
    molecule = read_molecule(tmp_path / "x.pdb")
    assert peptide.topology.difference(molecule.topology) is None
    assert molecule.topology.sequence == sequence and molecule.temperature == peptide.temperature
    assert_same_energies(peptide, molecule)
    text = tmp_path / "x.cif"
    with text.open("w") as file:
        app.PDBxFile.writeFile(peptide.topology.to_openmm(), peptide.positions * unit.nanometer, file)
    assert peptide.topology.difference(read_molecule(text).topology) is None


def test_missing_hydrogens_and_water(tmp_path):
    peptide = Peptide("Ace-A-Nme")
    lines = peptide.pdb_string().splitlines()
    heavy = [line for line in lines if not (line.startswith("ATOM") and line[76:78].strip() == "H")]
    water = "HETATM  900  O   HOH B   1      20.000  20.000  20.000  1.00  0.00           O"
    at = next(number for number, line in enumerate(heavy) if line.startswith(("TER", "CONECT", "END")))
    text = [line for line in [*heavy[:at], water, *heavy[at:]] if not line.startswith("CONECT")]
    (tmp_path / "bare.pdb").write_text("\n".join(text) + "\n")
    molecule = read_molecule(tmp_path / "bare.pdb", name="alanine")
    assert sorted(molecule.topology.atom_names) == sorted(peptide.topology.atom_names)
    assert molecule.name == "alanine"
    assert_energies_are_openmms(molecule)
    context = openmm.Context(molecule.system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("CPU"))
    context.setPositions(molecule.positions)
    assert context.getState(energy=True).getPotentialEnergy()._value < 0


def test_gromacs(tmp_path, caplog):
    for box, told in ((0.0, False), (9.0, True)):
        top, gro = write_gromacs(tmp_path, box)
        molecule = read_molecule(top, coordinates=gro)
        assert ("propane.gro is left out: propane is taken alone, in a vacuum" in caplog.text) == told
    assert molecule.num_atoms == 11 and len(molecule.topology.bonds) == 10
    np.testing.assert_allclose(molecule.positions, build("propane")[2], atol=6e-4)
    assert_energies_are_openmms(molecule)


# --- folders


def test_a_molecule_comes_back_bit_for_bit(tmp_path):
    peptide = Peptide("Ace-A-Nme", hydrogen_mass=3.0)
    save_molecule(peptide, tmp_path / "ünï")
    again = load_molecule(tmp_path / "ünï")
    assert again.difference(peptide) is None and again.name == "Ace-A-Nme" and again.temperature == 300.0
    np.testing.assert_array_equal(again.positions, peptide.positions)
    assert again.topology == peptide.topology
    np.testing.assert_array_equal(again.masses, peptide.masses)


def test_quantities_of_openmm_are_taken():
    peptide = Peptide("AA")
    quantities = 10 * peptide.positions * unit.angstrom, 310 * unit.kelvin
    molecule = Molecule(peptide.topology, peptide.system, *quantities)
    assert molecule.temperature == 310.0 and molecule.at(290 * unit.kelvin).temperature == 290.0
    np.testing.assert_allclose(molecule.positions, peptide.positions)
    energy = compile_system(peptide.system)  # to which a molecule's positions, an array, go as they are
    found, force = energy.energy_and_force(peptide.positions[None])
    assert found.isfinite().all() and force.shape == (1, 23, 3) and energy.energy(peptide.positions).shape == ()


def test_folders_of_earlier_versions(tmp_path):
    settings = {"sequence": "Ace-G-Nme", "temperatures": [320.0, 400.0], "force_field": VACUUM, "cutoff": 1.5}
    (tmp_path / "settings.json").write_text(json.dumps(settings | {"constraints": None, "hydrogen_mass": 3.0}))
    molecule = load_molecule(tmp_path)
    expected = Peptide("Ace-G-Nme", temperature=320.0, force_field=VACUUM, cutoff=1.5, hydrogen_mass=3.0)
    assert molecule.difference(expected) is None and molecule.temperature == 320.0


# --- mistakes


def damage(folder, file, content):
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_bytes(content)
    return folder


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("molecule.json", b"{", "molecule.json is damaged"),
        ("molecule.json", b"[]", "molecule.json is damaged"),
        ("molecule.json", b"{}", "molecule.json is damaged"),
        ("molecule.json", b"\xff\xfe\x00", "molecule.json is damaged"),
        ("system.xml", b"", "system.xml is no OpenMM System"),
        ("system.xml", b"<System/>", "system.xml"),
        ("system.xml", b"\xff\xfe", "system.xml"),
        ("system.xml", None, "there is no .*system.xml"),
        ("molecule.json", None, "holds no molecule.json"),
    ],
)
def test_damaged_folders(file, content, words, tmp_path):
    save_molecule(Peptide("Ace-G-Nme", force_field=VACUUM), tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=words) as error:
        load_molecule(damage(tmp_path, file, content))
    assert "\n" not in str(error.value)


def test_the_system_of_another_molecule(tmp_path):
    save_molecule(Peptide("Ace-G-Nme", force_field=VACUUM), tmp_path / "a")
    save_molecule(Peptide("Ace-A-Nme", force_field=VACUUM), tmp_path / "b")
    shutil.copy(tmp_path / "b" / "system.xml", tmp_path / "a")
    with pytest.raises(ValueError, match="22 particles .* 19 atoms"):
        load_molecule(tmp_path / "a")


def test_mistakes(tmp_path):
    structure, system = write("butane", tmp_path)
    (tmp_path / "x.xyz").write_text("")
    (tmp_path / "x.prmtop").write_text("hello")
    (tmp_path / "x.inpcrd").write_text("hello")
    (tmp_path / "empty.pdb").write_text("")
    propane, _ = write_gromacs(tmp_path)
    _, glycol = write("glycol", tmp_path)
    broken = tmp_path / "broken.xml"
    broken.write_text('<ForceField><AtomTypes><Type name="A"/></AtomTypes></ForceField>')
    two = tmp_path / "two.pdb"
    lines = structure.read_text().splitlines()
    two.write_text("\n".join([*lines[:-1], lines[-2].replace(" MOL ", " MOL ")]) + "\n")
    for arguments, words in (
        ({"structure": tmp_path / "none.pdb"}, "there is no file"),
        ({"structure": tmp_path}, "is a folder"),
        ({"structure": structure}, "no peptide, so that it has no default force field"),
        ({"structure": structure, "force_field": VACUUM}, "does not know all of butane"),
        ({"structure": structure, "force_field": ["no.xml"]}, "cannot load the force field no.xml"),
        ({"structure": structure, "force_field": [str(broken)]}, "cannot load the force field .*broken.xml"),
        ({"structure": structure, "system": glycol}, "10 particles but butane has 14 atoms"),
        ({"structure": structure, "system": structure}, "is no OpenMM System"),
        ({"structure": structure, "system": system, "cutoff": 1.0}, "a System is complete"),
        ({"structure": structure, "system": system, "coordinates": structure}, "go with a prmtop"),
        ({"structure": structure, "force_field": ["a.xml"], "cutoff": -1.0}, "cutoff is -1.0; give a positive length"),
        ({"structure": tmp_path / "x.xyz"}, "no suffix of a structure"),
        ({"structure": tmp_path / "empty.pdb", "system": system}, "empty.pdb"),
        ({"structure": tmp_path / "x.prmtop"}, "holds no positions"),
        ({"structure": tmp_path / "x.prmtop", "coordinates": structure}, "cannot be read as an Amber prmtop"),
        (
            {"structure": tmp_path / "x.prmtop", "coordinates": structure, "implicit_solvent": "X"},
            "implicit_solvent is",
        ),
        ({"structure": propane, "coordinates": tmp_path / "x.inpcrd"}, "x.inpcrd cannot be read"),
        ({"structure": tmp_path / "x.prmtop", "coordinates": structure, "force_field": ["a"]}, "its own force field"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=words) as error:
            read_molecule(**arguments)
        assert "\n" not in str(error.value), arguments


def test_what_is_no_molecule():
    topology, system, x = build("butane")
    with pytest.raises(ValueError, match="expected an openmm.System, got 'butane.xml'; read one from XML"):
        Molecule(topology, "butane.xml", x)
    with pytest.raises(ValueError, match=r"shape \(13, 3\)"):
        Molecule(topology, system, x[:13])
    with pytest.raises(ValueError, match="not finite"):
        Molecule(topology, system, np.full_like(x, np.nan))
    lonely = app.Topology()
    residue = lonely.addResidue("MOL", lonely.addChain())
    for atom in topology.atoms():
        lonely.addAtom(atom.name, atom.element, residue)
    with pytest.raises(ValueError, match="14 molecules"):
        Molecule(lonely, system, x)
    frozen = openmm.XmlSerializer.clone(system)
    frozen.setParticleMass(5, 0.0)
    with pytest.raises(ValueError, match="H2 of MOL 1 of molecule has no mass in the System, by which OpenMM holds it"):
        Molecule(topology, frozen, x)
    pressed = openmm.XmlSerializer.clone(system)
    pressed.addForce(openmm.MonteCarloBarostat(1.0, 300.0))
    with pytest.raises(ValueError, match="OpenMM cannot use the System .A barostat cannot be used"):
        Molecule(topology, pressed, x)
    system.setDefaultPeriodicBoxVectors((3, 0, 0), (0, 3, 0), (0, 0, 3))
    system.getForce(3).setNonbondedMethod(openmm.NonbondedForce.PME)
    with pytest.raises(ValueError, match="periodic"):
        Molecule(topology, system, x)


def test_forces_that_know_where_a_molecule_is():
    """Flows and simulations take the energy for that of its shape: recentred, a restraint would be another."""
    topology, system, x = build("butane")
    pair = openmm.CustomCompoundBondForce(2, "100*(distance(p1, p2) - 0.3)^2")
    pair.addBond([0, 3], [])
    system.addForce(pair)
    Molecule(topology, system, x)
    restraint = openmm.CustomExternalForce("1000*((x - 1)^2 + y^2 + z^2)")
    restraint.addParticle(0, [])
    nested = openmm.CustomCVForce("restraint")
    nested.addCollectiveVariable("restraint", restraint)
    system.addForce(nested)
    with pytest.raises(ValueError, match="moved and turned as a whole.*CustomExternalForce"):
        Molecule(topology, system, x)


def test_options(tmp_path):
    with pytest.raises(ValueError, match="either --peptide or --structure"):
        MoleculeOptions().build()
    with pytest.raises(ValueError, match="--coordinates goes with --structure"):
        MoleculeOptions(peptide="AA", coordinates="a.gro").build()
    with pytest.raises(ValueError, match="run has no molecule of its own; name the folder 'model'"):
        MoleculeOptions().build(tmp_path / "run")


def nonbonded(molecule):
    (force,) = (force for force in molecule.system.getForces() if isinstance(force, openmm.NonbondedForce))
    return force.getNonbondedMethod(), force.getCutoffDistance()


@pytest.mark.parametrize("sequence", ["AAA", "Ace-A-Nme"])
def test_defaults_are_the_same_by_every_way(sequence, tmp_path):
    force_field = ["amber14-all.xml", "implicit/obc2.xml"]
    peptide = Peptide(sequence, force_field=force_field)
    peptide.save_pdb(tmp_path / "x.pdb")
    (tmp_path / "x.xml").write_text(openmm.XmlSerializer.serialize(peptide.system))
    by_structure = MoleculeOptions(structure=tmp_path / "x.pdb", force_field=force_field).build()
    by_system = MoleculeOptions(structure=tmp_path / "x.pdb", system=tmp_path / "x.xml").build()
    assert nonbonded(by_structure) == nonbonded(by_system) == nonbonded(peptide)
    assert by_structure.temperature == by_system.temperature == peptide.temperature
    for word in ("none", "None"):
        free = MoleculeOptions(structure=tmp_path / "x.pdb", force_field=force_field, cutoff=word).build()
        assert nonbonded(free)[0] == openmm.NonbondedForce.NoCutoff
    with pytest.raises(ValueError, match="cutoff is 'far'; give a positive length"):
        MoleculeOptions(peptide=sequence, cutoff="far").build()


def test_a_folder_keeps_the_molecule_of_what_it_holds(tmp_path):
    for content, file in (("frames", "frames-000000.npz"), ("weighted samples", "weights.npz")):
        folder = tmp_path / content
        folder.mkdir()
        refuse_other_content(folder)
        (folder / file).touch()
        refuse_other_content(folder, but=content)
        with pytest.raises(ValueError, match=f"holds {content}, whose molecule must stay with them"):
            refuse_other_content(folder)


def test_forces_are_the_same_where_energies_are(tmp_path):
    """A System from a file lists its terms in another order; masses are of dynamics alone."""
    peptide = Peptide("Ace-A-Nme")
    peptide.save_pdb(tmp_path / "x.pdb")
    molecule = read_molecule(tmp_path / "x.pdb")
    assert openmm.XmlSerializer.serialize(molecule.system) != openmm.XmlSerializer.serialize(peptide.system)
    assert peptide.difference(molecule) is None
    heavy = Peptide("Ace-A-Nme", hydrogen_mass=3.0)
    assert peptide.difference(heavy) is None and peptide.difference(heavy, masses=True) == "its masses are others"
    assert peptide.difference(Peptide("Ace-A-Nme", constraints="HBonds")) == "its constraints are others"
    for other in (Peptide("Ace-A-Nme", cutoff=0.6), Peptide("Ace-A-Nme", force_field=VACUUM)):
        assert peptide.difference(other) == "its force field is another"
