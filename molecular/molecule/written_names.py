"""Names of residues in a PDB file that say more than those of which OpenMM knows the bonds and hydrogens."""

from __future__ import annotations

import io
from typing import Any, TypeAlias

from openmm import app

from molecular.molecule.sequences import LETTERS
from molecular.molecule.topology import ALLO_NAMES, D_NAMES, RESIDUES

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
    **{"NAC": "NME", "CT3": "NME", "CT2": "NHE"},  # GROMACS's
}
# Caps of CHARMM are atoms of the residue that they are on: by their names, how far on in the chain, and as which.
_AMIDE = {"NT": (1, "NHE", "N"), "HT1": (1, "NHE", "HN1"), "HT2": (1, "NHE", "HN2")}
_CAPS: dict[str, dict[str, tuple[int, str, str]]] = {
    "CAY": {
        **{"CAY": (-1, "ACE", "CH3"), "CY": (-1, "ACE", "C"), "OY": (-1, "ACE", "O")},
        **{f"HY{k}": (-1, "ACE", f"H{k}") for k in (1, 2, 3)},
    },
    "CAT": {
        **{"NT": (1, "NME", "N"), "HNT": (1, "NME", "H"), "CAT": (1, "NME", "C")},
        **{f"HT{k}": (1, "NME", f"H{k}") for k in (1, 2, 3)},
    },
}
# Names in the file by chain, number and insertion code, of residues that were read under a standard one.
WrittenNames: TypeAlias = dict[tuple[str, str, str], str]


def standard_names(text: str, written: WrittenNames) -> io.StringIO:
    """A PDB file in which residues have names whose bonds OpenMM knows; their own are put into `written`.

    Of alternate locations it has those that each residue has most of, by occupancy.
    """
    lines = _likeliest_locations(text.splitlines())
    atoms: dict[str, set[str]] = {}  # of each residue
    for line in filter(_is_atom, lines):
        atoms.setdefault(line[21:27], set()).add(line[12:16].strip())
    for number, line in enumerate(lines):
        if not _is_atom(line):
            continue
        atom, name, around = line[12:16].strip(), line[17:20], atoms[line[21:27]]
        caps = {own: cap for anchor in _CAPS.keys() & around for own, cap in _CAPS[anchor].items()}
        if "NT" in around and "CAT" not in around:
            caps |= _AMIDE
        if atom in caps and line[22:26].strip().isdecimal():
            step, residue, atom = caps[atom]
            lines[number] = f"{line[:12]} {atom:<3} {residue} {line[21]}{int(line[22:26]) + step:4d}{line[26:]}"
            continue
        if line[17] in "NC" and (line[18:21] in RESIDUES or line[18:21] in STANDARD):  # an end of a chain, in AMBER
            name = line[18:21]
            lines[number] = line = f"{line[:17]}{name} {line[21:]}"
        if name in STANDARD:
            written[line[21:22].strip(), line[22:26].strip(), line[26:27].strip()] = name
            lines[number] = line[:17] + STANDARD[name] + line[20:]
    return io.StringIO("\n".join(lines) + "\n")


def _is_atom(line: str) -> bool:
    return line.startswith(("ATOM", "HETATM"))


def _likeliest_locations(lines: list[str]) -> list[str]:
    """Lines of one location of each atom: that of the highest occupancy in its residue, the first of equal ones."""
    model, places = 0, dict[int, tuple[Any, str]]()  # residue and location, by line
    occupancies: dict[Any, float] = {}
    for row, line in enumerate(lines):
        model += line.startswith("MODEL")
        if _is_atom(line) and line[16:17].strip():
            place = places[row] = (model, line[21:27]), line[16]
            occupancies[place] = max(float(line[54:60].strip() or 1.0), occupancies.get(place, 0.0))
    names, kept = dict[Any, str](), dict[Any, int]()
    for row in sorted(places, key=lambda row: -occupancies[places[row]]):
        residue, line = places[row][0], lines[row]
        if line[17:20] == names.setdefault(residue, line[17:20]):  # alternatives may be of different residues
            kept.setdefault((residue, line[12:16]), row)
    rows = set(kept.values())
    return [
        line[:16] + " " + line[17:] if row in rows else line
        for row, line in enumerate(lines)
        if row in rows or row not in places
    ]


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
