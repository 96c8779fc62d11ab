"""What is shipped for a molecule: its own flow, or the transferable ones that cover it, and reference ensembles."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from molecular.molecule.molecule import Molecule
from molecular.molecule.sequences import parse_sequence
from molecular.molecule.topology import Topology
from nflib.io import read_config, read_json
from nflib.io.pretrained import WEIGHTS_NAME

SHIPPED = Path(__file__).parents[1] / "shipped"
# In the folder of a transferable flow; without it a folder holds the flow of the peptide it is named after.
COVERAGE = "coverage.json"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Coverage:
    """The peptides that a transferable flow was made for, all uncapped; ``"AG" in coverage`` asks for one.

    Args:
        lengths: in residues.
        residues: one-letter codes.
    """

    lengths: tuple[int, ...]
    residues: str

    @classmethod
    def read(cls, path: Path) -> Coverage:
        """Read it from a JSON file with "lengths" and "residues"; raises ValueError for another content."""
        try:
            content = read_json(path)
            return cls(tuple(map(int, content["lengths"])), str(content["residues"]))
        except (KeyError, OverflowError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path} does not say what the flow covers ({error!r}); install the package again."
            ) from error

    def __contains__(self, sequence: str) -> bool:
        parsed = parse_sequence(sequence)
        if parsed.head or parsed.tail or not parsed.plain:
            return False
        return len(parsed.residues) in self.lengths and set(parsed.letters) <= set(self.residues)

    def __str__(self) -> str:
        lengths = " or ".join(map(str, self.lengths))
        return f"uncapped peptides of {lengths} residues out of {self.residues}"


def shipped_flows(molecule: Molecule, shipped: Path) -> list[Path]:
    """The folders in `shipped` of the flows for a molecule: of this one alone if there is one, else all that cover it.

    Raises FileNotFoundError, naming what is shipped and what it covers, where there is none.
    """
    sequence = molecule.topology.sequence
    own = shipped / (sequence or molecule.name)
    if _holds_flow(own) and not (own / COVERAGE).is_file():
        return [own]
    covering, described = [], []
    for folder in sorted(shipped.iterdir()) if shipped.is_dir() else []:
        if not _holds_flow(folder):
            continue
        if not (folder / COVERAGE).is_file():
            described.append(f"{folder.name} (this peptide alone)")
            continue
        coverage = Coverage.read(folder / COVERAGE)
        if sequence is not None and sequence in coverage:
            covering.append(folder)
        described.append(f"{folder.name} ({coverage})")
    if covering:
        log.info(
            "No flow is shipped for %s alone; taking %s, made for %s.",
            *(sequence, _listed(covering), Coverage.read(covering[0] / COVERAGE)),
        )
        return covering
    raise FileNotFoundError(
        f"no flow is shipped for {molecule.name} (shipped: {', '.join(described) or 'none'}); name one with "
        "--model, or train one."
    )


def beyond_coverage(molecule: Molecule, model: Path) -> str | None:
    """A sentence for the user where the flow in a folder was made for other molecules than this one; else None."""
    if not (model / COVERAGE).is_file():
        return None
    coverage, sequence = Coverage.read(model / COVERAGE), molecule.topology.sequence
    if sequence is not None and sequence in coverage:
        return None
    return f"{model} was made for {coverage}; {molecule.name} is beyond that, so its weights may be of no use."


def _holds_flow(folder: Path) -> bool:
    return (folder / WEIGHTS_NAME).is_file()


def _listed(folders: list[Path]) -> str:
    names = ", ".join(folder.name for folder in folders)
    return names if len(folders) == 1 else f"{names} together"


def reference_positions(molecule: Molecule) -> torch.Tensor | None:
    """Positions ``(N, n, 3)`` in nm of the reference ensemble shipped for a molecule; None where there is none."""
    sequence = molecule.topology.sequence
    path = SHIPPED / (sequence or "") / "reference.npz"
    if not path.is_file():
        return None
    # A file may have the atoms of the same molecule in another order.
    config = read_config(path.parent)["config"]
    if Topology.from_dict(config["topology"]).difference(molecule.topology) is not None:
        return None
    with np.load(path, allow_pickle=False) as arrays:
        return torch.from_numpy(arrays["positions"].astype(np.float32))
