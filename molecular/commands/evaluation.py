"""An evaluation from folders into a folder: table, figures and a report."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

from molecular.analysis.compare import REFERENCE, check_options, compare, describe
from molecular.analysis.report.evaluation import write_evaluation
from molecular.analysis.report.figures import draw_figures
from molecular.analysis.report.viewer import view_of
from molecular.analysis.sources import (
    SampleFolder,
    check_same_system,
    name_ensembles,
    read_reference,
    read_samples,
)
from molecular.analysis.table import Evaluation
from nflib.io import complete_folder
from nflib.montecarlo import History

RECORD = "evaluation.json"
# Of the files that an evaluation writes, those that another one may not: removed where there is a record of one.
OPTIONAL = ("ramachandran.png", "tica.png", "history*.png")

log = logging.getLogger(__name__)


def evaluate(
    samples: list[str],
    output: Path,
    reference: Path | None = None,
    num_bootstrap: int = 20,
    transport_points: int = 1000,
    tica_lag: int = 10,
    num_clusters: int = 20,
    num_conformations: int = 10,
    seed: int = 0,
) -> Evaluation:
    """Compare samples of a molecule with a reference: a table with errors, figures, and one page of HTML.

    Args:
        samples: folder written by sample, or NAME=FOLDER; may be given again for more of the same molecule.
        output: folder for evaluation.json, evaluation.md, report.html and the figures.
        reference: folder of a simulation; default: the ensemble shipped for this molecule.
        num_bootstrap: resamples for the errors; 0 for none.
        transport_points: torus_w2 and tica_w2 are exact between at most so many points.
        tica_lag: frames of the reference.
        num_clusters: of k-means in the TICA plane.
        num_conformations: of each ensemble, to rotate in the page.
        seed: of the random numbers.

    Raises:
        FileNotFoundError: folders or files are missing.
        ValueError: damaged files, samples or a reference of different molecules or temperatures, or an option out of
            range.
    """
    check_options(
        num_bootstrap=num_bootstrap, transport_points=transport_points, tica_lag=tica_lag, num_clusters=num_clusters
    )
    if not samples:
        raise ValueError("there are no samples; name a folder with --samples.")
    if num_conformations < 1:
        raise ValueError(f"num_conformations is {num_conformations}; show 1 or more.")
    folders = [read_samples(entry) for entry in samples]
    molecule = check_same_system(folders)
    ensembles = name_ensembles(folders)
    frames, notes = read_reference(reference, molecule)
    is_again = (output / RECORD).is_file()
    with complete_folder(output, replaces=OPTIONAL if is_again else ()) as made:
        described = describe(ensembles, frames, molecule, tica_lag=tica_lag, num_clusters=num_clusters, seed=seed)
        evaluation = compare(
            described, num_bootstrap=num_bootstrap, transport_points=transport_points, seed=seed, progress=True
        )
        sources = {"samples": "; ".join(map(str, samples)), "reference": str(reference or "shipped")}
        evaluation = dataclasses.replace(
            evaluation, notes=(*notes, *evaluation.notes), settings=sources | dict(evaluation.settings)
        )
        evaluation.save(made / RECORD)
        evaluation.save(made / "evaluation.md")
        histories = _histories(folders, list(ensembles))
        figures = draw_figures(described, histories, made)
        everything = {REFERENCE: described.reference, **described.ensembles}
        views = view_of(molecule, everything, _shown_first(list(described.ensembles)), num_conformations, seed)
        settings = {name.replace("_", " "): value for name, value in evaluation.settings.items()}
        write_evaluation(made / "report.html", evaluation, molecule, settings | _seeds(folders), figures, views)
    log.info("%s", evaluation)
    log.info("Written to %s: report.html, evaluation.json, evaluation.md and the figures.", output)
    return evaluation


def _shown_first(names: Sequence[str]) -> str:
    """The ensemble that is weighted to the target, if there is one."""
    return next((name for name in names if name.endswith(("reweighted", "SMC"))), names[0])


def _histories(folders: Sequence[SampleFolder], names: Sequence[str]) -> dict[str, History]:
    """Of each ensemble of sequential Monte Carlo, by its name."""
    moved = [name for name in names if name.endswith("SMC")]
    sequential = [folder for folder in folders if folder.sequential]
    pairs = zip(moved, sequential, strict=True)
    return {name: folder.history for name, folder in pairs if folder.history is not None}


def _name(folder: SampleFolder) -> str:
    return folder.name or folder.path.name


def _seeds(folders: Sequence[SampleFolder]) -> dict[str, object]:
    return {f"seed of {_name(folder)}": folder.summary["seed"] for folder in folders if "seed" in folder.summary}
