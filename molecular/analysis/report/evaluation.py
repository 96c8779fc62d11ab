"""The page of an evaluation: settings, table, a rotatable view of conformations, figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from molecular.analysis.compare import FLOOR
from molecular.analysis.metrics import METRICS
from molecular.analysis.report.figures import DrawnFigure
from molecular.analysis.report.viewer import STYLE, VIEWER, ViewedEnsemble, viewer_scripts
from molecular.analysis.table import Evaluation, with_unit
from molecular.molecule.molecule import Molecule
from nflib.page import Section, bullets, definitions, picture, table, write_page

_ABBREVIATIONS = {"w1": "W1", "w2": "W2", "jsd": "JSD", "tica": "TICA", "ramachandran": "Ramachandran"}


def write_evaluation(
    path: str | Path,
    evaluation: Evaluation,
    molecule: Molecule,
    settings: Mapping[str, object],
    figures: Sequence[DrawnFigure],
    views: Mapping[str, ViewedEnsemble],
) -> Path:
    """Write the page of an evaluation, which opens without a network; returns its path.

    Args:
        path: of the HTML file.
        evaluation: the table.
        molecule: what the ensembles are of.
        settings: to show, by name.
        figures: to show, such as `draw_figures` gives.
        views: conformations for the rotatable view, of `view_of`.

    Raises:
        ModuleNotFoundError: plotly is missing.
    """
    names = [name for name in evaluation.rows if name != FLOOR]
    return write_page(
        path,
        f"Ensembles of {evaluation.molecule}",
        f"{', '.join(names)} beside a reference; {molecule.num_atoms} atoms, {molecule.temperature:g} K.",
        [
            Section("Settings", definitions(settings)),
            Section("Comparison with the reference", _table(evaluation) + bullets(evaluation.notes)),
            Section("Conformations", VIEWER),
            *(Section(one.heading, picture(one.path, one.heading, one.caption)) for one in figures),
        ],
        viewer_scripts(molecule, views),
        STYLE.read_text(encoding="utf-8"),
    )


def _table(evaluation: Evaluation) -> str:
    """Metrics down, ensembles across: there are more of the former."""
    rows = [
        ["samples", *(str(evaluation.num_samples[row]) for row in evaluation.rows)],
        ["rejected", *(str(evaluation.num_rejected.get(row, 0)) for row in evaluation.rows)],
    ]
    for name, unit in evaluation.units.items():
        words = [_ABBREVIATIONS.get(word, word) for word in name.split("_")]
        label = with_unit(" ".join(words), unit)
        rows.append([label, *(str(row[name]) if name in row else "–" for row in evaluation.rows.values())])
    meanings = {metric.name: metric.meaning for metric in METRICS}
    details = ["", "without a weight", *(meanings.get(name, "") for name in evaluation.units)]
    return table(["", *evaluation.rows], rows, details)
