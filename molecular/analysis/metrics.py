"""The figures of an evaluation: what each is called, its unit, and how it follows from two ensembles."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from molecular.analysis.descriptors import Descriptors
from molecular.analysis.divergence import RAMACHANDRAN_BINS, histogram, jensen_shannon
from nflib.metrics import wasserstein, wasserstein_1d
from nflib.montecarlo import resample


@dataclass(frozen=True)
class Metric:
    """A figure by which an ensemble is compared with a reference.

    Args:
        name: of its column.
        unit: "" for none.
        function: `function(sample, reference, points)` is its value; exact transport is given at most `points` samples.
        meaning: for readers of a report.
    """

    name: str
    unit: str
    function: Callable[[Descriptors, Descriptors, int], float]
    meaning: str = ""


def available_metrics(reference: Descriptors) -> list[Metric]:
    """The metrics of `METRICS` that this molecule and this reference allow."""
    absent = set()
    if reference.torsions.shape[1] == 0:
        absent |= {"torus_w2"}
    if reference.ramachandran.shape[1] == 0:
        absent |= {"ramachandran_jsd"}
    if reference.tica.shape[1] == 0:
        absent |= {"tica_w2", "kmeans_jsd"}
    return [metric for metric in METRICS if metric.name not in absent]


def effective_sample_size_fraction(sample: Descriptors, reference: Descriptors, points: int) -> float:
    """Kish's (sum w)^2 / sum w^2 over the number of samples, rejected ones included."""
    weights, counts = sample.weights, sample.counts
    size = (counts * weights).sum().square() / (counts * weights.square()).sum()
    return size.item() / counts.sum().item() * len(counts) / sample.num_samples


def energy_distance(order: float) -> Callable[[Descriptors, Descriptors, int], float]:
    """W_p of the energies' distributions, kT; infinite where a conformation with weight has no finite energy."""

    def function(sample: Descriptors, reference: Descriptors, points: int) -> float:
        return wasserstein_1d(sample.energy, reference.energy, sample.mass, reference.mass, order=order).item()

    return function


def torus_w2(sample: Descriptors, reference: Descriptors, points: int) -> float:
    """W_2 of all backbone torsions together, on their torus, rad."""
    return _transport(sample.torsions, sample.mass, reference.torsions, reference.mass, points, "torus")


def tica_w2(sample: Descriptors, reference: Descriptors, points: int) -> float:
    """W_2 in the plane of the reference's two slowest coordinates."""
    return _transport(sample.tica, sample.mass, reference.tica, reference.mass, points, "euclidean")


def ramachandran_jsd(sample: Descriptors, reference: Descriptors, points: int) -> float:
    """Jensen-Shannon divergence of (phi, psi) histograms, averaged over residues, nats."""
    num_cells = RAMACHANDRAN_BINS**2
    values = [
        jensen_shannon(histogram(a, sample.mass, num_cells), histogram(b, reference.mass, num_cells))
        for a, b in zip(sample.ramachandran.T, reference.ramachandran.T, strict=True)
    ]
    return sum(values) / len(values)


def kmeans_jsd(sample: Descriptors, reference: Descriptors, points: int) -> float:
    """Jensen-Shannon divergence of the occupations of k-means clusters in the TICA plane, nats."""
    return jensen_shannon(
        histogram(sample.clusters, sample.mass, sample.num_clusters),
        histogram(reference.clusters, reference.mass, reference.num_clusters),
    )


def chirality_rate(sample: Descriptors, reference: Descriptors, points: int) -> float:
    """Weighted share of conformations whose every stereocentre has the hand that it has in the molecule's structure."""
    return (sample.mass * sample.chirality).sum().item()


def bond_graph_rate(sample: Descriptors, reference: Descriptors, points: int) -> float:
    """Weighted share of conformations whose distances give the molecule's own bonds."""
    return (sample.mass * sample.bonds).sum().item()


METRICS = [
    Metric(
        "effective_sample_size_fraction",
        "",
        effective_sample_size_fraction,
        "effective sample size over the number of samples; 1 for equal weights",
    ),
    Metric("energy_w1", "kT", energy_distance(1), "Wasserstein distance of order 1 between the energies"),
    Metric("energy_w2", "kT", energy_distance(2), "of order 2, which a few high energies dominate"),
    Metric("torus_w2", "rad", torus_w2, "Wasserstein distance of order 2 between all (φ, ψ) on their torus"),
    Metric("ramachandran_jsd", "nats", ramachandran_jsd, "Jensen-Shannon divergence of (φ, ψ), mean over residues"),
    Metric("tica_w2", "", tica_w2, "Wasserstein distance of order 2 in the plane of the two slowest coordinates"),
    Metric("kmeans_jsd", "nats", kmeans_jsd, "Jensen-Shannon divergence of cluster occupations in that plane"),
    Metric("chirality_rate", "", chirality_rate, "share of conformations whose every centre has the right hand"),
    Metric("bond_graph_rate", "", bond_graph_rate, "share of conformations whose distances give the right bonds"),
]


def _transport(x: Tensor, x_mass: Tensor, y: Tensor, y_mass: Tensor, points: int, metric: str) -> float:
    x, x_mass = thin(x, x_mass, points)
    y, y_mass = thin(y, y_mass, points)
    return wasserstein(x, y, x_mass, y_mass, metric=metric).item()


def thin(values: Tensor, mass: Tensor, points: int) -> tuple[Tensor, Tensor]:
    """Thin samples to at most `points` of them, with new masses: systematic resampling, always the same draw.

    Along the widest coordinate, in order, so that its distribution stays as it is to one part in `points`.
    """
    used = mass > 0
    values, mass = values[used], mass[used]
    if len(values) <= points:
        return values, mass
    order = values[:, values.var(dim=0).argmax()].argsort(stable=True)
    values, mass = values[order], mass[order]
    drawn = resample(mass, points, torch.Generator().manual_seed(0), "systematic")
    index, counts = drawn.unique(return_counts=True)
    return values[index], counts.double() / points
