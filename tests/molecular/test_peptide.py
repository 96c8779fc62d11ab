import random
import subprocess
import sys
from itertools import pairwise

import numpy as np
import openmm
import pytest
from openmm import app, unit

from molecular import Peptide
from molecular.molecule.sequences import SUPPORTED_RESIDUES, parse_sequence
from molecular.molecule.torsions import phi_psi_torsions
from tests.molecular.openmm_energies import assert_energies_are_openmms
from tests.molecular.small_molecules import VACUUM

# Atom orders of tests/golden/prose.json: those of the released Prose weights.
AA = """N H H2 H3 CA HA C O CB HB1 HB2 HB3
N H CA HA C O CB HB1 HB2 HB3 OXT"""
GKW = """N H H2 H3 CA HA2 HA3 C O
N H CA HA C O CB HB2 HB3 CG HG2 HG3 CD HD2 HD3 CE HE2 HE3 NZ HZ1 HZ2 HZ3
N H CA HA C O CB HB2 HB3 CG CD1 HD1 CD2 NE1 HE1 CE2 CE3 HE3 CZ2 HZ2 CZ3 HZ3 CH2 HH2 OXT"""


@pytest.fixture(scope="module")
def twenty() -> list[Peptide]:
    """All residues, four a chain; a vacuum force field, so that they are built quickly."""
    chains = [SUPPORTED_RESIDUES[k : k + 4] for k in range(0, 20, 4)]
    return [Peptide(f"Ace-{chain}-Nme", force_field=["amber99sbildn.xml"]) for chain in chains]


def by_residue(peptide):
    topology = peptide.topology
    return [
        (residue.name, {name: peptide.positions[atom] for name, atom in atoms.items()})
        for residue, atoms in zip(topology.residues, topology.atoms_by_name, strict=True)
    ]


def volume(atoms, centre, *branches):
    return np.linalg.det([atoms[name] - atoms[centre] for name in branches])


def torsion(a, b, c, d):
    """Degrees; the IUPAC sign, by projecting the outer bonds on the plane normal to b-c."""
    axis = (c - b) / np.linalg.norm(c - b)
    u, v = (w - np.dot(w, axis) * axis for w in (a - b, d - c))
    return np.degrees(np.arctan2(np.dot(np.cross(axis, u), v), np.dot(u, v)))


@pytest.mark.parametrize(("sequence", "expected", "residues"), [("AA", AA, "ALA ALA"), ("GKW", GKW, "GLY LYS TRP")])
def test_atom_order_is_that_of_the_released_weights(sequence, expected, residues):
    peptide = Peptide(sequence)
    assert list(peptide.topology.atom_names) == expected.split()
    lengths = [len(line.split()) for line in expected.splitlines()]
    expected_residues = [r for r, n in zip(residues.split(), lengths, strict=True) for _ in range(n)]
    assert list(peptide.topology.residue_names) == expected_residues
    assert list(peptide.topology.residue_indices) == [i for i, n in enumerate(lengths) for _ in range(n)]


def test_caps_and_defaults():
    capped, zwitterion = Peptide("Ace-A-Nme"), Peptide("AAA")
    assert capped.num_atoms == 22 and zwitterion.num_atoms == 33
    assert capped.topology.residue_names[::6] == ("ACE", "ALA", "ALA", "NME")
    assert (capped.temperature, zwitterion.temperature) == (300.0, 310.0)
    assert zwitterion.kT == pytest.approx(0.00831446261815324 * 310.0, rel=1e-12)
    for peptide, method in (
        (capped, openmm.NonbondedForce.NoCutoff),
        (zwitterion, openmm.NonbondedForce.CutoffNonPeriodic),
    ):
        forces = {force.getName(): force for force in peptide.system.getForces()}
        assert forces["NonbondedForce"].getNonbondedMethod() == method
        assert peptide.system.getNumConstraints() == 0
        assert "CMMotionRemover" not in forces
        masses = [peptide.system.getParticleMass(i).value_in_unit(unit.dalton) for i in range(peptide.num_atoms)]
        np.testing.assert_allclose(peptide.masses, masses, rtol=1e-3)  # the force field rounds
    assert forces["NonbondedForce"].getCutoffDistance().value_in_unit(unit.nanometer) == 2.0
    assert capped.positions.dtype == np.float64 and capped.positions.shape == (22, 3)


def test_options_reach_the_system():
    peptide = Peptide("Ace-G-Nme", temperature=350, cutoff=1.5, constraints="HBonds", hydrogen_mass=3.0)
    hydrogens = [i for i, element in enumerate(peptide.topology.elements) if element == "H"]
    assert peptide.temperature == 350.0
    assert peptide.system.getNumConstraints() == len(hydrogens)
    assert peptide.system.getParticleMass(hydrogens[0]).value_in_unit(unit.dalton) == pytest.approx(3.0)
    assert peptide.masses[hydrogens[0]] == pytest.approx(1.008, abs=1e-3)
    forces = {force.getName(): force for force in peptide.system.getForces()}
    assert forces["NonbondedForce"].getCutoffDistance().value_in_unit(unit.nanometer) == pytest.approx(1.5)


def test_caps_may_be_written_with_hyphens_between_residues():
    assert parse_sequence("Ace-A-G-Nme") == parse_sequence("Ace-AG-Nme")
    assert parse_sequence("ACE").letters == "ACE"  # alanine, cysteine, glutamate


def test_all_twenty_residues_are_l_and_trans(twenty):
    for residues in map(by_residue, twenty):
        for name, atoms in residues[1:-1]:
            if name != "GLY":
                # L: seen from HA, C, CB and N turn clockwise ("CO-R-N"), pointing away from the viewer.
                assert volume(atoms, "CA", "C", "CB", "N") > 1e-4, name
        for (name, before), (_, after) in pairwise(residues):
            ends = before.get("CA", before.get("CH3")), after.get("CA", after["C"])
            omega = torsion(ends[0], before["C"], after["N"], ends[1])
            assert abs(omega) > 140.0, (name, omega)


def test_side_chains_have_their_stereochemistry_and_names(twenty):
    residues = {name: atoms for peptide in twenty for name, atoms in by_residue(peptide)}
    assert len(residues) == 22
    # (2S,3S)-isoleucine, (2S,3R)-threonine: priorities at CB are CA > CG1 > CG2 and OG1 > CA > CG2;
    # seen from the side away from H, decreasing priority is anticlockwise for S, clockwise for R, where
    # three arms that turn anticlockwise towards the viewer have a positive determinant.
    assert volume(residues["ILE"], "CB", "CA", "CG1", "CG2") > 1e-4
    assert volume(residues["THR"], "CB", "OG1", "CA", "CG2") < -1e-4
    # pro-R branch is number 1 in valine and leucine.
    assert volume(residues["VAL"], "CB", "CA", "CG1", "CG2") < -1e-4
    assert volume(residues["LEU"], "CG", "CB", "CD1", "CD2") < -1e-4
    # HA2 of glycine is pro-R: it stands where an L-residue has its HA.
    assert volume(residues["GLY"], "CA", "N", "C", "HA3") > 1e-5
    for name, centre, inner, outer in (
        ("PHE", "CB", "CA", "CG"),
        ("LYS", "CG", "CB", "CD"),
        ("LYS", "CE", "CD", "NZ"),
        ("SER", "CB", "CA", "OG"),
        ("PRO", "CD", "CG", "N"),
    ):
        hydrogens = [f"H{centre[1]}2", f"H{centre[1]}3"]
        assert volume(residues[name], centre, outer, *hydrogens) > 1e-5, name
        assert volume(residues[name], centre, inner, *hydrogens) < -1e-5, name
    arg, asn, gln = residues["ARG"], residues["ASN"], residues["GLN"]
    assert abs(torsion(arg["CD"], arg["NE"], arg["CZ"], arg["NH1"])) < 40.0
    assert abs(torsion(asn["OD1"], asn["CG"], asn["ND2"], asn["HD21"])) > 140.0
    assert abs(torsion(gln["OE1"], gln["CD"], gln["NE2"], gln["HE21"])) > 140.0


def test_isoleucine_has_pdb_connectivity_and_order():
    peptide = Peptide("Ace-I-Nme")
    heavy = [
        name
        for name, element in zip(peptide.topology.atom_names, peptide.topology.elements, strict=True)
        if element != "H"
    ]
    assert heavy[3:11] == ["N", "CA", "C", "O", "CB", "CG1", "CG2", "CD1"]
    names = {
        frozenset((peptide.topology.atom_names[i], peptide.topology.atom_names[j])) for i, j in peptide.topology.bonds
    }
    assert frozenset(("CG1", "CD1")) in names and frozenset(("CG2", "CD1")) not in names


def test_bonds_are_those_of_the_force_field(twenty):
    for peptide in twenty:
        force = next(f for f in peptide.system.getForces() if isinstance(f, openmm.HarmonicBondForce))
        expected = sorted(tuple(sorted(force.getBondParameters(k)[:2])) for k in range(force.getNumBonds()))
        assert list(peptide.topology.bonds) == expected


def test_positions_are_a_minimum_and_reproducible():
    peptide = Peptide("Ace-V-Nme")
    state = random.getstate()
    random.seed(99)
    expected_draw = random.Random(99).random()
    again = Peptide("Ace-V-Nme")
    assert random.random() == expected_draw  # the global generator is as the caller left it
    random.setstate(state)
    np.testing.assert_array_equal(peptide.positions, again.positions)
    platform = openmm.Platform.getPlatformByName("Reference")
    context = openmm.Context(peptide.system, openmm.VerletIntegrator(0.001), platform)
    context.setPositions(peptide.positions)
    forces = context.getState(forces=True).getForces(asNumpy=True)._value
    assert np.sqrt((forces**2).mean()) < 10.0


def test_phi_psi_and_mdtraj_agree():
    import mdtraj

    for sequence in ("Ace-AG-Nme", "AAA"):
        peptide = Peptide(sequence)
        topology = peptide.topology.to_mdtraj()
        assert [atom.name for atom in topology.atoms] == list(peptide.topology.atom_names)
        frame = mdtraj.Trajectory(peptide.positions[None], topology)
        phi, psi = phi_psi_torsions(peptide.topology)
        np.testing.assert_array_equal(phi, mdtraj.compute_phi(frame)[0])
        np.testing.assert_array_equal(psi, mdtraj.compute_psi(frame)[0])
    assert [peptide.topology.atom_names[i] for i in phi[0]] == ["C", "N", "CA", "C"]


def test_pdb_round_trip(tmp_path):
    peptide = Peptide("AA")
    peptide.save_pdb(tmp_path / "aa.pdb")
    read = app.PDBFile(str(tmp_path / "aa.pdb"))
    assert [atom.name for atom in read.topology.atoms()] == list(peptide.topology.atom_names)
    assert read.topology.getNumBonds() == len(peptide.topology.bonds)
    np.testing.assert_allclose(np.array(read.positions.value_in_unit(unit.nanometer)), peptide.positions, atol=6e-5)
    with pytest.raises(ValueError, match=r"\(23, 3\)"):
        peptide.pdb_string(np.zeros((3, 3)))


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ({"temperature": 0.0}, "temperature"),
        ({"cutoff": -1.0}, "cutoff"),
        ({"cutoff": "long"}, "cutoff is 'long'; give a positive length in nm, or none for no cutoff"),
        ({"hydrogen_mass": 100}, "hydrogen_mass is 100 amu; give one above 0 and below 5"),
        ({"hydrogen_mass": 0.0}, "hydrogen_mass is 0 amu"),
        ({"constraints": "HBond"}, "HBonds"),
        ({"force_field": ["no-such-field.xml"]}, "no-such-field.xml"),
        ({"force_field": [float("nan")]}, "names of OpenMM force-field files"),
    ],
)
def test_bad_options_are_explained(option, words):
    with pytest.raises(ValueError, match=words):
        Peptide("Ace-G-Nme", **option)


def test_importing_the_package_does_not_load_openmm():
    code = "import sys, molecular; sys.exit('openmm' in sys.modules or 'rdkit' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    "sequence",
    [
        *("Ace-Hip-Nme", "Ace-Hid-Nme", "Hip-A", "A-Hid", "Ace-dAla-Nme", "Ace-Cyx-GG-Cyx-Nme", "AA-NH2", "Ace-AA"),
        *(
            "AA-Nme",
            "Ace-dIle-Nme",
            "dThr-A",
            "Ace-Ash-Glh-Nme",
            "Ace-Lyn-Nme",
            "S-E-R",
            "Ace-dVal-A-NH2",
        ),
    ],
)
def test_other_residues_ends_and_bridges(sequence):
    """Their energies are OpenMM's, their sequence comes back from their atoms, and D-residues are mirrored."""
    peptide = Peptide(sequence, force_field=VACUUM)
    assert peptide.topology.sequence == sequence
    assert peptide.topology == Peptide(peptide.topology.sequence, force_field=VACUUM).topology
    assert_energies_are_openmms(peptide)
    for residue, atoms in zip(peptide.topology.residues, by_residue(peptide), strict=True):
        if "CB" in atoms[1]:
            assert (volume(atoms[1], "CA", "C", "CB", "N") > 1e-4) == (not residue.name.startswith("D")), residue
    # Isoleucine and threonine are mirrored at both centres.
    residues = dict(by_residue(peptide))
    if "DIL" in residues:
        assert volume(residues["DIL"], "CB", "CA", "CG1", "CG2") < -1e-4
    if "DTH" in residues:
        assert volume(residues["DTH"], "CB", "OG1", "CA", "CG2") > 1e-4


def test_a_disulfide_is_a_bond():
    topology = Peptide("Ace-Cyx-GG-Cyx-Nme", force_field=VACUUM).topology
    first, second = (atom for atom, name in enumerate(topology.atom_names) if name == "SG")
    assert (first, second) in topology.bonds


@pytest.mark.parametrize(
    ("sequence", "words"),
    [
        ("ALA", "write 'Ala' for Ala, or 'A-L-A' for its letters"),
        ("A-GLY", "'GLY' in sequence 'A-GLY' may be one residue or three"),
        ("aa", "in lower case; write 'AA', or for D-amino acids 'dAla-dAla'"),
        ("my.pdb", "--structure"),
        ("cyclo-AA", "--structure"),
        ("aA", "'dAla' as a part of its own"),
        ("XA", "letter 1 .*'X', unknown.*ACDEFGHIKLMNPQRSTVWY"),
        ("Ace-AZ-Nme", "letter 2 of 'AZ' .*'Z'"),
        ("Ace-Nme", "no residues|no cap at this end"),
        ("Boc-A-Nme", "'Boc' .*'Ace' before"),
        ("Ace-A-Nhe", "'Nhe' .*'Nme'"),
        ("A", "use 'Ace-A-Nme'"),
        ("Ala", "use 'Ace-A-Nme'"),
        ("Ace-A-Xyz", "'Xyz' .* is no residue"),
        ("A-", "a hyphen that joins nothing"),
        ("Ace-Cyx-G-Nme", "has 1 Cyx"),
        ("", "has no residues"),
    ],
)
def test_what_is_no_sequence(sequence, words):
    with pytest.raises(ValueError, match=words) as error:
        Peptide(sequence)
    assert "\n" not in str(error.value)


def test_usual_spellings():
    for text in ("Ace-A-Nme", "Ac-A-NHMe", "ACE-A-NME", "Ac-Ala-NMe", " Ace-A-Nme "):
        assert str(parse_sequence(text)) == "Ace-A-Nme"
    assert str(parse_sequence("SER", letters=True)) == "S-E-R" == str(parse_sequence("S-E-R"))
    assert str(parse_sequence("Ace-Hie-Nme")) == "Ace-H-Nme"


def test_residues_that_several_templates_match_are_told(monkeypatch):
    """As of CHARMM36, whose alanine dipeptide has two."""

    def build(*_):
        raise Exception("Multiple non-identical matching templates found for residue -1 (Merged): ALAD, AANM.")

    monkeypatch.setattr("molecular.molecule.peptide._build", build)
    with pytest.raises(ValueError, match=r"^several templates .*\(ALAD, AANM\); .* give it by --system"):
        Peptide("Ace-A-Nme")


def test_a_variant_that_the_force_field_lacks():
    with pytest.raises(ValueError, match=r"does not know all of A-Lyn: No template .*LYS"):
        Peptide("A-Lyn")
