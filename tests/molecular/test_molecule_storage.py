import json
import shutil

import numpy as np
import openmm
import pytest

from molecular import Peptide
from molecular.molecule.molecule import Molecule
from molecular.molecule.storage import load_molecule, save_molecule


@pytest.fixture(scope="module")
def peptide() -> Peptide:
    return Peptide("Ace-G-Nme", temperature=333.3, constraints="HBonds", hydrogen_mass=3.0)


@pytest.fixture
def folder(peptide, tmp_path):
    save_molecule(peptide, tmp_path / "ünï")
    return tmp_path / "ünï"


def assert_same(one, other):
    assert one.topology == other.topology
    assert one.positions.dtype == np.float64
    np.testing.assert_array_equal(one.positions, other.positions)
    serialize = openmm.XmlSerializer.serialize
    assert serialize(one.system) == serialize(other.system)
    assert (one.temperature, one.name) == (other.temperature, other.name)


def test_any_molecule_comes_back_and_replaces_another(peptide, folder):
    assert_same(load_molecule(folder), peptide)
    assert sorted(path.name for path in folder.iterdir()) == ["molecule.json", "system.xml", "topology.pdb"]
    generator = np.random.default_rng(0)
    positions = peptide.positions + generator.normal(scale=1e-3, size=peptide.positions.shape)
    molecule = Molecule(peptide.topology, peptide.system, positions, 1 / 3 + 300, name="Größe ∞")
    save_molecule(molecule, folder)
    assert_same(load_molecule(folder), molecule)
    save_molecule(load_molecule(folder), folder)  # what was read is written the same
    assert_same(load_molecule(folder), molecule)


def test_a_folder_without_a_checksum_is_read(peptide, folder):
    content = json.loads((folder / "molecule.json").read_text())
    del content["checksum"]
    (folder / "molecule.json").write_text(json.dumps(content))
    assert_same(load_molecule(folder), peptide)


def test_settings_that_name_no_peptide(tmp_path):
    settings = {"sequence": "Ace-G-Nme", "force_field": ["amber99sbildn.xml"], "temperatures": [333.3]}
    for changed in (
        {"temperatures": []},
        {"sequence": 3},
        {"force_field": 3},
        {"cutoff": []},
        {"temperatures": {}},
        {"sequence": "Ace-B-Nme"},
        {"temperatures": ["a"]},
        {"hydrogen_mass": "a"},
        {"constraints": []},
    ):
        (tmp_path / "settings.json").write_text(json.dumps(settings | changed))
        with pytest.raises(ValueError) as error:
            load_molecule(tmp_path)
        assert "\n" not in str(error.value)


def test_files_of_two_molecules_are_refused(folder, tmp_path):
    # As many atoms, another force field: nothing but the checksum tells.
    save_molecule(Peptide("Ace-G-Nme", temperature=333.3, constraints="HBonds", hydrogen_mass=2.0), tmp_path / "other")
    shutil.copy(tmp_path / "other" / "system.xml", folder)
    with pytest.raises(ValueError, match="of another molecule"):
        load_molecule(folder)


@pytest.mark.parametrize("name", ["molecule.json", "system.xml"])
def test_damage_is_one_sentence(peptide, folder, name):
    good = (folder / name).read_bytes()
    generator = np.random.default_rng(1)
    damaged = [b"", b"[]", b"{}", b"null", b"[" * 100_000, b"\xff\xfe", good[: len(good) // 2], good[:-2]]
    damaged += [b"<System/>", good.replace(b"0.", b"NaN", 1), good.replace(b"1", b"2", 1)]
    for place in generator.integers(len(good), size=40):
        flipped = bytearray(good)
        flipped[place] ^= 1 << generator.integers(8)
        damaged.append(bytes(flipped))
    for content in damaged:
        (folder / name).write_bytes(content)
        try:
            again = load_molecule(folder)
        except ValueError as error:
            assert "\n" not in str(error) and name.partition(".")[0] in str(error)
        else:
            assert_same(again, peptide)  # such as another blank for a line's end
    (folder / name).write_bytes(good)
    assert_same(load_molecule(folder), peptide)
