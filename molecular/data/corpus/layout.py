"""What readers need of a corpus, whichever layout it has on disk."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from openmm import app

from molecular.data.corpus.sequences import PARTS
from molecular.data.corpus.shards import Shard


class CorpusLayout(Protocol):
    """What every corpus, a folder of conformations of many peptides, offers, whatever its layout on disk."""

    folder: Path

    def sequences(self, part: str) -> list[str]:
        """The sequences of "train", "validation" or "test"; empty where the layout does not say."""
        ...

    def shards(self, part: str) -> Sequence[Shard]:
        """The files of a part."""
        ...

    def topology(self, sequence: str) -> app.Topology:
        """The atoms of a peptide, in the order of its positions; raises as `read_structure`."""
        ...


def check_part(part: str) -> str:
    """``part``, if it is one; raises ValueError otherwise."""
    if part not in PARTS:
        raise ValueError(f"a corpus has the parts {', '.join(PARTS)}, not {part!r}.")
    return part
