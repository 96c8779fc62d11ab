"""Corpora on disk: what readers need of any layout, and the layout that `simulate_corpus` writes."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from openmm import app

from molecular.corpus.sequences import PARTS, Split
from molecular.corpus.shards import Shard, SimulationShard
from molecular.corpus.structure import read_structure
from molecular.datasets import Ensemble, load_ensemble
from molecular.dynamics.frames import list_shards

DESCRIPTION = "corpus.json"
FINISHED = "finished.json"


class CorpusLayout(Protocol):
    """A folder of conformations of many peptides."""

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


class Corpus:
    """The layout of `simulate_corpus`: corpus.json with the split, and a simulation in systems/SEQUENCE each.

    Sequences whose simulation is not finished are left out. Raises FileNotFoundError for a folder without corpus.json,
    ValueError for one that cannot be read.

    >>> corpus = Corpus("runs/dipeptides")  # doctest: +SKIP
    >>> corpus.ensemble("AA").positions.shape  # doctest: +SKIP
    torch.Size([9600, 23, 3])
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        path = self.folder / DESCRIPTION
        if not path.is_file():
            raise FileNotFoundError(
                f"there is no {path}; give the output folder of `python -m molecular simulate --sequences FILE`."
            )
        try:
            self.split: Split = {part: list(json.loads(path.read_text())["split"][part]) for part in PARTS}
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} cannot be read ({error!r}); simulate into the folder again.") from error

    def system(self, sequence: str) -> Path:
        """The folder of one sequence."""
        return self.folder / "systems" / sequence

    def sequences(self, part: str) -> list[str]:
        return [name for name in self.split[check_part(part)] if (self.system(name) / FINISHED).is_file()]

    def shards(self, part: str) -> list[Shard]:
        return [
            SimulationShard(path, sequence)
            for sequence in self.sequences(part)
            for path in list_shards(self.system(sequence))
        ]

    def topology(self, sequence: str) -> app.Topology:
        return read_structure(self.system(sequence) / "topology.pdb", sequence)

    def ensemble(self, sequence: str) -> Ensemble:
        """All frames of one sequence; raises as `load_ensemble`."""
        return load_ensemble(self.system(sequence))


def check_part(part: str) -> str:
    """``part``, if it is one; raises ValueError otherwise."""
    if part not in PARTS:
        raise ValueError(f"a corpus has the parts {', '.join(PARTS)}, not {part!r}.")
    return part


def is_corpus(folder: str | Path) -> bool:
    """Whether a folder has the mark of any layout."""
    return any((Path(folder) / mark).exists() for mark in _layouts())


def open_corpus(folder: str | Path) -> CorpusLayout:
    """A corpus in whichever layout the folder has; raises FileNotFoundError where it has none."""
    folder = Path(folder)
    layouts = _layouts()
    for mark, layout in layouts.items():
        if (folder / mark).exists():
            return layout(folder)
    raise FileNotFoundError(f"{folder} is no corpus: it has neither {' nor '.join(layouts)}.")


def _layouts() -> dict[str, Callable[[Path], CorpusLayout]]:
    """Readers by the file or folder that marks their layout."""
    from molecular.corpus.many_peptides import FRAMES, ManyPeptides

    return {DESCRIPTION: Corpus, FRAMES: ManyPeptides}
