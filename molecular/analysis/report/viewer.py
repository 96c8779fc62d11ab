"""Conformations for the rotatable view of a report: a few of each ensemble, superposed on one another."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from molecular.analysis.descriptors import Descriptors
from molecular.molecule.geometry import covalent_radius
from molecular.molecule.molecule import Molecule
from nflib.montecarlo import resample
from nflib.optional import require

SCRIPT = Path(__file__).with_name("viewer.js")
STYLE = Path(__file__).with_name("viewer.css")
# As in most viewers of molecules.
ELEMENT_COLORS = {"H": "#f2f2f2", "C": "#5a5a5a", "N": "#3050f8", "O": "#e0201b", "S": "#e6c84b"}
_SPHERE = 0.42  # of a covalent radius, so that sticks show between the balls
VIEWER = """<figure><div id="view" role="img" aria-label="Rotatable view of conformations"></div>
<div id="steps"><label>Ensemble <select id="ensemble"></select></label>
<button id="previous" type="button" aria-label="previous conformation">◀</button>
<button id="next" type="button" aria-label="next conformation">▶</button>
<input id="step" type="range" min="0" max="0" value="0" step="1" aria-label="conformation">
<output id="view-caption"></output></div>
<figcaption>Drawn by weight and superposed by heavy atoms. Drag to rotate, scroll to zoom, point at an atom for its
name.</figcaption></figure>"""


@dataclass(frozen=True)
class ViewedEnsemble:
    """Conformations of one ensemble for the rotatable view.

    Args:
        positions: (k, n, 3), nm.
        captions: a line about each.
    """

    positions: NDArray
    captions: Sequence[str]


def view_of(
    molecule: Molecule, ensembles: Mapping[str, Descriptors], first: str, num_conformations: int, seed: int = 0
) -> dict[str, ViewedEnsemble]:
    """Draw conformations of each ensemble by weight for the rotatable view, superposed by heavy atoms.

    Args:
        molecule: what they are of.
        ensembles: by name.
        first: the ensemble that comes first, on whose first conformation all others are superposed.
        num_conformations: at most so many of each.
        seed: of the draw.
    """
    order = [first, *(name for name in ensembles if name != first)]
    heavy = [atom for atom, element in enumerate(molecule.topology.elements) if element != "H"]
    # One or two atoms have no orientation.
    atoms = heavy if len(heavy) > 2 else list(range(molecule.num_atoms))
    views: dict[str, ViewedEnsemble] = {}
    target: NDArray | None = None
    for name in order:
        one = ensembles[name]
        drawn = resample(one.mass, num_conformations, torch.Generator().manual_seed(seed), "systematic").unique()
        positions = one.positions[drawn].double().numpy()
        target = positions[0] if target is None else target
        energies = one.energy[drawn].tolist()
        captions = [f"energy {energy:.1f} kT" for energy in energies]
        views[name] = ViewedEnsemble(superposed(positions, target, atoms), captions)
    return views


def superposed(positions: NDArray, target: NDArray, atoms: Sequence[int]) -> NDArray:
    """Conformations (k, n, 3) about their centre, turned so that some atoms are nearest to those of a target (n, 3).

    By singular values (Kabsch 1976), which atoms in a plane or on a line do not disturb.
    """
    x = positions - positions[:, atoms].mean(axis=1, keepdims=True)
    y = target[atoms] - target[atoms].mean(axis=0)
    left, _, right = np.linalg.svd(x[:, atoms].swapaxes(1, 2) @ y)
    left[:, :, 2] *= np.linalg.det(left @ right)[:, None]  # no reflection
    return x @ (left @ right)


def viewer_scripts(molecule: Molecule, views: Mapping[str, ViewedEnsemble]) -> list[str]:
    """The script elements that `VIEWER` needs; raises ModuleNotFoundError without plotly."""
    plotly = require("plotly.offline", "the report needs", extra="molecular")
    return [
        f"<script>{plotly.get_plotlyjs()}</script>",
        f'<script id="view-data" type="application/json">{view_data(molecule, views)}</script>',
        f"<script>{SCRIPT.read_text(encoding='utf-8')}</script>",
    ]


def view_data(molecule: Molecule, views: Mapping[str, ViewedEnsemble]) -> str:
    """What `viewer.js` reads, as JSON that may stand inside a page's script."""
    content: dict[str, Any] = {
        "elements": molecule.topology.elements,
        "colors": ELEMENT_COLORS,
        "radii": {
            element: round(_SPHERE * covalent_radius(element), 5) for element in sorted(set(molecule.topology.elements))
        },
        "atoms": [molecule.topology.label(atom) for atom in range(molecule.num_atoms)],
        "bonds": molecule.topology.bonds,
        "ensembles": [
            {"name": name, "captions": list(view.captions), "positions": np.round(view.positions, 4).tolist()}
            for name, view in views.items()
        ],
    }
    text = json.dumps(_shortened(content), separators=(",", ":"))
    return text.replace("<", "\\u003c")


def _shortened(content: Any) -> Any:
    """float32 written out in full has digits that mean nothing."""
    if isinstance(content, float):
        return round(content, 4)
    if isinstance(content, dict):
        return {name: _shortened(value) for name, value in content.items()}
    return [_shortened(value) for value in content] if isinstance(content, list | tuple) else content
