"""Molecules in folders: with every simulation, set of samples and flow lies the molecule that it is of."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import openmm

from molecular.molecule.molecule import Molecule
from molecular.molecule.topology import Topology
from nflib.errors import first_line
from nflib.io import complete_folder, read_json

DESCRIPTION = "molecule.json"
SYSTEM = "system.xml"
STRUCTURE = "topology.pdb"
# Where earlier versions have the sequence and, of simulations, the force field.
SETTINGS, SUMMARY = "settings.json", "summary.json"
# What lies beside a molecule and is of it, by a pattern of files.
CONTENT = {"frames": "frames-*.npz", "weighted samples": "weights.npz"}
CHECKSUM = "checksum"  # SHA-256 of the rest of molecule.json and of system.xml, which only fit each other
EARLIER_OPTIONS = ("force_field", "cutoff", "constraints", "hydrogen_mass")


def save_molecule(molecule: Molecule, folder: str | Path) -> None:
    """Write a molecule into a folder: molecule.json (atoms, positions, temperature), system.xml and topology.pdb.

    Raises OSError where the folder cannot be written; it then keeps what it had.
    """
    system = openmm.XmlSerializer.serialize(molecule.system)
    content: dict[str, Any] = {
        "name": molecule.name,
        "temperature_K": molecule.temperature,
        "positions_nm": molecule.positions.tolist(),
        "topology": molecule.topology.to_dict(),
    }
    content[CHECKSUM] = _checksum(content, system)
    with complete_folder(folder) as temporary:
        (temporary / DESCRIPTION).write_text(json.dumps(content) + "\n", encoding="utf-8")
        (temporary / SYSTEM).write_text(system, encoding="utf-8")
        (temporary / STRUCTURE).write_text(molecule.pdb_string(), encoding="utf-8")


def refuse_other_content(folder: str | Path, *, but: str | None = None) -> None:
    """Raise ValueError where a folder holds frames or weighted samples, whose molecule must stay with them.

    Args:
        folder: to look into.
        but: of `CONTENT`, what may be there, since it is about to be replaced.
    """
    for content, pattern in CONTENT.items():
        if content != but and any(Path(folder).glob(pattern)):
            raise ValueError(f"{folder} holds {content}, whose molecule must stay with them; give another folder.")


def refuse_another_molecule(model: str | Path, molecule: Molecule) -> None:
    """Raise ValueError where the molecule beside a flow differs from this one, in force field or temperature, too.

    Flows of earlier versions have none beside them.
    """
    if not (Path(model) / DESCRIPTION).is_file():
        return
    difference = molecule.difference(load_molecule(model), temperature=True)
    if difference is not None:
        raise ValueError(
            f"{model} is a flow of something else than {molecule.name}: {difference}; give another output."
        )


def load_molecule(folder: str | Path) -> Molecule:
    """Read the molecule in a folder; of an earlier version's, the peptide that settings.json or summary.json names.

    Raises:
        FileNotFoundError: there is none.
        ValueError: a file is damaged, or the files are of different molecules.
    """
    folder = Path(folder)
    path = folder / DESCRIPTION
    if not path.is_file():
        return _earlier(folder)
    content = read_json(path)
    text = _read_system_text(folder / SYSTEM)
    checksum = content.pop(CHECKSUM, None)  # folders of a while ago have none
    expected = _checksum(content, text)
    try:
        topology = Topology.from_dict(content["topology"])
        positions, temperature, name = content["positions_nm"], float(content["temperature_K"]), str(content["name"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{path} is damaged ({error}).") from error
    system = _deserialize(text, folder / SYSTEM)
    try:
        molecule = Molecule(topology, system, positions, temperature, name=name)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} and {SYSTEM} do not fit: {error}") from error
    # What parses may still be wrong: a flipped bit in a number, or the System of another molecule of as many atoms.
    if checksum not in (None, expected):
        raise ValueError(
            f"{path} and {SYSTEM} are not as they were written together: one is damaged, edited or of another "
            "molecule; copy both again."
        )
    return molecule


def read_system(path: str | Path) -> openmm.System:
    """Read an OpenMM System from XML; raises FileNotFoundError, or ValueError for anything else in the file."""
    path = Path(path)
    return _deserialize(_read_system_text(path), path)


def _read_system_text(path: Path) -> str:
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}, which should hold an OpenMM System as XML.")
    try:
        return path.read_text(encoding="utf-8")
    except ValueError as error:
        raise ValueError(f"{path} is no OpenMM System as XML: it is no text ({error}).") from error


def _deserialize(text: str, path: Path) -> openmm.System:
    try:
        system = openmm.XmlSerializer.deserialize(text)
    except (openmm.OpenMMException, ValueError) as error:  # no XML
        raise ValueError(f"{path} is no OpenMM System as XML ({first_line(error)}).") from error
    if not isinstance(system, openmm.System):
        raise ValueError(f"{path} holds a {type(system).__name__}, not an OpenMM System.")
    return system


def _checksum(content: dict[str, Any], system: str) -> str:
    return hashlib.sha256((json.dumps(content, sort_keys=True) + system).encode()).hexdigest()


def _earlier(folder: Path) -> Molecule:
    """The peptide of settings.json or summary.json, from before there was a molecule.json."""
    from molecular.molecule.peptide import Peptide
    from molecular.molecule.sequences import parse_sequence

    for path in (folder / SETTINGS, folder / SUMMARY):
        if not path.is_file():
            continue
        content = read_json(path)
        try:
            if path.name == SUMMARY:
                sequence = parse_sequence(content["peptide"], letters=True)
                return Peptide(sequence, temperature=float(content["temperature_K"]))
            options = {name: content[name] for name in EARLIER_OPTIONS if name in content}
            return Peptide(
                parse_sequence(content["sequence"], letters=True),
                temperature=float(content["temperatures"][0]),
                **options,
            )
        except (AttributeError, KeyError, TypeError, IndexError) as error:
            raise ValueError(f"{path} does not name a peptide and its temperature ({error!r}).") from error
    raise FileNotFoundError(
        f"{folder} holds no {DESCRIPTION}; give one that `python -m molecular simulate`, `import` or `sample` wrote."
    )
