"""Training, on an ensemble of one molecule or a corpus of many."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from molecular.data.corpus.open import is_corpus
from molecular.training.fit_corpus import train_on_corpus
from molecular.training.fit_molecule import train_on_ensemble
from nflib.command_line import refuse_given
from nflib.training import TrainingResult
from nflib.training.config import TrainingConfig

log = logging.getLogger(__name__)


def train(
    data: Path,
    output: Path,
    training: TrainingConfig,
    coordinates: str | None = None,
    channels: int | None = None,
    num_blocks: int | None = None,
    layers_per_block: int | None = None,
    head_dim: int | None = None,
    conditional: str | None = None,
    num_bins: int | None = None,
    whitened: bool | None = None,
    dropout: float | None = None,
    neighbours: bool | None = None,
    local_environment: bool | None = None,
    canonical_names: bool | None = None,
    start_ps: float | None = None,
    initial: Path | None = None,
    refit_marginals: bool = False,
    energy_weight: float = 0.0,
) -> TrainingResult:
    """Train a flow on an ensemble; run again, it goes on from its last checkpoint.

    On a corpus of many peptides, one flow for all of them is trained, conditioned on the molecule (Prose). What is not
    said of the architecture has the default of the flow that is trained.

    Args:
        data: folder written by simulate or import: of one molecule, or a corpus.
        output: folder for the model, checkpoints and logs.
        training: length, learning rate and everything else of the loop.
        coordinates: what the flow sees: internal (the default), local_frames (not on a corpus) or cartesian.
        channels: width of the transformers.
        num_blocks: autoregressive maps.
        layers_per_block: transformer layers of each.
        head_dim: channels of an attention head.
        conditional: map of each number of a token, affine, or given those before it in the token: spline, quadratic,
            binned, mixture or, of one molecule, circular (torsions by splines of the circle).
        num_bins: pieces of each spline, bins, or components of a mixture.
        whitened: of one molecule, begin with a linear map that takes correlations out, which helps short trainings of
            molecules with rings.
        dropout: on a corpus, of the layers' updates.
        neighbours: on a corpus and internal coordinates, whether an atom's conditions tell the residues before and
            behind its own, which a flow learns by heart where sequences are few.
        local_environment: on a corpus and internal coordinates, whether each atom's step is shown the atoms placed
            before it, in its own local frame.
        canonical_names: on a corpus and internal coordinates, whether equivalent atoms, such as the hydrogens of a
            methyl, are named by their torsions (the default), or at random.
        start_ps: of one molecule: drop frames before it, in ps.
        initial: folder of a trained flow to start from; its architecture then holds. On one molecule, a flow of many
            is fitted to it.
        refit_marginals: with initial, whether the fixed part of the flow is fitted anew to these data.
        energy_weight: weight of the log-variance of the importance weights beside the likelihood; with it, batches
            also hold the flow's own samples, drawn anew every training.refresh_interval steps.
    """
    of_a_corpus = {
        "dropout": dropout,
        "neighbours": neighbours,
        "local_environment": local_environment,
        "canonical_names": canonical_names,
    }
    of_one_molecule = {"start_ps": start_ps, "whitened": whitened}
    corpus = is_corpus(data)
    if corpus:
        refuse_given(of_one_molecule, "is for one molecule, but the data are of a corpus")
    else:
        refuse_given(of_a_corpus, "is for a corpus, but the data are of one molecule")
    settings = {
        "coordinates": coordinates,
        "channels": channels,
        "num_blocks": num_blocks,
        "layers_per_block": layers_per_block,
        "head_dim": head_dim,
        "conditional": conditional,
        "num_bins": num_bins,
        **(of_a_corpus if corpus else of_one_molecule),
    }
    given: dict[str, Any] = {name: value for name, value in settings.items() if value is not None}
    run = train_on_corpus if corpus else train_on_ensemble
    result = run(
        data,
        output,
        training,
        initial=initial,
        refit_marginals=refit_marginals,
        energy_weight=energy_weight,
        **given,
    )
    best = ""
    if result.best_validation_loss is not None:
        best = f" Best validation loss {result.best_validation_loss:.4g}, at step {result.best_step}."
    log.info(
        "%d steps in %.0f s.%s The flow is in %s; sample it with --model.",
        result.steps,
        result.seconds,
        best,
        result.model,
    )
    return result
