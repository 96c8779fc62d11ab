"""Corpora on disk, in the layout that `simulate_corpus` writes."""

import json
from pathlib import Path

from openmm import app

from molecular.data.corpus.layout import check_part
from molecular.data.corpus.sequences import PARTS, Split
from molecular.data.corpus.shards import Shard, SimulationShard
from molecular.data.corpus.structure import read_structure
from molecular.data.ensembles import Ensemble, load_ensemble
from molecular.dynamics.frames import list_shards

DESCRIPTION = "corpus.json"
FINISHED = "finished.json"


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
