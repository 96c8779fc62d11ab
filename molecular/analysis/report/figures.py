"""The figures of a report, from ensembles that are described already."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator
from numpy.typing import NDArray
from torch import Tensor

from molecular.analysis.compare import REFERENCE, Described
from molecular.analysis.descriptors import Descriptors
from molecular.analysis.divergence import RAMACHANDRAN_BINS
from molecular.analysis.plots import Curve, curves, plane, ramachandran_grid
from molecular.molecule.molecule import Molecule
from molecular.molecule.torsions import ramachandran_torsions
from nflib.montecarlo import History
from nflib.montecarlo.plots import plot_history
from nflib.page import DOTS_PER_INCH

ENERGY_BINS = 50
DISTANCE_BINS = 80
TICA_BINS = 40
BOND_LENGTHS = (0.085, 0.200)  # nm; from an N-H bond to a C-S bond, with room
_BATCH = 1024


@dataclass(frozen=True)
class DrawnFigure:
    """A figure of a report.

    Args:
        path: of its file.
        heading: above it.
        caption: below it.
    """

    path: Path
    heading: str
    caption: str


def draw_figures(described: Described, histories: Mapping[str, History], folder: Path) -> list[DrawnFigure]:
    """Draw the figures of an evaluation, as far as the ensembles allow.

    Args:
        described: the ensembles and their reference.
        histories: of runs of sequential Monte Carlo, by name.
        folder: for ramachandran.png, energies.png, tica.png, distances.png, and history.png, or history-1.png and so
            on, of each history.
    """
    molecule = described.molecule
    everything = {REFERENCE: described.reference, **described.ensembles}
    weights = {name: one.mass.numpy() for name, one in everything.items()}
    figures = []

    def keep(file: str, heading: str, caption: str) -> None:
        figures.append(DrawnFigure(folder / file, heading, caption))

    if described.reference.phi_psi.shape[1]:
        panels = {name: (one.phi_psi.numpy(), weights[name]) for name, one in everything.items()}
        ramachandran_grid(
            panels,
            torsion_names(molecule),
            folder / "ramachandran.png",
            bins=RAMACHANDRAN_BINS,
            zero=REFERENCE,
            temperature=molecule.temperature,
        )
        cells = "Free energy of φ and ψ above the reference's minimum, in the cells of the divergence in the table."
        keep("ramachandran.png", "Ramachandran maps", cells)
    _draw_energies(everything, folder / "energies.png")
    energies = "Potential energies over kT, in the range of the reference and some more; below, less the reference."
    keep("energies.png", "Energies", energies)
    if described.tica is not None:
        plane(
            {name: (one.tica.numpy(), weights[name]) for name, one in everything.items()},
            folder / "tica.png",
            labels=("slowest coordinate", "second slowest coordinate"),
            bins=TICA_BINS,
            zero=REFERENCE,
            temperature=molecule.temperature,
        )
        coordinates = "Free energy of the reference's two slowest coordinates, each as wide as it is slow."
        keep("tica.png", "TICA plane", coordinates)
    _draw_distances(everything, molecule, folder / "distances.png")
    distances = "Left: all bonds; right: all other pairs of atoms; below, less the reference."
    keep("distances.png", "Interatomic distances", distances)
    for number, (name, history) in enumerate(histories.items(), start=1):
        file = "history.png" if len(histories) == 1 else f"history-{number}.png"
        _draw_history(history, folder / file)
        caption = "Sample sizes, ancestors, inverse temperature, acceptance, step size and evidence along the path."
        keep(file, f"History of {name}", caption)
    return figures


def torsion_names(molecule: Molecule) -> list[tuple[str, str]]:
    """Names of the (phi, psi) pairs of `ramachandran_torsions`, by the residue of their alpha carbon: "φ of ALA 2"."""
    residue = molecule.topology.residue_label
    names = []
    for phi, psi in ramachandran_torsions(molecule.topology).tolist():
        names.append((f"φ of {residue(phi[2])}", f"ψ of {residue(psi[1])}"))
    return names


def distance_histogram(positions: Tensor, mass: Tensor, pairs: tuple[Tensor, Tensor], edges: NDArray) -> Curve:
    """Weighted density of the distances of pairs of atoms: positions (N, n, 3), mass (N,), each pair alike;
    `edges` of equal bins."""
    bins, span = len(edges) - 1, (float(edges[0]), float(edges[-1]))
    counts, total = np.zeros(bins), 0.0
    for part, weights in zip(positions.split(_BATCH), mass.split(_BATCH), strict=True):
        distances = torch.linalg.vector_norm(part[:, pairs[0]] - part[:, pairs[1]], dim=-1)
        spread = weights[:, None].expand_as(distances)
        counts += np.histogram(distances.numpy().ravel(), bins, span, weights=spread.numpy().ravel())[0]
        total += spread.sum().item()
    return Curve(counts / total / np.diff(edges), max(1.0 - counts.sum() / total, 0.0))


def _draw_energies(everything: Mapping[str, Descriptors], path: Path) -> None:
    reference = everything[REFERENCE]
    finite = reference.energy[torch.isfinite(reference.energy)].numpy()
    low, high = np.quantile(finite, [0.001, 0.999])
    width = max(high - low, 1.0)
    # As far up as most of every ensemble, but not so far that the reference becomes a line.
    most = max(np.quantile(one.energy.numpy(), 0.9, method="lower") for one in everything.values())
    edges = np.linspace(low - 0.2 * width, np.clip(most, high + 0.6 * width, high + 3.0 * width), ENERGY_BINS + 1)
    drawn = {}
    for name, one in everything.items():
        inside = np.histogram(one.energy.numpy(), edges, weights=one.mass.numpy())[0]
        drawn[name] = Curve(inside / np.diff(edges), max(1.0 - inside.sum(), 0.0))
    curves([(edges, drawn)], path, labels=[("energy / kT", "density / (1/kT)")], reference=REFERENCE)


def _draw_distances(everything: Mapping[str, Descriptors], molecule: Molecule, path: Path) -> None:
    bonded = torch.tensor(molecule.topology.bonds).T
    others = torch.ones(molecule.num_atoms, molecule.num_atoms).triu(1)
    others[bonded[0], bonded[1]] = 0
    first, second = torch.nonzero(others, as_tuple=True)
    pairs = [(bonded[0], bonded[1]), (first, second)]
    reference = everything[REFERENCE].positions
    longest = max(
        torch.linalg.vector_norm(part[:, first] - part[:, second], dim=-1).max().item()
        for part in reference.split(_BATCH)
    )
    ranges = [np.linspace(*BOND_LENGTHS, DISTANCE_BINS + 1), np.linspace(0.1, 1.05 * longest, DISTANCE_BINS + 1)]
    panels = [
        (edges, {name: distance_histogram(one.positions, one.mass, pair, edges) for name, one in everything.items()})
        for pair, edges in zip(pairs, ranges, strict=True)
    ]
    labels = [("bond length / nm", "density / (1/nm)"), ("distance of other pairs / nm", "density / (1/nm)")]
    curves(panels, path, labels=labels, reference=REFERENCE)


def _draw_history(history: History, path: Path) -> None:
    figure = plot_history(history)
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
        if axes.get_yscale() == "log":
            # Plain numbers: within one decade there is no power of ten to label.
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            low, high = axes.get_ylim()
            if high / low < 20.0:
                axes.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
                axes.yaxis.set_minor_locator(LogLocator(subs=(2.0, 3.0, 5.0)))
    figure.savefig(path, dpi=DOTS_PER_INCH)
