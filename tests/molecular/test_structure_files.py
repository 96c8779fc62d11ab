"""Peptides from PDB files as other programs and people write them."""

import logging
import random
import sys

import numpy as np
import openmm
import pytest
from openmm import app, unit

from molecular import Molecule, Peptide
from molecular.molecule.files import read_molecule
from molecular.molecule.peptide import add_hydrogens, minimise
from molecular.molecule.structure_checks import named_by_hand, odd_bond, unnamed_bond, with_right_hands
from molecular.molecule.topology import Residue, Topology
from tests.molecular.openmm_energies import assert_energies_are_openmms, assert_same_energies
from tests.molecular.small_molecules import VACUUM, build, write


def atoms_of(line):
    return line.startswith(("ATOM", "HETATM"))


def write_pdb(path, text, keep=lambda line: True, names=()):
    """The atoms for which `keep` holds, without CONECT records, residues renamed."""
    lines = [line for line in text.splitlines() if not line.startswith("CONECT") and (not atoms_of(line) or keep(line))]
    for old, new in names:
        lines = [line[:17] + line[17:20].replace(old, new) + line[20:] if atoms_of(line) else line for line in lines]
    path.write_text("\n".join(lines) + "\n")
    return path


def is_heavy(line):
    return line[76:78].strip() != "H"


@pytest.mark.parametrize(
    "sequence",
    ["Ace-Hip-Nme", "Ace-Hid-Nme", "Ace-dAla-Nme", "Ace-Cyx-GG-Cyx-Nme", "Ace-A-NH2", "Ace-AA", "Ace-Glh-Nme", "Hip-A"],
)
def test_a_peptide_comes_back_from_its_pdb(sequence, tmp_path):
    peptide = Peptide(sequence)
    peptide.save_pdb(tmp_path / "x.pdb")
    molecule = read_molecule(tmp_path / "x.pdb")
    assert molecule.topology.sequence == sequence
    assert molecule.topology.elements == peptide.topology.elements and molecule.topology.bonds == peptide.topology.bonds
    # The same force field, cutoff and temperature as those of the peptide.
    assert_same_energies(peptide, molecule)
    assert molecule.temperature == peptide.temperature
    assert_energies_are_openmms(molecule)


@pytest.mark.parametrize(
    ("sequence", "names"),
    [
        ("Ace-Hip-Nme", [("HIS", "HIP")]),
        ("Ace-Hip-Nme", [("HIS", "HSP")]),
        ("Ace-Hid-Nme", [("HIS", "HID")]),
        ("Ace-H-Nme", [("HIS", "HIE")]),
        ("Ace-H-Nme", [("HIS", "HSE")]),
        ("Ace-Ash-Nme", [("ASP", "ASH")]),
        ("Ace-Glh-Nme", [("GLU", "GLH")]),
        ("Ace-Lyn-Nme", [("LYS", "LYN")]),
        ("Ace-Cyx-GG-Cyx-Nme", [("CYS", "CYX")]),
        ("Ace-Cyx-GG-Cyx-Nme", []),
        ("Ace-dAla-Nme", []),
        ("Ace-dIle-A-Nme", []),
        ("Hip-A", [("HIS", "HIP")]),
        ("Ace-A-NH2", [("NH2", "NHE"), ("NHE", "NHE")]),
    ],
)
def test_hydrogens_are_added_as_names_say(sequence, names, tmp_path):
    peptide = Peptide(sequence, force_field=VACUUM)
    path = write_pdb(tmp_path / "bare.pdb", peptide.pdb_string(), is_heavy, names)
    molecule = read_molecule(path, force_field=VACUUM)
    assert molecule.topology.sequence == sequence
    assert sorted(molecule.topology.atom_names) == sorted(peptide.topology.atom_names)
    assert_energies_are_openmms(molecule)
    for one, other in zip(molecule.topology.atoms_by_name, peptide.topology.atoms_by_name, strict=True):
        if {"CB", "HA"} <= one.keys():
            centre = ["CA", "N", "C", "CB", "HA"]
            hands = []
            for part, atoms in ((molecule, one), (peptide, other)):
                x = part.positions[[atoms[name] for name in centre]]
                hands += [np.sign(np.linalg.det(x[1:4] - x[0])), np.sign(np.linalg.det(x[[1, 2, 4]] - x[0]))]
            assert hands[:2] == hands[2:]


def test_the_names_of_a_peptide_with_all_hydrogens_do_not_matter(tmp_path):
    """Programs write HIP, GLH and LYN, with all their atoms and no CONECT records."""
    peptide = Peptide("Ace-Hip-Glh-Lyn-Nme", force_field=VACUUM)
    names = [("HIS", "HIP"), ("GLU", "GLH"), ("LYS", "LYN")]
    molecule = read_molecule(write_pdb(tmp_path / "x.pdb", peptide.pdb_string(), names=names), force_field=VACUUM)
    assert molecule.topology.sequence == "Ace-Hip-Glh-Lyn-Nme"
    assert peptide.topology.difference(molecule.topology) is None


def test_thiolates(tmp_path):
    """CYM has no hydrogen and no bridge; `Peptide` has no word for it, so that it has no sequence."""
    peptide = Peptide("Ace-C-Nme", force_field=VACUUM)
    path = write_pdb(tmp_path / "x.pdb", peptide.pdb_string(), is_heavy, [("CYS", "CYM")])
    molecule = read_molecule(path, force_field=VACUUM)
    assert molecule.num_atoms == peptide.num_atoms - 1 and "HG" not in molecule.topology.atom_names
    assert molecule.topology.sequence is None
    assert_energies_are_openmms(molecule)


def test_ph_decides_what_names_do_not(tmp_path):
    path = write_pdb(tmp_path / "x.pdb", Peptide("Ace-H-Nme", force_field=VACUUM).pdb_string(), is_heavy)
    assert read_molecule(path, force_field=VACUUM, ph=4.0).topology.sequence == "Ace-Hip-Nme"
    assert read_molecule(path, force_field=VACUUM).topology.sequence == "Ace-H-Nme"


def test_plain_histidine_is_hie_whatever_hydrogen_bonds_it_makes():
    """As `Peptide` and the shipped flows have it, where OpenMM makes HID of a nitrogen that is near an oxygen."""
    peptide = Peptide("AH", force_field=VACUUM)
    positions, (alanine, histidine) = peptide.positions.copy(), peptide.topology.atoms_by_name
    donor, ring = (positions[[histidine[name] for name in atoms]].mean(0) for atoms in (["ND1"], ["CG", "CE1", "NE2"]))
    positions[alanine["O"]] = donor + 0.28 * (donor - ring) / np.linalg.norm(donor - ring)
    modeller = app.Modeller(peptide.topology.to_openmm(), positions * unit.nanometer)
    modeller.delete([atom for atom in modeller.topology.atoms() if atom.element is app.element.hydrogen])
    openmms = app.Modeller(modeller.topology, modeller.positions)
    assert openmms.addHydrogens(app.ForceField(*VACUUM))[1] == "HID"
    add_hydrogens(modeller, app.ForceField(*VACUUM), [None, None], seed=1)
    assert Topology.of(modeller.topology).sequence == "AH"


def test_hydrogens_of_histidine_that_are_there_are_heeded(tmp_path):
    lacking = tmp_path / "x.pdb"
    text = Peptide("Ace-Hid-Nme", force_field=VACUUM).pdb_string()
    lacking.write_text("\n".join(line for line in text.splitlines() if line[12:16].strip() != "HA"))
    assert read_molecule(lacking, force_field=VACUUM).topology.sequence == "Ace-Hid-Nme"


def test_reading_is_reproducible_and_leaves_the_global_generator(tmp_path):
    path = write_pdb(tmp_path / "x.pdb", Peptide("Ace-A-Nme", force_field=VACUUM).pdb_string(), is_heavy)
    random.seed(3)
    expected = random.Random(3).random()
    one, other = (read_molecule(path, force_field=VACUUM) for _ in range(2))
    np.testing.assert_array_equal(one.positions, other.positions)
    assert random.random() == expected


def test_the_first_of_several_models(tmp_path):
    peptide = Peptide("Ace-G-Nme", force_field=VACUUM)
    text = ""
    for number in (1, 2):
        atoms = [line for line in peptide.pdb_string(peptide.positions * number).splitlines() if atoms_of(line)]
        text += "\n".join([f"MODEL     {number:4d}", *atoms, "ENDMDL\n"])
    (tmp_path / "x.pdb").write_text(text + "END\n")
    molecule = read_molecule(tmp_path / "x.pdb", force_field=VACUUM)
    np.testing.assert_allclose(molecule.positions, peptide.positions, atol=1e-4)


def located(line, place, occupancy, residue=None, shift=0.0):
    """A line of a PDB file at an alternate location."""
    x = float(line[30:38]) + shift
    return f"{line[:16]}{place}{residue or line[17:20]}{line[20:30]}{x:8.3f}{line[38:54]}{occupancy:6.2f}{line[60:]}"


def test_the_alternate_location_of_the_highest_occupancy_is_read(tmp_path):
    peptide = Peptide("AA", force_field=VACUUM)
    lines = []
    for line in filter(atoms_of, peptide.pdb_string().splitlines()):
        number, name = line[22:26].strip(), line[12:16].strip()
        if number == "1" and name in ("CB", "HB1", "HB2", "HB3"):
            lines += [located(line, "A", 0.3, shift=0.5), located(line, "B", 0.7)]
        elif number == "2" and name in ("N", "H", "CA", "C", "O", "OXT"):
            lines += [located(line, "A", 0.6), located(line, "B", 0.4, "GLY")]
        else:
            lines.append(located(line, "A", 0.6) if number == "2" else line)
    (tmp_path / "x.pdb").write_text("\n".join([*lines, "END"]) + "\n")
    molecule = read_molecule(tmp_path / "x.pdb", force_field=VACUUM)
    assert molecule.topology.sequence == "AA"
    np.testing.assert_allclose(molecule.positions, peptide.positions, atol=1e-4)


@pytest.mark.parametrize("name", ["NAC", "CT3"])
def test_names_of_caps_and_ends_of_other_programs(name, tmp_path):
    text = Peptide("Ace-G-Nme", force_field=VACUUM).pdb_string()
    path = write_pdb(tmp_path / "x.pdb", text, names=[("NME", name)])
    assert read_molecule(path, force_field=VACUUM).topology.sequence == "Ace-G-Nme"
    text = Peptide("AG", force_field=VACUUM).pdb_string().replace(" ALA A", " NALAA").replace(" GLY A", " CGLYA")
    path = write_pdb(tmp_path / "y.pdb", text)
    assert read_molecule(path, force_field=VACUUM).topology.sequence == "AG"


def test_caps_of_charmm_are_atoms_of_the_residue_they_are_on(tmp_path):
    names = {
        "ACE": {"C": "CY", "O": "OY", "CH3": "CAY", "H1": "HY1", "H2": "HY2", "H3": "HY3"},
        "NME": {"N": "NT", "H": "HNT", "C": "CAT", "H1": "HT1", "H2": "HT2", "H3": "HT3"},
        "NHE": {"N": "NT", "HN1": "HT1", "HN2": "HT2"},
    }
    for sequence in ("Ace-A-Nme", "Ace-A-NH2"):
        peptide = Peptide(sequence)
        lines = []
        for line in filter(atoms_of, peptide.pdb_string().splitlines()):
            residue, name = line[17:20], line[12:16].strip()
            name = names.get({"NH2": "NHE"}.get(residue, residue), {}).get(name, name)
            lines.append(f"ATOM  {line[6:12]} {name:<3} ALA A   2{line[26:]}")
        (tmp_path / "x.pdb").write_text("\n".join([*lines, "END"]) + "\n")
        molecule = read_molecule(tmp_path / "x.pdb")
        assert molecule.topology.sequence == sequence and molecule.temperature == peptide.temperature
        np.testing.assert_allclose(molecule.positions, peptide.positions, atol=1e-4)


def test_residues_that_several_templates_match_are_told(tmp_path):
    atoms = "".join(f'<Atom name="{name}" type="t"/>' for name in ("C1", "C2", "C3"))
    bonds = '<Bond atomName1="C1" atomName2="C2"/><Bond atomName1="C2" atomName2="C3"/>'
    residues = "".join(f'<Residue name="{name}">{atoms}{bonds}</Residue>' for name in ("ONE", "TWO"))
    residues = residues.replace('name="C1" type="t"', 'name="C1" type="u"', 1)
    types = "".join(f'<Type name="{name}" class="{name}" element="C" mass="12.0"/>' for name in "tu")
    (tmp_path / "field.xml").write_text(
        f"<ForceField><AtomTypes>{types}</AtomTypes><Residues>{residues}</Residues></ForceField>"
    )
    topology = Topology(("C1", "C2", "C3"), ("C", "C", "C"), (Residue("MOL"),), (0, 0, 0), ((0, 1), (1, 2)))
    text = Molecule(topology, carbons(), [[0.0, 0.0, 0.0], [0.15, 0.0, 0.0], [0.15, 0.15, 0.0]]).pdb_string()
    (tmp_path / "x.pdb").write_text(text)
    several = r"^several templates of the force field match the same atoms \(ONE, TWO\); make the System in OpenMM"
    with pytest.raises(ValueError, match=several):
        read_molecule(tmp_path / "x.pdb", force_field=[str(tmp_path / "field.xml")])
    field = app.ForceField(str(tmp_path / "field.xml"))
    field.registerTemplateMatcher(lambda known, *_: known._templates["TWO"])
    (tmp_path / "x.xml").write_text(openmm.XmlSerializer.serialize(field.createSystem(topology.to_openmm())))
    assert read_molecule(tmp_path / "x.pdb", system=tmp_path / "x.xml").num_atoms == 3


def carbons():
    system = openmm.System()
    for _ in range(3):
        system.addParticle(12.0)
    return system


def without_beta_carbon(path, chain="A"):
    text = Peptide("Ace-Hip-L-Nme", force_field=VACUUM).pdb_string()
    text = "\n".join(f"{line[:21]}{chain}{line[22:]}" if atoms_of(line) else line for line in text.splitlines())
    keep = lambda line: is_heavy(line) and line[12:16].strip() not in ("CB", "CG")  # noqa: E731
    return write_pdb(path, text, keep, [("HIS", "HIP")])


@pytest.mark.parametrize("chain", ["A", " "])
def test_missing_heavy_atoms_are_added_by_pdbfixer(chain, tmp_path, caplog):
    pytest.importorskip("pdbfixer")
    caplog.set_level(logging.INFO)
    molecule = read_molecule(without_beta_carbon(tmp_path / "x.pdb", chain), force_field=VACUUM)
    assert molecule.topology.sequence == "Ace-Hip-L-Nme"
    assert "atoms were missing" in caplog.text
    assert_energies_are_openmms(molecule)
    for atoms in molecule.topology.atoms_by_name[1:-1]:
        x = molecule.positions[[atoms[name] for name in ("CA", "C", "CB", "N")]]
        assert np.linalg.det(x[1:] - x[0]) > 1e-4  # L


@pytest.mark.parametrize(
    ("sequence", "lost", "keep"),
    [
        ("Ace-AR-Nme", "CG", lambda line: True),
        ("GIN", "CG2", is_heavy),
        ("AT", "CG2", is_heavy),
        ("GV", "CB", is_heavy),
    ],
)
def test_completed_peptides_have_their_usual_order_and_hand(sequence, lost, keep, tmp_path):
    """pdbfixer puts what it adds behind the rest, and makes allo-isoleucine of isoleucine without CG2."""
    pytest.importorskip("pdbfixer")
    peptide = Peptide(sequence, force_field=VACUUM)
    path = write_pdb(tmp_path / "x.pdb", peptide.pdb_string(), lambda line: keep(line) and line[12:16].strip() != lost)
    assert peptide.topology.difference(read_molecule(path, force_field=VACUUM).topology) is None


@pytest.mark.parametrize(
    ("corners", "moved"),
    [
        (("CA", "N", "C"), ("CB", "CG1", "CG2", "CD1")),
        (("CB", "CA", "CG1"), ("CG2",)),
        (("CB", "CA", "CG2"), ("CG1", "CD1")),
        (("N", "C", "CB"), ("CA",)),
    ],
)
def test_movable_atoms_get_the_hand_of_their_name(corners, moved):
    peptide = Peptide("Ace-I-Nme", force_field=VACUUM)
    heavy = peptide.topology.select([k for k, element in enumerate(peptide.topology.elements) if element != "H"])
    x = peptide.positions[[element != "H" for element in peptide.topology.elements]]
    atoms = heavy.atoms_by_name[1]
    rows = [atoms[name] for name in moved]
    origin, one, other = x[[atoms[name] for name in corners]]
    normal = np.cross(one - origin, other - origin)
    mirrored = x.copy()
    mirrored[rows] -= 2.0 * np.outer((x[rows] - origin) @ normal, normal) / (normal @ normal)
    assert named_by_hand(heavy, mirrored) != heavy
    np.testing.assert_allclose(with_right_hands(heavy, mirrored, set(rows)), x, atol=1e-12)
    np.testing.assert_array_equal(with_right_hands(heavy, mirrored, set()), mirrored)
    np.testing.assert_array_equal(with_right_hands(heavy, x, set(rows)), x)


def test_a_hand_that_nothing_tells_is_not_guessed(tmp_path):
    """Without CA and CB pdbfixer makes D-alanine, and no atom of the file says which way to mirror it."""
    pytest.importorskip("pdbfixer")
    lost = lambda line: line[17:20] == "ALA" and line[12:16].strip() in ("CA", "CB")  # noqa: E731
    text = Peptide("GAG", force_field=VACUUM).pdb_string()
    path = write_pdb(tmp_path / "x.pdb", text, lambda line: is_heavy(line) and not lost(line))
    with pytest.raises(ValueError, match="lacks atoms that tell the hand of ALA 2, and completed it would be DAL"):
        read_molecule(path, force_field=VACUUM)


def test_atoms_of_large_molecules_are_selected_in_no_time():
    """Proteins in water; a loop over all pairs would take hours."""
    count = 100_000
    chain = Topology(
        ("C",) * count,
        ("C",) * count,
        tuple(Residue("UNK", str(k)) for k in range(count // 10)),
        tuple(k // 10 for k in range(count)),
        tuple((k, k + 1) for k in range(count - 1)),
    )
    mirrored = chain.select(range(count)[::-1])
    assert mirrored.bonds == chain.bonds and mirrored.residues == chain.residues[::-1]
    assert mirrored.residue_indices == chain.residue_indices


def test_missing_heavy_atoms_without_pdbfixer(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pdbfixer", None)
    with pytest.raises(ValueError, match=r"does not know all of x.*HIS.*pip install pdbfixer") as error:
        read_molecule(without_beta_carbon(tmp_path / "x.pdb"), force_field=VACUUM)
    assert "\n" not in str(error.value)


def test_heavy_atoms_of_d_residues_are_not_made_up(tmp_path):
    pytest.importorskip("pdbfixer")
    text = Peptide("Ace-dAla-Nme", force_field=VACUUM).pdb_string()
    path = write_pdb(tmp_path / "x.pdb", text, lambda line: is_heavy(line) and line[12:16].strip() != "CB")
    with pytest.raises(ValueError, match="would make them L"):
        read_molecule(path, force_field=VACUUM)


@pytest.mark.parametrize("name", ["butane", "glycol"])
def test_bonds_by_distance_where_the_system_has_none(name, tmp_path):
    structure, path = write(name, tmp_path)
    system = openmm.XmlSerializer.deserialize(path.read_text())
    bonds, *_ = (index for index, force in enumerate(system.getForces()) if "Bond" in force.getName())
    system.removeForce(bonds)
    path.write_text(openmm.XmlSerializer.serialize(system))
    expected, *_ = build(name)
    molecule = read_molecule(structure, system=path)
    assert isinstance(molecule, Molecule)
    assert list(molecule.topology.bonds) == sorted(
        tuple(sorted((one.index, other.index))) for one, other in expected.bonds()
    )


def test_two_molecules_are_refused(tmp_path):
    peptide = Peptide("Ace-G-Nme", force_field=VACUUM)
    modeller = app.Modeller(peptide.topology.to_openmm(), peptide.positions * unit.nanometer)
    modeller.add(peptide.topology.to_openmm(), (peptide.positions + 2.0) * unit.nanometer)
    with (tmp_path / "x.pdb").open("w") as file:
        app.PDBFile.writeFile(modeller.topology, modeller.positions, file)
    with pytest.raises(ValueError, match="is 2 molecules"):
        read_molecule(tmp_path / "x.pdb", force_field=VACUUM)


@pytest.mark.parametrize("keep", [lambda line: True, is_heavy], ids=["hydrogens", "heavy"])
def test_a_residue_that_is_missing_is_no_bond(keep, tmp_path):
    text = Peptide("AAAAA").pdb_string()
    path = write_pdb(tmp_path / "gap.pdb", text, lambda line: line[22:26].strip() != "3" and keep(line))
    with pytest.raises(ValueError, match=r"C of ALA 2 and N of ALA 4 are bonded but 0\.4\d+ nm apart"):
        read_molecule(path)


@pytest.mark.parametrize(("sequence", "mirrored"), [("Ace-A-Nme", "Ace-dAla-Nme"), ("Ace-dIle-dThr-Nme", "Ace-IT-Nme")])
def test_names_are_those_of_the_hand(sequence, mirrored, tmp_path, caplog):
    peptide = Peptide(sequence)
    names = [("DIL", "ILE"), ("DTH", "THR")]  # most programs call either hand by one name
    text = peptide.pdb_string(peptide.positions * np.array([1.0, 1.0, -1.0]))
    assert read_molecule(write_pdb(tmp_path / "x.pdb", text, names=names)).topology.sequence == mirrored
    if "d" in sequence:
        path = write_pdb(tmp_path / "y.pdb", peptide.pdb_string(), names=names)
        assert read_molecule(path).topology.sequence == sequence
        assert "y: ILE 2 is called DIL, whose hand it has." in caplog.text


def test_allo_residues_are_no_sequence():
    peptide = Peptide("Ace-T-Nme")
    atoms = peptide.topology.atoms_by_name[1]
    swapped, first, second = peptide.positions.copy(), atoms["OG1"], atoms["HB"]
    centre = swapped[atoms["CB"]]
    arms = {atom: swapped[atom] - centre for atom in (first, second)}
    unit_arms = {atom: arm / np.linalg.norm(arm) for atom, arm in arms.items()}
    swapped[first] = centre + np.linalg.norm(arms[first]) * unit_arms[second]
    swapped[second] = centre + np.linalg.norm(arms[second]) * unit_arms[first]
    swapped[atoms["HG1"]] += swapped[first] - peptide.positions[first]
    topology = Molecule(peptide.topology, peptide.system, swapped).topology
    assert topology.residues[1].name == "ALO" and topology.sequence is None


def test_insertion_codes_and_chains_are_kept(tmp_path):
    numbers = {"1": "  52 ", "2": "  52A", "3": "  52B", "4": "  53 "}
    lines = [
        line[:22] + numbers[line[22:26].strip()] + line[27:] if atoms_of(line) else line
        for line in Peptide("AVVA").pdb_string().splitlines()
    ]
    (tmp_path / "x.pdb").write_text("\n".join(lines) + "\n")
    molecule = read_molecule(tmp_path / "x.pdb")
    assert [residue.number for residue in molecule.topology.residues] == ["52", "52A", "52B", "53"]
    assert molecule.topology.label(molecule.topology.atoms_by_name[1]["CA"]) == "CA of VAL 52A"
    molecule.save_pdb(tmp_path / "again.pdb")
    assert read_molecule(tmp_path / "again.pdb").topology == molecule.topology


def test_a_chain_that_goes_on_after_another(tmp_path):
    topology = Topology(
        ("C1", "O1", "C2"),
        ("C", "O", "C"),
        (Residue("ONE", "1", "A"), Residue("TWO", "1", "B"), Residue("ONE", "2", "A")),
        (0, 1, 2),
        ((0, 1), (1, 2)),
    )
    assert Topology.of(topology.to_openmm()) == topology
    assert topology.label(1) == "O1 of TWO 1 of chain B"


def test_atoms_in_another_order_than_the_system(tmp_path):
    peptide = Peptide("Ace-A-Nme", hydrogen_mass=3.0)
    (tmp_path / "system.xml").write_text(openmm.XmlSerializer.serialize(peptide.system))
    assert read_molecule(write_pdb(tmp_path / "x.pdb", peptide.pdb_string()), system=tmp_path / "system.xml")
    lines = sorted(
        filter(atoms_of, peptide.pdb_string().splitlines()), key=lambda line: (line[22:26], not is_heavy(line))
    )
    (tmp_path / "y.pdb").write_text("\n".join(lines) + "\nEND\n")
    with pytest.raises(ValueError, match=r"atom \d+ of y, .* amu in the System; give both the same order"):
        read_molecule(tmp_path / "y.pdb", system=tmp_path / "system.xml")
    # Of one element: the methyl groups at the ends.
    order = np.arange(22)
    ends = [peptide.topology.atom_names.index("CH3"), 18]
    order[ends] = order[ends[::-1]]
    with pytest.raises(ValueError, match="are bonded but .* nm apart; its atoms may be in another order"):
        Molecule(peptide.topology, peptide.system, peptide.positions[order])


def test_angstroms_are_refused():
    peptide = Peptide("Ace-G-Nme", force_field=VACUUM)
    with pytest.raises(ValueError, match="no whole structure in nm"):
        Molecule(peptide.topology, peptide.system, 10.0 * peptide.positions)


def test_residues_that_openmm_does_not_know_are_bonded_to_their_neighbours(tmp_path):
    """Files of selenomethionine often have no CONECT records of the bonds to it, which the chain implies."""
    pytest.importorskip("pdbfixer")
    file = write_pdb(tmp_path / "x.pdb", Peptide("AMA").pdb_string(), is_heavy, [("MET", "MSE")])
    assert read_molecule(file, force_field=VACUUM).topology.sequence == "AMA"


def test_only_selenomethionine_is_replaced_and_that_is_said(tmp_path, caplog):
    """A phosphoserine became a serine, with a line of the log."""
    pytest.importorskip("pdbfixer")
    text = Peptide("ASMA").pdb_string()
    read_molecule(write_pdb(tmp_path / "x.pdb", text, is_heavy, [("MET", "MSE")]), force_field=VACUUM)
    assert "WARNING" in caplog.text and "Residue MSE 3 is not standard; taken as MET." in caplog.text
    with pytest.raises(ValueError, match="SEP 2 is not standard; give a force field that knows it, or make it SER"):
        read_molecule(write_pdb(tmp_path / "x.pdb", text, is_heavy, [("SER", "SEP")]), force_field=VACUUM)


def test_an_element_that_is_none_is_named(capfd):
    water = Topology(("O", "D1", "D2"), ("O", "D", "D"), (Residue("DOD"),), (0, 0, 0), ((0, 1), (0, 2)))
    with pytest.raises(ValueError, match="D is no element that is known here; deuterium is written as H"):
        odd_bond(water, np.eye(3))
    assert capfd.readouterr().err == ""  # nor RDKit's traceback


def test_hydrogens_alone_lack_no_bond_of_heavy_atoms():
    hydrogens = Topology(("H1", "H2"), ("H", "H"), (Residue("HHH"),), (0, 0), ())
    assert unnamed_bond(hydrogens, np.zeros((2, 3))) is None


def test_a_bond_that_closes_a_ring_is_never_replaced_by_two_ends(tmp_path):
    """Hydrogens and a second oxygen were added in its stead: another molecule, without a word."""
    pytest.importorskip("pdbfixer")
    field = app.ForceField(*VACUUM)
    peptide = Peptide("GAGA", force_field=VACUUM)
    first, last = peptide.topology.atoms_by_name[0], peptide.topology.atoms_by_name[-1]
    modeller = app.Modeller(peptide.topology.to_openmm(), peptide.positions * unit.nanometer)
    ends = {first["H2"], first["H3"], last["OXT"]}
    modeller.delete([atom for atom in modeller.topology.atoms() if atom.index in ends])
    atoms = {(atom.residue.index, atom.name): atom for atom in modeller.topology.atoms()}
    nitrogen, carbon = atoms[0, "N"], atoms[3, "C"]
    modeller.topology.addBond(nitrogen, carbon)
    system = field.createSystem(modeller.topology)
    ring = Topology.of(modeller.topology)
    pulled = minimise(system, np.array(modeller.positions.value_in_unit(unit.nanometer)))
    text = Molecule(ring, system, pulled, name="ring").pdb_string()
    bond = f"CONECT{nitrogen.index + 1:5d}{carbon.index + 1:5d}"

    named = write_pdb(tmp_path / "named.pdb", text)
    named.write_text(named.read_text().replace("\nEND", f"\n{bond}\nEND"))
    assert read_molecule(named, force_field=VACUUM).topology.difference(ring) is None
    with pytest.raises(ValueError, match="N of GLY 1 and C of ALA 4 are 0.1.* not bonded; name it in a CONECT record"):
        read_molecule(write_pdb(tmp_path / "x.pdb", text), force_field=VACUUM)
    bare = write_pdb(tmp_path / "bare.pdb", text, is_heavy)
    numbers = {(line[22:26].strip(), line[12:16].strip()): line[6:11] for line in bare.read_text().splitlines()}
    bond = f"CONECT{numbers['1', 'N']}{numbers['4', 'C']}"
    bare.write_text(bare.read_text().replace("\nEND", f"\n{bond}\nEND"))
    with pytest.raises(ValueError, match="does not know all of bare"):
        read_molecule(bare, force_field=VACUUM)
