"""What the benchmarks of peptides do with a flow, step by step, and the options of that.

Importance sampling, sequential Monte Carlo from those very draws, then both against a reference, where there is one.
Each step of each peptide and flow has a JSON file in the output folder, and the first two an .npz file of conformations
and weights: a reference that is made later costs no new draws.
"""

from __future__ import annotations

import dataclasses
import math
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from common import fingerprints, kept, reference_frames

from molecular.analysis import Evaluation, WeightedConformations, evaluate
from molecular.analysis.analyse import analyse
from molecular.analysis.compare import FLOOR
from molecular.analysis.free_energy import Interval
from molecular.analysis.validity import intact_bonds
from molecular.data.ensembles import Ensemble
from molecular.energy.reduced import ReducedEnergy
from molecular.molecule.molecule import Molecule
from molecular.molecule.peptide import Peptide
from molecular.molecule.torsions import named_backbone_torsions, ramachandran_names
from molecular.sampling import load_proposal, sample, smc
from molecular.sampling.sequential import SplitFlow
from molecular.sampling.summary import PUBLISHED_TRUNCATION, summarize
from nflib.metrics import Estimate
from nflib.montecarlo import AdaptiveTemperatures, SMCSamples, WeightedSamples

WEIGHTS, TRIMMED, SMC = "reweighted", "reweighted, trimmed", "SMC"
# Columns: step of a record, and where in it the figure is.
COLUMNS = {
    "ESS / samples": ("importance", "effective_sample_size_fraction"),
    "ESS, trimmed": ("importance", "truncated", "effective_sample_size_fraction"),
    "Pareto k": ("importance", "pareto_k"),
    "bonds right": ("importance", "bond_graph_rate"),
    "SMC is worth": ("smc", "effective_num_ancestors"),
    "energy W2 / kT": ("comparison", "distances", WEIGHTS, "energy_w2", "value"),
    "energy W2, trimmed": ("comparison", "distances", TRIMMED, "energy_w2", "value"),
    "energy W2, SMC": ("comparison", "distances", SMC, "energy_w2", "value"),
    "energy W2, halves": ("comparison", "distances", FLOOR, "energy_w2", "value"),
    "torus W2 / rad": ("comparison", "distances", WEIGHTS, "torus_w2", "value"),
    "torus W2, trimmed": ("comparison", "distances", TRIMMED, "torus_w2", "value"),
    "torus W2, SMC": ("comparison", "distances", SMC, "torus_w2", "value"),
    "torus W2, halves": ("comparison", "distances", FLOOR, "torus_w2", "value"),
}
# Where the published figures stand.
AS_PUBLISHED = ("ESS, trimmed", "energy W2, trimmed", "torus W2, trimmed")
METHOD = f"""\
ESS, energy W2 and torus W2 are of all draws and weights; "trimmed": without the {100 * PUBLISHED_TRUNCATION:g} % of
largest weights, which is how the published rows are made. "halves": half of the reference against the other half. The
published code (transferable-samplers) draws conformations by the trimmed weights, mirrors those of the wrong hand, and
compares up to 10,000 of them with as many first frames of its own molecular dynamics; ours takes the weights as they
are, mirrors nothing, and thins both sides to --transport_points for the torus (halves show the noise)."""

# Options that the figures of a step are of, besides those of all.
SMC_OPTIONS = ("smc_samples", "conditional_ess", "moves", "final_moves")
COMPARISON_OPTIONS = (*SMC_OPTIONS, "reference_frames", "start_ps", "transport_points", "bootstrap")


def add_sampling_options(parser: ArgumentParser) -> None:
    """Options of draws, and of their comparison with a reference."""
    parser.add_argument("--output", type=Path, required=True, help="folder for the figures of each peptide")
    parser.add_argument("--num_samples", type=int, default=10_000, help="draws of each flow")
    parser.add_argument("--batch_size", type=int, default=2_000, help="conformations decoded at once")
    parser.add_argument("--reference_frames", type=int, default=10_000, help="at most, evenly spaced")
    parser.add_argument("--start_ps", type=float, default=0.0, help="of the references, ps: frames before are left out")
    parser.add_argument("--transport_points", type=int, default=1_000, help="of an ensemble in the torus distance")
    parser.add_argument("--bootstrap", type=int, default=10, help="resamples for the errors of distances")


def add_smc_options(parser: ArgumentParser) -> None:
    """Options of sequential Monte Carlo."""
    parser.add_argument("--smc_samples", type=int, default=2_000, help="particles of smc; 0 for none")
    parser.add_argument("--conditional_ess", type=float, default=0.9, help="of smc, from one temperature to the next")
    parser.add_argument("--moves", type=int, default=1, help="of smc, at each temperature")
    parser.add_argument("--final_moves", type=int, default=0, help="of smc, at the target, in the end")


def made_with(arguments: Namespace, folders: Sequence[Path], *options: str) -> dict[str, Any]:
    """What figures are of; a file made with other settings is not taken for them."""
    given = {key: getattr(arguments, key) for key in ("num_samples", "seed", *options)}
    return {"models": fingerprints(folders)} | given


def moved_by_smc(flow: object, peptide: Peptide, arguments: Namespace, **given: Any) -> SMCSamples:
    """Particles of sequential Monte Carlo, by its options and what else is given."""
    return smc(
        cast(SplitFlow, flow),
        peptide,
        arguments.smc_samples,
        temperatures=AdaptiveTemperatures(arguments.conditional_ess),
        moves=arguments.moves,
        final_moves=arguments.final_moves,
        batch_size=arguments.batch_size,
        **given,
    )


def evaluated(named: Mapping[str, Any], frames: Ensemble, peptide: Peptide, arguments: Namespace) -> Evaluation:
    """Ensembles against the frames of a simulation."""
    return evaluate(
        named,
        WeightedConformations(frames.positions, groups=frames.replica_group),
        peptide,
        num_bootstrap=arguments.bootstrap,
        transport_points=arguments.transport_points,
        seed=arguments.seed,
    )


def importance(sequence: str, name: str, folders: Sequence[Path], arguments: Namespace) -> dict[str, Any]:
    """Draws and their weights: `summarize`, and the share of the flow's own conformations whose bonds are right."""
    path = arguments.output / "importance" / name / sequence

    def run() -> dict[str, Any]:
        peptide = Peptide(sequence)
        flow = load_proposal(peptide, folders)
        drawn = sample(flow, peptide, arguments.num_samples, batch_size=arguments.batch_size, seed=arguments.seed)
        drawn.save(path.with_suffix(".npz"))
        bonds = intact_bonds(drawn.x, peptide.topology)
        return summarize(drawn) | {"bond_graph_rate": bonds.double().mean().item(), "num_energies": len(drawn)}

    return kept(path.with_suffix(".json"), made_with(arguments, folders), run)


def moved(sequence: str, name: str, folders: Sequence[Path], arguments: Namespace) -> dict[str, Any] | None:
    """Particles that SMC moves from the draws of `importance`: `summarize`, and all energies, also those of draws."""
    if not arguments.smc_samples:
        return None
    path = arguments.output / "smc" / name / sequence

    def run() -> dict[str, Any]:
        peptide = Peptide(sequence)
        particles = moved_by_smc(
            load_proposal(peptide, folders),
            peptide,
            arguments,
            draws=WeightedSamples.load(arguments.output / "importance" / name / f"{sequence}.npz"),
            seed=arguments.seed + 1,
        )
        particles.save(path.with_suffix(".npz"))
        return summarize(particles) | {"num_energies": int(particles.history.num_evaluations[-1])}

    return kept(path.with_suffix(".json"), made_with(arguments, folders, *SMC_OPTIONS), run)


def comparison(sequence: str, name: str, folders: Sequence[Path], arguments: Namespace) -> dict[str, Any] | None:
    """Distances to the reference, and z-scores of populations and the mean energy; None without a reference.

    Made anew where the reference has other frames than before, or the particles are others.
    """
    folder = arguments.references and arguments.references / sequence
    if folder is None or not (folder / "report.json").is_file():
        return None
    frames = reference_frames(folder, arguments.start_ps, arguments.reference_frames)
    settings = made_with(arguments, folders, *COMPARISON_OPTIONS)
    settings |= {"frames": len(frames), "last_ps": frames.time.max().item()}
    path = arguments.output / "comparison" / name / f"{sequence}.json"

    def run() -> dict[str, Any]:
        peptide = Peptide(sequence)
        drawn = WeightedSamples.load(arguments.output / "importance" / name / f"{sequence}.npz")
        weighted = {WEIGHTS: drawn, TRIMMED: drawn.truncate(PUBLISHED_TRUNCATION)}
        if arguments.smc_samples:
            weighted[SMC] = WeightedSamples.load(arguments.output / "smc" / name / f"{sequence}.npz")
        evaluation = evaluated(weighted, frames, peptide, arguments)
        truth = averages(
            WeightedSamples(frames.positions, torch.zeros(len(frames)), ancestors=frames.replica_group), peptide
        )
        return {
            "distances": {
                row: {metric: estimate.summary() for metric, estimate in found.items()}
                for row, found in evaluation.rows.items()
            },
            "averages": {
                row: compared(averages(samples, peptide), truth) for row, samples in weighted.items() if row != TRIMMED
            },
        }

    return kept(path, settings, run, renewed_by=("frames", "last_ps", *SMC_OPTIONS))


def basins(molecule: Molecule) -> dict[str, dict[str, Interval]]:
    """phi > 0 of each residue, and the alpha and beta basins of each (phi, psi): intervals in degrees."""
    found: dict[str, dict[str, Interval]] = {
        f"{name} > 0": {name: (0.0, 180.0)}
        for name in named_backbone_torsions(molecule.topology)
        if name.startswith("phi ")
    }
    for phi, psi in ramachandran_names(molecule.topology):
        found[f"alpha of {phi}, {psi}"] = {phi: (-180.0, 0.0), psi: (-120.0, 50.0)}
        found[f"beta of {phi}, {psi}"] = {phi: (-180.0, 0.0), psi: (50.0, -120.0)}
    return found


def averages(samples: WeightedSamples, molecule: Molecule) -> dict[str, Estimate]:
    """Populations of `basins` and the mean energy (kT), each with the error that is stated for it."""
    found = dict(analyse(samples, molecule, [], basins=basins(molecule)).populations)
    energies = torch.cat([ReducedEnergy(molecule)(part) for part in samples.x.split(1000)])
    mean, error = dataclasses.replace(samples, x=energies).expectation(lambda values: values)
    return found | {"mean energy / kT": Estimate(mean.item(), error.item())}


def compared(ours: Mapping[str, Estimate], truth: Mapping[str, Estimate]) -> dict[str, dict[str, Any]]:
    """Both values and errors of each average, and z: the difference over both errors together, None without these."""
    found = {}
    for name, one in ours.items():
        other = truth[name]
        error = math.hypot(one.error, other.error)
        z = (one.value - other.value) / error if 0.0 < error < math.inf else None
        found[name] = {"ours": one.summary(), "reference": other.summary(), "z": z}
    return found


def figure(record: Mapping[str, Any], column: str) -> float | None:
    """A column's figure of one sequence, None where it is not there."""
    found: Any = record
    for key in COLUMNS[column]:
        found = found.get(key) if found is not None else None
    return None if found is None else float(found)
