"""The page of `molecular analyse`: its numbers are those of the analysis; a browser shows them without a network."""

import csv
import json
import math
import re
from html.parser import HTMLParser

import matplotlib.image
import numpy as np
import pytest
import torch

from molecular import Peptide
from molecular.analysis.analyse import ELSEWHERE, analyse
from molecular.analysis.free_energy_plots import figures
from molecular.analysis.observables import CollectiveVariable
from molecular.analysis.report import save_analysis
from molecular.molecule.molecule import Molecule
from molecular.sampling.shipped import reference_positions
from nflib.montecarlo import WeightedSamples
from tests.browser import browse, needs_chromium

UGLY = '<script>alert(1)</script> & "two" $\\alpha | x$'


class Page(HTMLParser):
    """Rows of the tables, definitions, and what the page refers to."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.tags, self.addresses, self.text, self.body = [], [], [], "", {}
        self.cell = None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.body |= dict(attributes) if tag == "body" else {}
        self.addresses += [value for name, value in attributes if name in ("src", "href", "xlink:href", "srcset")]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.cell = tag
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        self.cell = None if tag in ("td", "th") else self.cell

    def handle_data(self, data):
        self.text += data
        if self.cell:
            self.rows[-1][-1] += data


@pytest.fixture(scope="module")
def analysis():
    """400 conformations of alanine dipeptide with equal weights, weighted from 300 to 330 K."""
    peptide = Peptide("Ace-A-Nme")
    molecule = Molecule(peptide.topology, peptide.system, peptide.positions, 300.0, name=UGLY)
    variables = ["phi 1", CollectiveVariable(UGLY, lambda x: (x[:, 0] - x[:, -1]).norm(dim=-1), "nm")]
    return analyse(
        WeightedSamples(reference_positions(peptide)[::10], torch.zeros(400)),
        molecule,
        variables,
        maps=[("phi 1", "psi 1")],
        basins={"right": "phi 1 < 0", UGLY: "-120 < psi 1 < 60", "empty": "rg > 9", "mine": lambda x: x[:, 0, 0] > 0},
        target=molecule.at(330.0),
        unit="kcal/mol",
    )


@pytest.fixture(scope="module")
def folder(analysis, tmp_path_factory):
    folder = tmp_path_factory.mktemp("analysis")
    save_analysis(analysis, folder)
    return folder


@pytest.fixture(scope="module")
def page(folder):
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def shows(cell, value, error):
    """Whether a cell has this value and this error, each rounded to its last digit."""
    pairs = zip(cell.split(" ± "), (value, error), strict=True)
    return all(abs(float(text) - number) <= 0.5001 * 10.0 ** -len(text.partition(".")[2]) for text, number in pairs)


def test_table_of_basins(analysis, page):
    """Population and ΔF in each unit, each with its error: in kT, and 0.0083144626 kJ/mol/K * 330 K a kT."""
    head = page.rows[0]
    assert head == ["basin", "population", "ΔF / kT", "ΔF / kJ/mol", "ΔF / kcal/mol"]
    rows = {row[0]: row[1:] for row in page.rows[1:5]}
    kT = 8.31446261815324e-3 * 330.0
    assert list(rows) == ["rightphi 1 < 0", UGLY + "-120 < psi 1 < 60", "emptyrg > 9", "mine"]
    for name, cells in zip(analysis.populations, rows.values(), strict=True):
        share, free = analysis.populations[name], analysis.differences[name, ELSEWHERE]
        if name == "empty":
            assert cells == ["0 ± ?", "∞", "∞", "∞"]
            continue
        assert free.value == pytest.approx(-kT / 4.184 * math.log(share.value / (1 - share.value)))
        assert shows(cells[0], share.value, share.error)
        for cell, factor in zip(cells[1:], (4.184 / kT, 4.184, 1.0), strict=True):
            assert shows(cell, factor * free.value, factor * free.error)
    pairs = {row[0]: row[1:] for row in page.rows[6:]}
    assert page.rows[5][0] == "two basins" and len(pairs) == 6
    free = analysis.differences["mine", "right"]
    assert shows(pairs["mine less right"][0], 4.184 / kT * free.value, 4.184 / kT * free.error)


def test_numbers_are_those_of_the_csv_file(folder, page):
    rows = list(csv.reader((folder / "basins.csv").open(encoding="utf-8")))
    free = {(row[1], row[2]): map(float, row[3:5]) for row in rows if row[0] == "free energy"}
    assert shows(page.rows[1][4], *free["right", ELSEWHERE])


def test_settings_and_notes(analysis, page):
    assert "330 K, reweighted from 300 K" in page.text
    assert f"{8.31446261815324e-3 * 330.0:.4f} kJ/mol" in page.text
    assert f"effective sample size {analysis.effective_sample_size:.0f}." in page.text
    assert "400 conformations, which are independent, at 330 K" in page.text
    assert all(note in page.text for note in analysis.notes) and analysis.notes


def test_page_is_self_contained_and_escaped(folder, page):
    assert page.tags.count("svg") == 4  # two profiles, and a map beside its errors
    assert all(address.startswith(("data:", "#")) for address in page.addresses)
    # Names are text, in the drawings too, and no formulas.
    assert "script" not in page.tags
    assert page.text.count(UGLY) >= 5
    text = (folder / "report.html").read_text(encoding="utf-8")
    style = text.partition("</style>")[0]
    assert not re.search(r"@import|url\(", style)
    assert "script-src" not in text
    assert sorted(path.suffix for path in folder.iterdir()) == [".csv"] * 4 + [".html", ".json"] + [".png"] * 3
    assert json.loads((folder / "analysis.json").read_text())["source_temperature_K"] == 300.0


def test_drawings_take_their_colours_from_the_page(page, folder):
    """Ink and lines are variables of the style sheet, one set for the light and one for the dark."""
    drawings = "".join(re.findall(r"<svg.*?</svg>", (folder / "report.html").read_text(encoding="utf-8"), re.DOTALL))
    assert "var(--ink)" in drawings and "var(--line)" in drawings
    assert "#222222" not in drawings and "#000000" not in drawings


def test_nothing_reaches_out_of_a_drawing(analysis):
    for surface in (*analysis.profiles.values(), *analysis.maps.values()):
        for figure in figures(surface):
            figure.canvas.draw()
            whole = figure.bbox
            for axes in figure.axes:
                box = axes.get_tightbbox()
                assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= whole.width and box.y1 <= whole.height


PROBE = """<script>
addEventListener("securitypolicyviolation", event => { document.body.dataset.violation = event.blockedURI; });
addEventListener("load", () => {
  document.body.dataset.wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  document.body.dataset.colour = getComputedStyle(document.body).backgroundColor;
  const lines = [...document.querySelectorAll("svg text")].map(text => getComputedStyle(text).fill);
  document.body.dataset.ink = JSON.stringify([...new Set(lines)]);
});
</script>"""


@needs_chromium
@pytest.mark.parametrize("scheme", [0, 1])  # Blink's names for dark and light
def test_page_in_a_browser(folder, tmp_path, scheme):
    """On a narrow screen nothing but a table is wider than it; paper and ink are those of the scheme."""
    text = (folder / "report.html").read_text(encoding="utf-8")
    probed = tmp_path / "report.html"
    probed.write_text(text.replace("; style-src", "; script-src 'unsafe-inline'; style-src").replace("</body>", PROBE))
    options = ["--window-size=500,900", f"--blink-settings=preferredColorScheme={scheme}"]
    body = Page(browse(probed, tmp_path, "--dump-dom", *options)).body
    assert "data-violation" not in body and body["data-wide"] == "0"
    assert body["data-colour"] == ("rgb(250, 250, 250)" if scheme else "rgb(22, 24, 27)")
    assert json.loads(body["data-ink"]) == ["rgb(34, 34, 34)" if scheme else "rgb(228, 228, 228)"]
    picture = tmp_path / "page.png"
    browse(folder / "report.html", tmp_path, f"--screenshot={picture}", *options)
    assert np.ptp(matplotlib.image.imread(picture)[..., :3]) > 0.5
