"""`molecular evaluate`: from folders to a table, figures and a page, which a browser shows without a network."""

import json
import re
from html.parser import HTMLParser

import matplotlib.image
import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from molecular import Peptide
from molecular.analysis import WeightedConformations, evaluate
from molecular.analysis.compare import describe
from molecular.analysis.report.figures import distance_histogram, torsion_names
from molecular.analysis.report.viewer import superposed, view_data, view_of
from molecular.analysis.sources import name_ensembles, read_reference, read_samples
from molecular.commands import main
from molecular.dynamics.frames import Frames, shard_path, write_shard
from molecular.energy.reduced import ReducedEnergy
from molecular.sampling.shipped import reference_positions
from nflib.montecarlo import WeightedSamples
from nflib.montecarlo.history import History
from tests.browser import browse, needs_chromium

QUICK = ["--num_bootstrap", "2", "--transport_points", "60", "--num_clusters", "4"]
HISTORY = History(
    inverse_temperatures=[0.5, 1.0],
    log_normalizer_increments=[0.1, 0.2],
    conditional_ess_fraction=[0.9, 0.9],
    effective_sample_size=[90.0, 80.0],
    num_particles=[100, 100],
    resampled=[False, True],
    num_ancestors=[9, 5],
    acceptance=[0.5, 0.6],
    step_sizes=[0.1, 0.2],
    num_nonfinite=[0, 0],
    num_evaluations=[100, 100],
    num_gradients=[0, 0],
)


@pytest.fixture(scope="module")
def positions():
    return reference_positions(Peptide("Ace-A-Nme"))[::10]  # (400, 22, 3)


def write_samples(folder, peptide, x, *, seed=0, **more):
    generator = torch.Generator().manual_seed(seed)
    ancestors = torch.arange(len(x)) // 4 if more.get("sampler") == "smc" else None
    folder.mkdir(parents=True)
    WeightedSamples(x, torch.randn(len(x), generator=generator), ancestors=ancestors).save(folder / "weights.npz")
    peptide.save_pdb(folder / "topology.pdb")
    summary = {"peptide": peptide.sequence, "temperature_K": peptide.temperature, "seed": seed} | more
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


@pytest.fixture(scope="module")
def folders(alanine, positions, tmp_path_factory):
    """Samples by importance and by sequential Monte Carlo, and a simulation of 4 replica groups at 300 K and 330 K."""
    root = tmp_path_factory.mktemp("inputs")
    write_samples(root / "importance", alanine, positions[:200])
    history = {name: value for name, value in vars(HISTORY).items() if name != "parents"}
    write_samples(root / "moved", alanine, positions[200:300], sampler="smc", history=history)
    (root / "simulation").mkdir()
    frames = Frames(
        positions=positions.numpy(),
        energies=(ReducedEnergy(alanine)(positions) * alanine.kT).numpy(),
        temperature_index=(np.arange(400) // 300).astype(np.int16),
        replica_group=(np.arange(400) % 4).astype(np.int32),
        time=np.arange(400, dtype=np.float64) // 4,
    )
    write_shard(shard_path(root / "simulation", 0), frames)
    settings = {"sequence": "Ace-A-Nme", "temperatures": [300.0, 330.0], "cutoff": None}
    (root / "simulation" / "settings.json").write_text(json.dumps(settings))
    return root


@pytest.fixture(scope="module")
def output(folders, tmp_path_factory):
    output = tmp_path_factory.mktemp("output") / "evaluation"
    samples = ["--samples", str(folders / "importance"), "--samples", str(folders / "moved")]
    main(["evaluate", *samples, "--reference", str(folders / "simulation"), "--output", str(output), *QUICK])
    return output


def test_files(output):
    pictures = {"ramachandran.png", "energies.png", "tica.png", "distances.png", "history.png"}
    assert {path.name for path in output.iterdir()} == pictures | {"evaluation.json", "evaluation.md", "report.html"}
    for name in pictures:
        assert np.ptp(matplotlib.image.imread(output / name)[..., :3]) > 0.5


def test_table_is_that_of_evaluate(output, folders, alanine):
    table = json.loads((output / "evaluation.json").read_text())
    sources = [read_samples(str(folders / name)) for name in ("importance", "moved")]
    reference, notes = read_reference(folders / "simulation", alanine)
    assert len(reference) == 300 and not notes
    expected = evaluate(
        name_ensembles(sources), reference, alanine, num_bootstrap=2, transport_points=60, num_clusters=4
    )
    assert list(table["ensembles"]) == list(expected.rows)
    assert list(expected.rows)[1:] == ["proposal", "reweighted", "SMC"]
    for row, estimates in expected.rows.items():
        for name, estimate in estimates.items():
            assert table["ensembles"][row]["metrics"][name]["value"] == pytest.approx(estimate.value)
            assert table["ensembles"][row]["metrics"][name]["error"] == pytest.approx(estimate.error)
    assert {"tica_w2", "kmeans_jsd", "torus_w2"} <= expected.units.keys()


def test_families_are_resampled_together(folders, alanine):
    """Particles with one ancestor are not independent."""
    samples = read_samples(str(folders / "moved")).samples
    torch.testing.assert_close(WeightedConformations.of("SMC", samples, alanine).groups, torch.arange(100) // 4)


class Addresses(HTMLParser):
    """What a page's attributes and style sheets refer to."""

    def __init__(self):
        super().__init__()
        self.found, self.images, self.inside, self.body = [], 0, "", {}

    def handle_starttag(self, tag, attributes):
        self.inside = tag
        self.images += tag == "img"
        self.body |= dict(attributes) if tag == "body" else {}
        self.found += [value for name, value in attributes if name in ("src", "href", "srcset", "action", "data")]

    def handle_data(self, data):
        if self.inside == "style":
            self.found += re.findall(r"url\(([^)]*)|@import\s+(\S+)", data)


def test_page_is_self_contained(output):
    parser = Addresses()
    parser.feed((output / "report.html").read_text())
    assert parser.images == 5
    assert parser.found and all(address.startswith("data:") for address in parser.found)


PROBE = """<script>
addEventListener("securitypolicyviolation", event => { document.body.dataset.violation = event.blockedURI; });
addEventListener("load", async () => {
  const caption = () => document.getElementById("view-caption").textContent;
  const bonds = () => JSON.stringify(document.getElementById("view").data[0].x.slice(0, 6));
  while (!caption()) await new Promise(resolve => setTimeout(resolve, 50));
  const shown = [caption(), bonds()];
  document.getElementById("next").click();
  shown.push(caption(), bonds());
  document.getElementById("ensemble").selectedIndex = 1;
  document.getElementById("ensemble").dispatchEvent(new Event("change"));
  shown.push(caption(), bonds());
  document.body.dataset.shown = JSON.stringify(shown);
  document.body.dataset.canvases = document.querySelectorAll("#view canvas").length;
  document.body.dataset.view = document.getElementById("view").textContent;
  document.body.dataset.pictures = [...document.images].filter(image => image.naturalWidth > 100).length;
});
</script>"""


@needs_chromium
def test_page_in_a_browser(output, tmp_path):
    """The 3-D view is drawn and steps; all pictures are decoded; nothing is asked for that the page does not hold."""
    page = tmp_path / "report.html"
    page.write_text((output / "report.html").read_text().replace("</body>", PROBE + "</body>"))
    # The view alone fills the screenshot.
    picture = tmp_path / "view.png"
    alone = page.with_name("alone.html")
    style = "<style>h1, p, section, section > h2, #steps, figcaption { display: none } #view { height: 400px }"
    style += " section:has(#view) { display: block }</style></head>"
    alone.write_text((output / "report.html").read_text().replace("</head>", style))
    shown = browse(page, tmp_path, "--dump-dom")
    parser = Addresses()
    parser.feed(shown)
    assert parser.body["data-pictures"] == "5" and "data-violation" not in parser.body
    first, bonds, second, more, other, others = json.loads(parser.body["data-shown"])
    assert first.startswith("Conformation 1 of 10: energy ") and second.startswith("Conformation 2 of 10: energy ")
    assert other.startswith("Conformation 1 of 10: energy ")
    assert len({bonds, more, others}) == 3
    assert int(parser.body["data-canvases"]) > 0 and "WebGL" not in parser.body["data-view"]
    browse(alone, tmp_path, f"--screenshot={picture}", "--window-size=800,600")
    red, green, blue = np.moveaxis(matplotlib.image.imread(picture)[..., :3], -1, 0)
    assert ((red > 0.6) & (green < 0.3) & (blue < 0.3)).sum() > 200  # oxygens
    assert ((blue > 0.6) & (red < 0.4) & (green < 0.5)).sum() > 200  # nitrogens


def test_view(alanine, positions):
    """Conformations are drawn by weight, and turned onto one another; JSON cannot end the script that holds it."""
    heavy = [atom for atom, element in enumerate(alanine.topology.elements) if element != "H"]
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(1))).Q
    turn *= torch.linalg.det(turn).sign()
    turned = positions[:8] @ turn.T + 1.0
    log_weights = torch.full((16,), -torch.inf)
    log_weights[[3, 5]] = 0.0
    pair = torch.cat([positions[:8], turned])
    ensembles = {"a": (pair, log_weights), "b": turned}
    described = describe(ensembles, positions, alanine)
    views = view_of(alanine, described.ensembles, "b", 8)
    assert list(views) == ["b", "a"]
    assert len(views["a"].positions) == 2 and len(views["b"].positions) == 8
    np.testing.assert_allclose(views["a"].positions[:, heavy], views["b"].positions[[3, 5]][:, heavy], atol=1e-4)
    text = view_data(alanine, views)
    content = json.loads(text)
    assert "<" not in text and content["ensembles"][1]["name"] == "a"
    assert content["atoms"][alanine.topology.atom_names.index("CA")] == "CA of ALA 2"


def test_distances(positions):
    """A histogram of one distance, weighted, with what lies outside."""
    x = torch.zeros(3, 2, 3)
    x[:, 1, 0] = torch.tensor([0.15, 0.25, 9.0])
    pair = (torch.tensor([0]), torch.tensor([1]))
    curve = distance_histogram(x, torch.tensor([0.5, 0.2, 0.3]).double(), pair, np.array([0.1, 0.2, 0.3]))
    np.testing.assert_allclose(curve.heights, [5.0, 2.0])
    assert curve.beyond == pytest.approx(0.3)


def test_torsion_names():
    assert torsion_names(Peptide("AG")) == [("φ of GLY 2", "ψ of ALA 1")]
    assert torsion_names(Peptide("AGV")) == [("φ of GLY 2", "ψ of GLY 2")]


@pytest.mark.parametrize("flat", [0.0, 1.0], ids=["in a plane", "in space"])
def test_conformations_are_superposed(flat):
    """Turned and moved copies come back, without reflections, those of atoms in a plane too."""
    rng = np.random.default_rng(0)
    target = rng.normal(size=(5, 3)) * [1.0, 1.0, flat]
    target[4] = rng.normal(size=3)  # an atom that is not aligned by
    turns = Rotation.random(20, random_state=1).as_matrix()
    found = superposed(target @ turns + rng.normal(size=(20, 1, 3)), target, [0, 1, 2, 3])
    aligned = target - target[:4].mean(axis=0)
    if flat:
        np.testing.assert_allclose(found, np.broadcast_to(aligned, found.shape), atol=1e-10)
    np.testing.assert_allclose(found[:, :4], np.broadcast_to(aligned[:4], found[:, :4].shape), atol=1e-10)
    mirrored = superposed(target[None] * [1.0, 1.0, -1.0], target, range(5))[0]
    assert np.isclose(np.linalg.det(mirrored[:3] - mirrored[4]), -np.linalg.det(target[:3] - target[4]))
