"""Corpora on disk, in the layout that `simulate_corpus` writes."""

from pathlib import Path
from typing import Any

from openmm import app

from molecular.data.corpus.layout import check_part
from molecular.data.corpus.sequences import PARTS, Split
from molecular.data.corpus.shards import Shard, SimulationShard
from molecular.data.corpus.structure import read_structure
from molecular.data.ensembles import Ensemble, load_ensemble
from molecular.dynamics.frames import list_shards
from molecular.molecule.sequences import parse_sequence
from molecular.molecule.storage import SETTINGS
from nflib.io import read_json

DESCRIPTION = "corpus.json"
FINISHED = "finished.json"


def read_description(path: Path) -> dict[str, Any]:
    """The split of a corpus, and its seed, an integer, which one made by hand may lack.

    Raises ValueError for a file that cannot be read.
    """
    content = read_json(path, "use another folder")
    split = content.get("split")
    lists = [split.get(part) for part in PARTS] if isinstance(split, dict) else [None]
    names = [name for names in lists if isinstance(names, list) for name in names]
    whole = all(isinstance(each, list) for each in lists) and isinstance(content.get("seed", 0), int)
    try:
        for name in names:
            parse_sequence(name, letters=True)  # folders have these names
    except (AttributeError, ValueError):
        whole = False
    if not whole:
        raise ValueError(
            f"{path} cannot be read (it holds no split of sequences, or a seed that is none); use another folder."
        )
    return content


def split_of(folder: str | Path) -> Split:
    """The split of the corpus in a folder, empty where there is none; raises ValueError as `read_description`."""
    path = Path(folder) / DESCRIPTION
    return read_description(path)["split"] if path.is_file() else {}


class Corpus:
    """A corpus that `simulate_corpus` wrote: simulations of many peptides, split by sequence.

    Its folder has corpus.json with the split, and each simulation in systems/SEQUENCE. Sequences whose simulation is
    not finished are left out.

    Args:
        folder: of the corpus.

    Raises:
        FileNotFoundError: the folder has no corpus.json.
        ValueError: it cannot be read.

    >>> corpus = Corpus("runs/corpus")  # doctest: +SKIP
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
        self.split: Split = read_description(path)["split"]

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

    def starts(self, sequence: str) -> str | None:
        """What the replicas of a sequence started from, such as a flow's draws; None for torsions drawn at random."""
        starts: str | None = read_json(self.system(sequence) / SETTINGS, "simulate it again").get("starts")
        return starts

    def topology(self, sequence: str) -> app.Topology:
        return read_structure(self.system(sequence) / "topology.pdb", sequence)

    def ensemble(self, sequence: str) -> Ensemble:
        """All frames of one sequence; raises as `load_ensemble`."""
        return load_ensemble(self.system(sequence))
