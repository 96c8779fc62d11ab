"""The page itself: one file of HTML that needs no other, and no network."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path

from molecular.analysis.metrics import METRICS
from molecular.analysis.plots import DOTS_PER_INCH
from molecular.analysis.report.figures import DrawnFigure
from molecular.analysis.report.viewer import SCRIPT, ViewedEnsemble, view_data
from molecular.analysis.table import Evaluation
from molecular.molecule.molecule import Molecule

_ABBREVIATIONS = {"w1": "W1", "w2": "W2", "jsd": "JSD", "tica": "TICA", "ramachandran": "Ramachandran"}
STYLE = Path(__file__).with_name("page.css")
# Nothing may be fetched from anywhere. plotly compiles its shaders' loops with Function, hence unsafe-eval.
POLICY = (
    "default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; script-src 'unsafe-inline' 'unsafe-eval'; "
    "font-src data:; worker-src blob:"
)
VIEWER = """<figure><div id="view" role="img" aria-label="Rotatable view of conformations"></div>
<div id="steps"><label>Ensemble <select id="ensemble"></select></label>
<button id="previous" type="button" aria-label="previous conformation">◀</button>
<button id="next" type="button" aria-label="next conformation">▶</button>
<input id="step" type="range" min="0" max="0" value="0" step="1" aria-label="conformation">
<output id="view-caption"></output></div>
<figcaption>Drawn by weight and superposed by heavy atoms. Drag to rotate, scroll to zoom, point at an atom for its
name.</figcaption></figure>"""


def write_page(
    path: str | Path,
    evaluation: Evaluation,
    molecule: Molecule,
    settings: Mapping[str, object],
    figures: Sequence[DrawnFigure],
    views: Mapping[str, ViewedEnsemble],
) -> Path:
    """Write the page: settings, table, a rotatable view of conformations, figures.

    Raises ModuleNotFoundError without plotly.
    """
    sections = [
        _section("Settings", _settings(settings)),
        _section("Comparison with the reference", _table(evaluation)),
        _section("Conformations", VIEWER),
        *(_section(figure.heading, _figure(figure)) for figure in figures),
    ]
    scripts = [
        f"<script>{_plotly()}</script>",
        f'<script id="view-data" type="application/json">{view_data(molecule, views)}</script>',
        f"<script>{SCRIPT.read_text(encoding='utf-8')}</script>",
    ]
    title = f"Ensembles of {html.escape(evaluation.molecule)}"
    page = (
        f'<!DOCTYPE html>\n<html lang="en">\n<head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        f'<meta name="viewport" content="width=device-width">\n<link rel="icon" href="data:,">\n'
        f"<title>{title}</title>\n<style>\n{STYLE.read_text(encoding='utf-8')}</style></head>\n"
        f"<body>\n<h1>{title}</h1>\n"
        f"<p>{html.escape(_summary(evaluation, molecule))}</p>\n{chr(10).join(sections)}\n{chr(10).join(scripts)}\n"
        "</body>\n</html>\n"
    )
    path = Path(path)
    path.write_text(page, encoding="utf-8")
    return path


def _plotly() -> str:
    try:
        from plotly.offline import get_plotlyjs
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("the report needs plotly: pip install plotly.") from error
    return str(get_plotlyjs())


def _summary(evaluation: Evaluation, molecule: Molecule) -> str:
    names = [name for name in evaluation.rows if not name.startswith("reference")]
    return f"{', '.join(names)} beside a reference; {molecule.num_atoms} atoms, {molecule.temperature:g} K."


def _settings(settings: Mapping[str, object]) -> str:
    items = "".join(
        f"<dt>{html.escape(name)}</dt><dd>{html.escape(str(value))}</dd>" for name, value in settings.items()
    )
    return f"<dl>{items}</dl>"


def _table(evaluation: Evaluation) -> str:
    """Metrics down, ensembles across: there are more of the former."""
    meanings = {metric.name: metric.meaning for metric in METRICS}
    head = "".join(f"<th>{html.escape(row)}</th>" for row in evaluation.rows)
    lines = [
        _line("samples", "", [str(evaluation.num_samples[row]) for row in evaluation.rows]),
        _line("rejected", "without a weight", [str(evaluation.num_rejected.get(row, 0)) for row in evaluation.rows]),
    ]
    for name, unit in evaluation.units.items():
        cells = [str(row[name]) if name in row else "–" for row in evaluation.rows.values()]
        words = [_ABBREVIATIONS.get(word, word) for word in name.split("_")]
        label = " ".join(words) + (f" / {unit}" if unit else "")
        lines.append(_line(label, meanings.get(name, ""), cells))
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in evaluation.notes)
    return (
        f'<div class="wide"><table><thead><tr><th></th>{head}</tr></thead>\n<tbody>{"".join(lines)}</tbody></table>'
        f"</div>\n<ul>{notes}</ul>"
    )


def _line(label: str, meaning: str, cells: Sequence[str]) -> str:
    small = f"<small>{html.escape(meaning)}</small>" if meaning else ""
    return (
        f"<tr><th>{html.escape(label)}{small}</th>{''.join(f'<td>{html.escape(cell)}</td>' for cell in cells)}</tr>\n"
    )


def _figure(figure: DrawnFigure) -> str:
    picture = figure.path.read_bytes()
    source = "data:image/png;base64," + base64.b64encode(picture).decode()
    alt = html.escape(figure.heading, quote=True)
    # Pixels are smaller than the page's, so that letters are as large in every figure: bytes 16 to 19 are the width.
    width = round(int.from_bytes(picture[16:20], "big") * 96 / DOTS_PER_INCH)
    return (
        f'<figure><img alt="{alt}" src="{source}" style="width: {width}px">'
        f"<figcaption>{html.escape(figure.caption)}</figcaption></figure>"
    )


def _section(heading: str, content: str) -> str:
    return f"<section><h2>{html.escape(heading)}</h2>\n{content}</section>"
