"""A molecule in a folder: written whole, read back to the last bit."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import openmm

from molecular.molecule.molecule import Molecule
from molecular.molecule.topology import Topology
from nflib.io import complete_folder

DESCRIPTION, SYSTEM, STRUCTURE = "molecule.json", "system.xml", "topology.pdb"
SETTINGS = "settings.json"  # of simulations older than molecule.json
_PEPTIDE = ("sequence", "force_field", "cutoff", "constraints", "hydrogen_mass")


def save_molecule(molecule: Molecule, folder: str | os.PathLike[str]) -> None:
    """Write a molecule into a folder, where `load_molecule` finds it.

    Args:
        molecule: any `Molecule`.
        folder: made unless it is there; gets molecule.json (topology, float64 positions in nm, temperature, name and a
            checksum), system.xml (the serialized OpenMM System) and topology.pdb (for other programs; never read).

    Raises:
        OSError: the folder cannot be written.

    >>> import tempfile
    >>> from molecular import Peptide
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_molecule(Peptide("AA"), folder)
    ...     load_molecule(folder)
    Peptide('AA', 23 atoms, 310 K)
    """
    system = openmm.XmlSerializer.serialize(molecule.system)
    content: dict[str, Any] = {
        "name": molecule.name,
        "temperature": molecule.temperature,
        "topology": molecule.topology.to_dict(),
        "positions": molecule.positions.tolist(),  # JSON has the shortest digits that give the same float64
    }
    if all(hasattr(molecule, name) for name in _PEPTIDE):
        content["peptide"] = {name: getattr(molecule, name) for name in _PEPTIDE}
    content["checksum"] = _checksum(content, system)
    with complete_folder(folder) as temporary:
        (temporary / DESCRIPTION).write_text(json.dumps(content) + "\n", encoding="utf-8")
        (temporary / SYSTEM).write_text(system, encoding="utf-8", newline="\n")
        (temporary / STRUCTURE).write_text(molecule.pdb_string(), encoding="utf-8")


def load_molecule(folder: str | os.PathLike[str]) -> Molecule:
    """The molecule of a folder, as `save_molecule` got it: the same topology, System, positions and temperature.

    A folder of a simulation older than molecule.json has its peptide built anew from settings.json.

    Args:
        folder: that `save_molecule` wrote into.

    Returns:
        A `Molecule`; a `Peptide` where one was saved, not built anew.

    Raises:
        FileNotFoundError: no such folder, or no molecule in it.
        ValueError: files that are damaged or of different molecules.
    """
    folder = Path(folder)
    if not (folder / DESCRIPTION).is_file():
        return _peptide_of_settings(folder)
    content = _read_json(folder / DESCRIPTION)
    system = _read_text(folder / SYSTEM)
    if content.pop("checksum", None) != _checksum(content, system):
        raise ValueError(
            f"{DESCRIPTION} and {SYSTEM} in {folder} are not as they were written together (one is damaged, edited or "
            "of another molecule); copy both from their source or make the folder anew."
        )
    molecule = Molecule(
        Topology.from_dict(content["topology"]),
        openmm.XmlSerializer.deserialize(system),
        np.array(content["positions"], dtype=np.float64),
        content["temperature"],
        name=content["name"],
    )
    if "peptide" not in content:
        return molecule
    from molecular.molecule.peptide import Peptide

    return Peptide.of(molecule, **content["peptide"])


def _peptide_of_settings(folder: Path) -> Molecule:
    path = folder / SETTINGS
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no {DESCRIPTION} in {folder}; give a folder that a command of molecular wrote, or a structure."
        )
    from molecular.molecule.peptide import Peptide

    settings = _read_json(path)
    try:
        sequence, force_field, temperature = settings["sequence"], settings["force_field"], settings["temperatures"][0]
        if not (isinstance(sequence, str) and all(isinstance(name, str) for name in force_field)):
            raise TypeError(f"sequence {sequence!r} with force field {force_field!r}")
        options = {name: settings[name] for name in ("cutoff", "constraints", "hydrogen_mass")}
        return Peptide(sequence, force_field=force_field, temperature=temperature, **options)
    except (KeyError, TypeError, IndexError) as error:
        raise ValueError(f"{path} describes no simulation of a peptide ({error!r}); make the folder anew.") from error


def _checksum(content: dict[str, Any], system: str) -> str:
    text = json.dumps(content, sort_keys=True) + system
    return hashlib.sha256(text.encode()).hexdigest()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(_read_text(path))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({str(error).partition(chr(10))[0]}); make its folder anew.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is damaged (it holds {type(content).__name__}, not names and values).")
    return content


def _read_text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no {path.name} in {path.parent}; make the folder anew.") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is damaged (it is not text); make its folder anew.") from error
