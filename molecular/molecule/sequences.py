"""Peptide sequences as people write them."""

from __future__ import annotations

import re
from dataclasses import dataclass

LETTERS = {
    **{"A": "Ala", "C": "Cys", "D": "Asp", "E": "Glu", "F": "Phe", "G": "Gly", "H": "His", "I": "Ile", "K": "Lys"},
    **{"L": "Leu", "M": "Met", "N": "Asn", "P": "Pro", "Q": "Gln", "R": "Arg", "S": "Ser", "T": "Thr", "V": "Val"},
    **{"W": "Trp", "Y": "Tyr"},
}
SUPPORTED_RESIDUES = "".join(LETTERS)
# Other states of a residue: its letter, and the variant that OpenMM knows. Histidine alone is Hie.
VARIANTS = {
    **{"Hid": "H", "Hie": "H", "Hip": "H", "Ash": "D", "Glh": "E", "Lyn": "K", "Cyx": "C"},
}
# More letters than any peptide that can be simulated in implicit solvent: some file's content.
LONGEST = 1000
NAMES = {name: letter for letter, name in LETTERS.items()} | VARIANTS
HEADS = {"Ace": "Ace", "Ac": "Ace", "ACE": "Ace"}
TAILS = {"Nme": "Nme", "NMe": "Nme", "NHMe": "Nme", "NME": "Nme", "NH2": "NH2", "Nh2": "NH2"}
# In capitals these would far sooner be three-letter codes than three residues.
_NO_RUNS = {name.upper() for name in [*LETTERS.values(), "Hid", "Hie", "Hip"]}


@dataclass(frozen=True)
class SequenceResidue:
    """One residue of a sequence.

    Args:
        letter: its one-letter code.
        variant: of its protonation or bridge, such as "Hip" or "Cyx"; None for the usual one.
        is_d: whether it is a D-residue.
    """

    letter: str
    variant: str | None = None
    is_d: bool = False

    def __str__(self) -> str:
        name = self.variant or LETTERS[self.letter]
        return f"d{name}" if self.is_d else name


@dataclass(frozen=True)
class PeptideSequence:
    """A peptide's sequence, as `parse_sequence` reads it and `Peptide` takes it.

    Args:
        residues: N- to C-terminus, without caps.
        head: "Ace", or None for a charged end.
        tail: "Nme", "NH2", or None for a charged end.
    """

    residues: tuple[SequenceResidue, ...]
    head: str | None = None
    tail: str | None = None

    @property
    def letters(self) -> str:
        """One-letter codes, whatever the variant or the hand."""
        return "".join(residue.letter for residue in self.residues)

    @property
    def capped(self) -> bool:
        """Whether both ends have a cap."""
        return self.head is not None and self.tail is not None

    @property
    def plain(self) -> bool:
        """Whether letters and caps say everything: L-residues in their usual states."""
        return not any(residue.variant or residue.is_d for residue in self.residues)

    def __str__(self) -> str:
        parts: list[str] = []
        run = ""
        for residue in self.residues:
            if residue.variant or residue.is_d:
                parts += [*([run] if run else []), str(residue)]
                run = ""
            else:
                run += residue.letter
        parts += [run] if run else []
        # A word such as SER would be taken for serine.
        parts = ["-".join(part) if part in _NO_RUNS else part for part in parts]
        return "-".join([*([self.head] if self.head else []), *parts, *([self.tail] if self.tail else [])])


def parse_sequence(sequence: str, *, letters: bool = False) -> PeptideSequence:
    """Read a peptide's sequence from text, whose parts are joined by hyphens.

    A part is a run of one-letter codes, ``AAG``; a three-letter name, ``Ala``; a variant: ``Hid``, ``Hie``, ``Hip``,
    ``Ash``, ``Glh``, ``Lyn``, or ``Cyx``, of which the first and second, third and fourth ... are bridged by a
    disulfide; ``d`` before a three-letter name makes a D-residue, ``dAla``. The first and the last part may be a cap:
    ``Ace`` (also ``Ac``), ``Nme`` (also ``NHMe``), ``NH2``.

    Args:
        sequence: such as "AAG" or "Ace-dAla-G-Nme".
        letters: take a word such as SER for its letters; else it is refused, as it may be serine.

    Raises:
        ValueError: says what is wrong, where, and what to write instead.

    >>> str(parse_sequence("Ac-Ala-Gly-NHMe"))
    'Ace-AG-Nme'
    >>> parse_sequence("Ace-Cyx-GG-Cyx-Nme").letters
    'CGGC'
    """
    text = sequence.strip()
    if len(text) > LONGEST:
        raise ValueError(f"sequence {text[:20] + '...'!r} has {len(text)} letters, which are more than {LONGEST}.")
    if re.search(r"\.\w{2,6}$", text):
        raise ValueError(f"sequence {sequence!r} is the name of a file; give it as --structure.")
    if text.lower().startswith(("cyclo", "c(")):
        raise ValueError(
            f"sequence {sequence!r} is of a cyclic peptide; give a PDB file of it, with hydrogens and a CONECT "
            "record of the bond that closes it, as --structure."
        )
    parts = text.split("-")
    head = tail = None
    if len(parts) > 1 and parts[-1] in TAILS and not _is_ambiguous(parts[-1], parts[0] in HEADS):
        tail = TAILS[parts.pop()]
    if len(parts) > 1 and parts[0] in HEADS and not _is_ambiguous(parts[0], tail is not None):
        head = HEADS[parts.pop(0)]
    if "" in parts and text:
        raise ValueError(f"sequence {sequence!r} has a hyphen that joins nothing; leave it out.")
    residues = tuple(residue for part in parts for residue in _residues(part, sequence, letters))
    if not residues:
        raise ValueError(f"sequence {sequence!r} has no residues; give one-letter codes such as 'AAA' or 'Ace-A-Nme'.")
    if head is None and tail is None and len(residues) == 1:
        raise ValueError(
            f"sequence {sequence!r} is one residue without caps, for which the AMBER force fields have no "
            f"parameters; use 'Ace-{PeptideSequence(residues)}-Nme' or a longer sequence."
        )
    bridged = sum(residue.variant == "Cyx" for residue in residues)
    if bridged % 2:
        raise ValueError(f"sequence {sequence!r} has {bridged} Cyx, but a disulfide joins two of them.")
    return PeptideSequence(residues, head, tail)


def _is_ambiguous(part: str, other_end: bool) -> bool:
    """Capitals, which may also be one-letter codes, are a cap only where the other end has one too."""
    return part in ("ACE", "NME") and not other_end


def _residues(part: str, sequence: str, letters: bool) -> list[SequenceResidue]:
    if part in NAMES:
        return [SequenceResidue(NAMES[part], part if part in VARIANTS and part != "Hie" else None)]
    if part[:1] == "d" and part[1:] in NAMES:
        if part == "dGly":
            return [SequenceResidue("G")]
        (residue,) = _residues(part[1:], sequence, letters)
        return [SequenceResidue(residue.letter, residue.variant, True)]
    if part in _NO_RUNS and not letters:
        one_by_one = "-".join(part)
        raise ValueError(
            f"{part!r} in sequence {sequence!r} may be one residue or three; write {part.title()!r} for "
            f"{part.title()}, or {one_by_one!r} for its letters."
        )
    if re.fullmatch(r"[A-Z][a-z]{2,}|Ac|NH2|NMe|NHMe", part):
        raise ValueError(
            f"{part!r} in sequence {sequence!r} is no residue, and no cap at this end; the caps are 'Ace' before and "
            f"'Nme' or 'NH2' behind, the residues those of {SUPPORTED_RESIDUES} and {', '.join(VARIANTS)}."
        )
    if part.islower() and all(letter.upper() in LETTERS for letter in part):
        written = "-".join(f"d{LETTERS[letter.upper()]}" for letter in part)
        raise ValueError(
            f"{part!r} in sequence {sequence!r} is in lower case; write {part.upper()!r}, or for D-amino acids "
            f"{written!r}."
        )
    for position, letter in enumerate(part, start=1):
        if letter in LETTERS:
            continue
        if letter.upper() in LETTERS:
            raise ValueError(
                f"letter {position} of {part!r} in sequence {sequence!r} is {letter!r}, lowercase; write "
                f"{letter.upper()!r}, or 'd{LETTERS[letter.upper()]}' as a part of its own for the D-amino acid."
            )
        raise ValueError(
            f"letter {position} of {part!r} in sequence {sequence!r} is {letter!r}, unknown; the residues are "
            f"{SUPPORTED_RESIDUES}."
        )
    return [SequenceResidue(letter) for letter in part]
