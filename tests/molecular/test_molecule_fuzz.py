"""Damaged files of every format that `read_molecule` and `load_molecule` read: one sentence, or a molecule."""

import shutil
import warnings

import numpy as np
import openmm
import pytest
from openmm import unit

from molecular import Molecule, Peptide
from molecular.molecule.files import read_molecule
from molecular.molecule.storage import load_molecule, save_molecule
from tests.damage import damaged
from tests.molecular.amber_files import write_amber
from tests.molecular.gromacs_files import write_gromacs
from tests.molecular.small_molecules import VACUUM, write

QUICK, THOROUGH = 12, 300
FILES = ("x.pdb", "x.cif", "butane.pdb", "butane.xml", "x.prmtop", "x.inpcrd", "x.top", "x.gro", "molecule.json",
         "system.xml", "settings.json")  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder with one good file of each format."""
    folder = tmp_path_factory.mktemp("whole")
    peptide = Peptide("Ace-G-Nme", force_field=VACUUM)
    peptide.save_pdb(folder / "x.pdb")
    with (folder / "x.cif").open("w") as file:
        openmm.app.PDBxFile.writeFile(peptide.topology.to_openmm(), peptide.positions * unit.nanometer, file)
    write("butane", folder)
    prmtop, inpcrd = write_amber(peptide, folder)
    prmtop.rename(folder / "x.prmtop")
    inpcrd.rename(folder / "x.inpcrd")
    top, gro = write_gromacs(folder)
    top.rename(folder / "x.top")
    gro.rename(folder / "x.gro")
    save_molecule(peptide, folder)
    (folder / "settings.json").write_text(
        '{"sequence": "Ace-G-Nme", "force_field": ["amber14-all.xml"], "cutoff": null, "constraints": null, '
        '"hydrogen_mass": null, "temperatures": [300.0, 400.0]}'
    )
    return folder


def read(folder, name):
    """By the command that reads a file of this name."""
    match name:
        case "x.pdb" | "x.cif":
            return read_molecule(folder / name, force_field=VACUUM)
        case "butane.pdb" | "butane.xml":
            return read_molecule(folder / "butane.pdb", system=folder / "butane.xml")
        case "x.prmtop" | "x.inpcrd":
            return read_molecule(folder / "x.prmtop", coordinates=folder / "x.inpcrd")
        case "x.top" | "x.gro":
            return read_molecule(folder / "x.top", coordinates=folder / "x.gro")
        case "settings.json":
            (folder / "molecule.json").unlink(missing_ok=True)
    return load_molecule(folder)


def check(whole, folder, name, count):
    shutil.copytree(whole, folder, dirs_exist_ok=True)
    assert isinstance(read(folder, name), Molecule)
    good = (whole / name).read_bytes()
    others = [(whole / other).read_bytes() for other in FILES if other != name]
    wrong = []
    for seed in range(count):
        content = damaged(name, good, others, np.random.default_rng(seed))
        (folder / name).write_bytes(content)
        try:
            with warnings.catch_warnings(action="ignore"):
                molecule = read(folder, name)
        except (ValueError, FileNotFoundError) as error:
            if "\n" in str(error) or len(str(error)) > 800:
                wrong.append((seed, f"no sentence: {str(error)[:500]!r}"))
        except Exception as error:
            wrong.append((seed, f"{type(error).__name__}: {error}"))
        else:
            assert np.isfinite(molecule.positions).all()
    assert not wrong


@pytest.mark.parametrize("name", FILES)
def test_a_few_damaged_files(whole, name, tmp_path):
    check(whole, tmp_path, name, QUICK)


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_many_damaged_files(whole, name, tmp_path):
    check(whole, tmp_path, name, THOROUGH)
