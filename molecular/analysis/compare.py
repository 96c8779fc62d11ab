"""Ensembles of a molecule beside a reference ensemble, in one table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from molecular.analysis.descriptors import Describe, Descriptors
from molecular.analysis.ensembles import WeightedConformations
from molecular.analysis.metrics import Metric, available_metrics
from molecular.analysis.table import Evaluation
from molecular.analysis.tica import TICA
from molecular.energy.reduced import ReducedEnergy
from molecular.molecule.molecule import Molecule
from nflib.metrics import Estimate
from nflib.metrics.transport import import_pot

# Names of ours: of the reference in figures, and of its row.
REFERENCE = "reference"
FLOOR = "reference, half to half"
# Of fewer, two standard errors hold the truth in less than 88 % of runs.
FEWEST_INDEPENDENT = 5


@dataclass(frozen=True)
class Described:
    """What `evaluate` compares: ensembles, their reference and its halves, as `Descriptors`.

    Args:
        molecule: what they are of.
        ensembles: by name.
        reference: to compare with.
        halves: of the reference.
        tica: slow coordinates of the reference; None where it has no trajectories, or no torsions of heavy atoms.
        settings: of `describe`, for the table.
    """

    molecule: Molecule
    ensembles: Mapping[str, Descriptors]
    reference: Descriptors
    halves: tuple[Descriptors, Descriptors]
    tica: TICA | None
    settings: Mapping[str, object]


def evaluate(
    ensembles: Mapping[str, Any],
    reference: Any,
    molecule: Molecule,
    *,
    energy: Callable[[Tensor], Tensor] | None = None,
    num_bootstrap: int = 20,
    transport_points: int = 1000,
    tica_lag: int = 10,
    num_clusters: int = 20,
    seed: int = 0,
    progress: bool = False,
) -> Evaluation:
    """Compare ensembles (proposal, reweighted, SMC, ...) with a reference, each figure with a bootstrap error.

    The columns: effective_sample_size_fraction (Kish's); energy_w1, energy_w2 (kT); torus_w2 of all phi and psi
    together (rad); ramachandran_jsd, averaged over residues, 10 degree bins (nats); tica_w2 and kmeans_jsd in the plane
    of the reference's two slowest coordinates (cosines and sines of all heavy-atom torsions; of their doubles where
    half a turn exchanges equivalent atoms), where the reference has trajectories; chirality_rate and bond_graph_rate.

    The first row compares half of the reference with the other half: what an ensemble that is right would get at
    such a size, since no distance between finite samples reaches zero.

    Args:
        ensembles: name -> positions (N, n, 3) in nm, `(positions, log_weights)`, `WeightedSamples`, an `Ensemble`,
            or `WeightedConformations`. Conformations that are not finite are left out and counted.
        reference: the same; an `Ensemble` has trajectories (its replica groups), which are also what is resampled, or
            blocks of 20 autocorrelation times of them where they are few, as families of particles with one ancestor
            are.
        molecule: what they are of, at the temperature and in the force field of the comparison.
        energy: positions (B, n, 3) -> reduced energies (B,), kT; default: the molecule's own.
        num_bootstrap: resamples of ensemble and reference together, weights kept with the conformations; the error
            is the standard deviation over them, NaN where fewer than 5 are independent. 0 for none.
        transport_points: torus_w2 and tica_w2 are exact between at most so many points; larger ensembles are
            thinned by systematic resampling of their weights.
        tica_lag: lag time of TICA, in frames of the reference.
        num_clusters: of kmeans_jsd.
        seed: of the resamples and the clusters.
        progress: show a progress bar.

    Returns:
        A table, which prints as Markdown and is saved as JSON, CSV or Markdown.

    Raises:
        ValueError: no ensembles, one named as the reference or the first row is, or without a weight, arrays of the
            wrong shape, or an option out of range.
        ImportError: POT is missing.
    """
    check_options(
        num_bootstrap=num_bootstrap, transport_points=transport_points, tica_lag=tica_lag, num_clusters=num_clusters
    )
    described = describe(
        ensembles, reference, molecule, energy=energy, tica_lag=tica_lag, num_clusters=num_clusters, seed=seed
    )
    return compare(
        described, num_bootstrap=num_bootstrap, transport_points=transport_points, seed=seed, progress=progress
    )


def describe(
    ensembles: Mapping[str, Any],
    reference: Any,
    molecule: Molecule,
    *,
    energy: Callable[[Tensor], Tensor] | None = None,
    tica_lag: int = 10,
    num_clusters: int = 20,
    seed: int = 0,
) -> Described:
    """The first half of `evaluate`, for those who also draw what is compared.

    Args:
        ensembles: as of `evaluate`.
        reference: as of `evaluate`.
        molecule: as of `evaluate`.
        energy: as of `evaluate`.
        tica_lag: as of `evaluate`.
        num_clusters: as of `evaluate`.
        seed: of the clusters.

    Raises:
        ValueError: as `evaluate`.
    """
    if not ensembles:
        raise ValueError("evaluate: there are no ensembles; pass a dictionary of names and positions.")
    for own in (REFERENCE, FLOOR):
        if own in ensembles:
            raise ValueError(f"evaluate: an ensemble is named {own!r}, which is a name of ours; rename it.")
    sources = {
        name: WeightedConformations.of(f"ensemble {name!r}", source, molecule) for name, source in ensembles.items()
    }
    for name, source in sources.items():
        if not source.usable().num_weighted():
            raise ValueError(f"ensemble {name!r} has no conformation that is finite and has a weight; leave it out.")
    truth = WeightedConformations.of("the reference", reference, molecule).usable()
    if len(truth) < 4:
        raise ValueError(f"the reference has {len(truth)} finite conformations; it needs 4 or more.")
    descriptors = Describe(molecule, energy or ReducedEnergy(molecule), truth, tica_lag, num_clusters, seed)
    first, second = truth.halves()
    return Described(
        molecule=molecule,
        ensembles={name: descriptors(source) for name, source in sources.items()},
        reference=descriptors(truth),
        halves=(descriptors(first), descriptors(second)),
        tica=descriptors.tica,
        settings={"tica_lag": tica_lag, "num_clusters": num_clusters},
    )


def compare(
    described: Described,
    *,
    num_bootstrap: int = 20,
    transport_points: int = 1000,
    seed: int = 0,
    progress: bool = False,
) -> Evaluation:
    """The second half of `evaluate`: the table of what `describe` gave.

    Args:
        described: by `describe`.
        num_bootstrap: as of `evaluate`.
        transport_points: as of `evaluate`.
        seed: of the resamples.
        progress: show a progress bar.
    """
    pairs = {FLOOR: described.halves}
    pairs |= {name: (sample, described.reference) for name, sample in described.ensembles.items()}
    metrics = available_metrics(described.reference)
    resamples = {
        name: num_bootstrap if min(one.num_independent for one in pair) >= FEWEST_INDEPENDENT else 0
        for name, pair in pairs.items()
    }
    rows = {}
    with _progress(len(pairs) + sum(resamples.values()), progress) as steps:
        for name, (sample, against) in pairs.items():
            rows[name] = _estimates(sample, against, metrics, resamples[name], transport_points, seed, steps)
    return Evaluation(
        molecule=described.molecule.name,
        rows=rows,
        units={metric.name: metric.unit for metric in metrics},
        num_samples={name: sample.num_samples for name, (sample, _) in pairs.items()},
        num_rejected={name: sample.num_rejected for name, (sample, _) in pairs.items()},
        settings={
            "temperature_K": described.molecule.temperature,
            "reference_samples": len(described.reference.weights),
            "num_bootstrap": num_bootstrap,
            "transport_points": transport_points,
            **described.settings,
            "seed": seed,
        },
        notes=_notes(metrics, described.tica, transport_points, num_bootstrap, resamples),
    )


def _estimates(
    sample: Descriptors,
    reference: Descriptors,
    metrics: list[Metric],
    num_bootstrap: int,
    points: int,
    seed: int,
    steps: Any,
) -> dict[str, Estimate]:
    """All metrics of one row. Every row sees the same resamples of the reference."""
    values = _figures(sample, reference, metrics, points)
    steps.update()
    replicates = []
    ours, theirs = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed + 1)
    for _ in range(num_bootstrap):
        replicates.append(_figures(sample.resampled(ours), reference.resampled(theirs), metrics, points))
        steps.update()
    errors = torch.full_like(values, torch.nan) if num_bootstrap < 2 else torch.stack(replicates).std(dim=0)
    pairs = zip(metrics, values.tolist(), errors.tolist(), strict=True)
    return {metric.name: Estimate(value, error) for metric, value, error in pairs}


def _figures(sample: Descriptors, reference: Descriptors, metrics: list[Metric], points: int) -> Tensor:
    return torch.tensor([metric.function(sample, reference, points) for metric in metrics], dtype=torch.float64)


def _notes(
    metrics: list[Metric], tica: TICA | None, points: int, num_bootstrap: int, resamples: Mapping[str, int]
) -> tuple[str, ...]:
    names = {metric.name for metric in metrics}
    notes = [f"Errors: standard deviation over {num_bootstrap} bootstrap resamples of both ensembles."]
    if without := [name for name, number in resamples.items() if number < num_bootstrap]:
        notes.append(
            f"No error can be told of {'; '.join(without)}: one side has fewer than {FEWEST_INDEPENDENT} independent "
            "conformations, or groups of correlated ones; simulate for longer, or more trajectories, or draw more."
        )
    if num_bootstrap < 2:
        notes = []
    if exact := sorted(names & {"torus_w2", "tica_w2"}, reverse=True):
        notes.append(f"Exact between at most {points} points an ensemble: {', '.join(exact)}.")
    if tica is None:
        notes.append("tica_w2 and kmeans_jsd need a reference of trajectories, and torsions of heavy atoms: left out.")
    else:
        eigenvalues = ", ".join(f"{value:.3f}" for value in tica.eigenvalues.tolist())
        notes.append(f"TICA eigenvalues (autocorrelation at the lag): {eigenvalues}.")
    return tuple(notes)


def check_options(**options: int) -> None:
    """Check options of `evaluate` before the work: raise ImportError without POT, ValueError for one out of range."""
    import_pot()
    least = {"num_bootstrap": 0, "transport_points": 2, "tica_lag": 1, "num_clusters": 2}
    for name, value in options.items():
        if value < least[name]:
            raise ValueError(f"evaluate: {name} is {value}; give {least[name]} or more.")


def _progress(total: int, show: bool) -> Any:
    from tqdm.auto import tqdm

    return tqdm(total=total, desc="evaluating", unit="resample", disable=not show)
