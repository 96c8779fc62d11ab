"""Kinds of internal coordinates: what the atoms of all peptides share, whichever molecule they belong to.

A site is an atom of a residue, such as CB of valine; a kind is a site at a place in the chain. Of each kind there are
three coordinates, those of its token (`molecular.coordinates.spherical.Spherical`).
"""

from __future__ import annotations

from collections.abc import Iterator

from molecular.molecule.orderings import SIDE_CHAINS, residue_atoms

# Where in the chain a residue stands; ROOT marks the atom whose token holds the two bonds and the angle at the root.
FIRST, MIDDLE, LAST, ONLY, ROOT = "first", "middle", "last", "only", "root"


def _kinds() -> Iterator[tuple[str, str, str]]:
    for residue in sorted(SIDE_CHAINS):
        for atom in residue_atoms(residue, first=True, last=True):
            for place in (FIRST, MIDDLE, LAST, ONLY):
                if atom in residue_atoms(residue, first=place in (FIRST, ONLY), last=place in (LAST, ONLY)):
                    yield residue, atom, place
        yield residue, "C" if residue == "GLY" else "CB", ROOT


# In an order that saved flows count by.
KINDS = tuple(_kinds())
SITES = tuple(dict.fromkeys((residue, atom) for residue, atom, _ in KINDS))
_KIND_NUMBERS = {kind: number for number, kind in enumerate(KINDS)}
_SITE_NUMBERS = {site: number for number, site in enumerate(SITES, start=1)}

# Beyond a residue's first atoms, the same three references place an atom in the middle and at the C-terminus of a
# chain, or at its N-terminus and in a chain of one: where one of a pair has no data, the other's come first.
_CLOSEST = {FIRST: (ONLY, LAST), MIDDLE: (LAST, FIRST), LAST: (MIDDLE, ONLY), ONLY: (FIRST, LAST), ROOT: ()}


def site_number(residue: str, atom: str) -> int:
    """The number of a site, from 1."""
    return _SITE_NUMBERS[residue, atom]


def kind_number(residue: str, atom: str, place: str) -> int:
    """The place of a kind in `KINDS`."""
    return _KIND_NUMBERS[residue, atom, place]


def place_of(position: int, length: int) -> str:
    """FIRST, MIDDLE, LAST or ONLY: where the residue at `position`, counted from 1, stands in a chain."""
    if length == 1:
        return ONLY
    return FIRST if position == 1 else LAST if position == length else MIDDLE


def fallbacks(kind: int) -> Iterator[list[int]]:
    """Groups of kinds whose data may stand in for those of a kind that has none, the closest relatives first.

    The last group holds every kind of the same structure, so that one has data wherever any peptide was seen.
    """
    residue, atom, place = KINDS[kind]
    others = [number for number, (_, _, other) in enumerate(KINDS) if (other == ROOT) == (place == ROOT)]
    for relative in _CLOSEST[place]:
        if (residue, atom, relative) in _KIND_NUMBERS:
            yield [_KIND_NUMBERS[residue, atom, relative]]
    same_atom = [number for number in others if KINDS[number][1] == atom]
    yield [number for number in same_atom if KINDS[number][2] == place]
    yield same_atom
    yield [number for number in others if KINDS[number][1][:2] == atom[:2]]
    yield [number for number in others if KINDS[number][1][0] == atom[0]]
    yield others
