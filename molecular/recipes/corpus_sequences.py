"""Writes corpus_sequences_2.txt, _3.txt and _4.txt beside it: `python molecular/recipes/corpus_sequences.py`.

Sequences come in blocks of twenty that have each residue once at each place, in random order, so that the first so many
are a balanced sample as well. Two residues: all that are allowed. Left out are those of public_sequences.json, on which
transferable flows are judged, and AAA, which is judged as a system of its own.
"""

import json
import random
from pathlib import Path

FOLDER = Path(__file__).parent
RESIDUES = "ACDEFGHIKLMNPQRSTVWY"
SEED = 21
NUM_SEQUENCES = {2: 400, 3: 1000, 4: 1000}
"""By length, before any are left out."""


def blocks(length: int, number: int, generator: random.Random) -> list[str]:
    """``number`` different sequences, a multiple of 20; every block of 20 has each residue once at each place."""
    first, second = generator.sample(RESIDUES, 20), generator.sample(RESIDUES, 20)
    shifts = generator.sample(range(20), 20)
    chosen: list[str] = []
    while len(chosen) < number:
        if length == 2:  # cyclic, so that twenty blocks are all of the 400
            shift = shifts[len(chosen) // 20]
            block = [first[i] + second[(i + shift) % 20] for i in range(20)]
        else:
            places = [generator.sample(RESIDUES, 20) for _ in range(length)]
            block = ["".join(letters) for letters in zip(*places, strict=True)]
        if set(block).isdisjoint(chosen):
            chosen += generator.sample(block, 20)
    return chosen


def sequences(length: int, number: int) -> list[str]:
    """Those of ``number`` that may be trained on."""
    public = json.loads((FOLDER / "public_sequences.json").read_text())
    left_out = {*public["validation"], *public["test"], "AAA"}
    return [name for name in blocks(length, number, random.Random(f"{SEED} {length}")) if name not in left_out]


if __name__ == "__main__":
    for length, number in NUM_SEQUENCES.items():
        chosen = sequences(length, number)
        head = f"# {len(chosen)} of {length} residues, by corpus_sequences.py with seed {SEED}.\n"
        (FOLDER / f"corpus_sequences_{length}.txt").write_text(head + "\n".join(chosen) + "\n")
