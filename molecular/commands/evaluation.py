"""An evaluation from folders into a folder."""

from __future__ import annotations

from pathlib import Path

from molecular.analysis.report import evaluate_to_folder
from molecular.analysis.table import Evaluation


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
    """Compare samples of a peptide with a reference: a table with errors, figures, and one page of HTML.

    Args:
        samples: folder written by sample, or NAME=FOLDER; may be given again for more of the same peptide.
        output: folder for evaluation.json, evaluation.md, report.html and the figures.
        reference: folder of a simulation; default: the ensemble shipped for this peptide.
        num_bootstrap: resamples for the errors; 0 for none.
        transport_points: torus_w2 and tica_w2 are exact between at most so many points.
        tica_lag: frames of the reference.
        num_clusters: of k-means in the TICA plane.
        num_conformations: of each ensemble, to rotate in the page.
        seed: of the random numbers.
    """
    return evaluate_to_folder(
        samples,
        output,
        reference=reference,
        num_bootstrap=num_bootstrap,
        transport_points=transport_points,
        tica_lag=tica_lag,
        num_clusters=num_clusters,
        num_conformations=num_conformations,
        seed=seed,
    )
