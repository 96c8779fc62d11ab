"""Which sequences a corpus has, and which of them are for training, validation and test."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from molecular.molecule.sequences import parse_sequence
from nflib.errors import no_file
from nflib.io import read_json, read_lines

PARTS = ("train", "validation", "test")
Split = dict[str, list[str]]


def read_sequences(path: str | Path) -> list[str]:
    """Read the sequences of a text file, one a line; empty lines and what follows a # are left out.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: an empty file, or a line with a repeated sequence, a D-residue, or what `Peptide` does not take.
    """
    lines: dict[str, int] = {}
    for number, line in enumerate(read_lines(path, "one sequence"), start=1):
        sequence = line.partition("#")[0].strip()
        if not sequence:
            continue
        try:
            parsed = parse_sequence(sequence, letters=True)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
        if any(residue.is_d for residue in parsed.residues):
            raise ValueError(f"{path}, line {number}: {sequence} has D-residues, which a corpus does not take.")
        if sequence in lines:
            raise ValueError(f"{path}, line {number}: {sequence} stands in line {lines[sequence]} already; remove one.")
        lines[sequence] = number
    if not lines:
        raise ValueError(f"{path} has no sequences; write one a line.")
    return list(lines)


def read_split(path: str | Path, sequences: Sequence[str], fixed: Mapping[str, Sequence[str]] | None = None) -> Split:
    """Read a split from a JSON file, {"train": [...], "validation": [...], "test": [...]}.

    Args:
        path: of the file.
        sequences: of the corpus; those that the file does not name are for training.
        fixed: an earlier split of some of them (`split_of`); those that the file does not name stay where they are.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: another content, a sequence that is not among ``sequences``, or one in two parts.
    """
    path = Path(path)
    if not path.is_file():
        raise no_file(path, "give a JSON file with lists of train, validation and test")
    given = read_json(path, "write lists of train, validation and test")
    if not all(part in PARTS and isinstance(given[part], list) for part in given):
        raise ValueError(f"{path} must hold an object of lists named {', '.join(PARTS)}.")
    place: dict[str, str] = {}
    before = {name: part for part, members in (fixed or {}).items() for name in members}
    for part, members in given.items():
        for sequence in members:
            if sequence not in sequences:
                raise ValueError(f"{path} puts {sequence} into {part}, but the corpus has no such sequence.")
            if place.setdefault(sequence, part) != part:
                raise ValueError(f"{path} puts {sequence} into both {place[sequence]} and {part}; leave one.")
    place = before | place
    return {part: [name for name in sequences if place.get(name, "train") == part] for part in PARTS}


def split_by_sequence(
    sequences: Sequence[str],
    validation_fraction: float = 0.1,
    test_fraction: float = 0.1,
    seed: int = 0,
    fixed: Mapping[str, Sequence[str]] | None = None,
) -> Split:
    """Split sequences at random into training, validation and test: the same for the same set and seed.

    Args:
        sequences: in any order.
        validation_fraction: share of the sequences, rounded.
        test_fraction: share of the sequences, rounded.
        seed: of the random choice.
        fixed: an earlier split of some of them, whose members stay where they are, so that a corpus can grow without
            test sequences entering training.

    Raises:
        ValueError: shares outside [0, 1], or that leave nothing to train on.

    >>> {part: len(names) for part, names in split_by_sequence(["AA", "AG", "GA", "GG"], 0.25, 0.25).items()}
    {'train': 2, 'validation': 1, 'test': 1}
    """
    fractions = {"test": test_fraction, "validation": validation_fraction}
    if min(fractions.values()) < 0 or sum(fractions.values()) > 1:
        raise ValueError(
            f"validation_fraction {validation_fraction} and test_fraction {test_fraction} must be shares that sum to"
            " at most 1."
        )
    place = {name: part for part, members in (fixed or {}).items() for name in members}
    free = sorted((name for name in set(sequences) if name not in place), key=lambda name: _rank(name, seed))
    for part, fraction in fractions.items():
        wanted = round(fraction * len(set(sequences))) - sum(place.get(name) == part for name in set(sequences))
        chosen, free = free[: max(wanted, 0)], free[max(wanted, 0) :]
        place |= dict.fromkeys(chosen, part)
    place |= dict.fromkeys(free, "train")
    split = {part: sorted(name for name in set(sequences) if place[name] == part) for part in PARTS}
    if not split["train"]:
        raise ValueError(
            f"of {len(set(sequences))} sequences none is left for training; give more, or smaller fractions."
        )
    return split


def seed_of(sequence: str, seed: int) -> int:
    """A seed for one sequence, which does not depend on the others."""
    return int(_rank(sequence, seed)[:12], 16)


def _rank(sequence: str, seed: int) -> str:
    return hashlib.sha256(f"{seed} {sequence}".encode()).hexdigest()
