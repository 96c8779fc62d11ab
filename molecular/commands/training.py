"""Training, on an ensemble of one molecule or a corpus of many."""

from __future__ import annotations

from pathlib import Path

from molecular.data.corpus.open import is_corpus
from molecular.training.fit_corpus import train_on_corpus
from molecular.training.fit_molecule import train_on_ensemble
from nflib.training import TrainingResult
from nflib.training.config import TrainingConfig


def train(
    data: Path,
    output: Path,
    training: TrainingConfig,
    coordinates: str = "internal",
    channels: int = 128,
    num_blocks: int = 6,
    layers_per_block: int = 2,
    head_dim: int = 32,
    dropout: float | None = None,
    neighbours: bool | None = None,
    surroundings: bool | None = None,
    initial: Path | None = None,
    energy_weight: float = 0.0,
) -> TrainingResult:
    """Train a flow on an ensemble; run again, it goes on from its last checkpoint.

    On a corpus of many peptides, one flow for all of them is trained, conditioned on the molecule (Prose).

    Args:
        data: folder written by simulate or import: of one molecule, or a corpus.
        output: folder for the model, checkpoints and logs.
        training: length, learning rate and everything else of the loop.
        coordinates: what the flow sees: internal, local_frames (not on a corpus) or cartesian.
        channels: width of the transformers.
        num_blocks: autoregressive maps.
        layers_per_block: transformer layers of each.
        head_dim: channels of an attention head.
        dropout: on a corpus, of the layers' updates; default 0.
        neighbours: on a corpus and internal coordinates, whether an atom's conditions tell the residues before and
            behind its own, which a flow learns by heart where sequences are few; default true.
        surroundings: on a corpus and internal coordinates, whether each atom's step is shown the atoms placed before it
            in its own local frame; default true.
        initial: folder of a trained flow to start from; its architecture then holds.
        energy_weight: weight of the log-variance of the importance weights beside the likelihood; with it, batches
            also hold the flow's own samples, drawn anew every training.refresh_interval steps.
    """
    architecture = {
        "coordinates": coordinates,
        "channels": channels,
        "num_blocks": num_blocks,
        "layers_per_block": layers_per_block,
        "head_dim": head_dim,
    }
    others = {"dropout": dropout, "neighbours": neighbours, "surroundings": surroundings}
    of_a_corpus = {name: value for name, value in others.items() if value is not None}
    run = train_on_ensemble
    if is_corpus(data):
        run = train_on_corpus
    elif of_a_corpus:
        raise ValueError(
            f"{', '.join(of_a_corpus)}: only flows of a corpus know this, but the data are of one molecule; "
            "leave it out."
        )
    return run(data, output, training, initial=initial, energy_weight=energy_weight, **architecture, **of_a_corpus)
