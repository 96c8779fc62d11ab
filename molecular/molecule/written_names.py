"""Names of residues in a PDB file that say more than those of which OpenMM knows the bonds and hydrogens."""

from __future__ import annotations

import io
from typing import Any, TypeAlias

from openmm import app

from molecular.molecule.sequences import LETTERS
from molecular.molecule.topology import ALLO_NAMES, D_NAMES

# Protonation, in the words of AMBER and CHARMM.
PROTONATIONS = {
    **{name: name for name in ("HID", "HIE", "HIP", "ASH", "GLH", "LYN", "CYX")},
    **{"HSD": "HID", "HSE": "HIE", "HSP": "HIP", "CYM": "CYX"},  # neither has a hydrogen at its sulphur
}
MIRRORED = {name: LETTERS[letter].upper() for letter, name in D_NAMES.items()}
MIRRORED |= {name: LETTERS[letter].upper() for letter, names in ALLO_NAMES.items() for name in names}
STANDARD = MIRRORED | {
    **dict.fromkeys(("HID", "HIE", "HIP", "HSD", "HSE", "HSP"), "HIS"),
    **{"ASH": "ASP", "GLH": "GLU", "LYN": "LYS", "CYX": "CYS", "CYM": "CYS"},
}
# Names in the file by chain, number and insertion code, of residues that were read under a standard one.
WrittenNames: TypeAlias = dict[tuple[str, str, str], str]


def standard_names(text: str, written: WrittenNames) -> io.StringIO:
    """A PDB file in which residues have names whose bonds OpenMM knows; their own are put into `written`."""
    lines = text.splitlines()
    for number, line in enumerate(lines):
        name = line[17:20]
        if line.startswith(("ATOM", "HETATM")) and name in STANDARD:
            written[line[21:22].strip(), line[22:26].strip(), line[26:27].strip()] = name
            lines[number] = line[:17] + STANDARD[name] + line[20:]
    return io.StringIO("\n".join(lines) + "\n")


def _key(residue: Any) -> tuple[str, str, str]:
    return residue.chain.id.strip(), residue.id.strip(), residue.insertionCode.strip()


def variants(topology: app.Topology, written: WrittenNames) -> list[str | None]:
    """Of each residue, the variant of its protonation by OpenMM's name; None where its own name says none."""
    return [PROTONATIONS.get(written.get(_key(residue), "")) for residue in topology.residues()]


def name_as_written(topology: app.Topology, written: WrittenNames) -> None:
    """D-residues by their own names; protonation is told by the atoms, under one name."""
    for residue in topology.residues():
        name = written.get(_key(residue), "")
        if name in MIRRORED:
            residue.name = name
