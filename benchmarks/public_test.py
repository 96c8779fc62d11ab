"""The public test sequences: what a transferable flow is worth on each, beside the published figures.

`benchmarks/transferable.py --public-test 2 4` runs this: all sequences by importance sampling, then by sequential Monte
Carlo from those very draws, then both against a reference, where there is one. Each step of each sequence and flow has
a JSON file in the output folder, and the first two an .npz file of conformations and weights: a reference that is made
later costs no new draws.
"""

from __future__ import annotations

import dataclasses
import json
import math
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from common import fingerprints, kept, markdown_table, reference_frames

import molecular
from molecular.analysis import WeightedConformations, evaluate
from molecular.analysis.analyse import analyse
from molecular.analysis.compare import FLOOR
from molecular.analysis.free_energy import Interval
from molecular.analysis.validity import intact_bonds
from molecular.energy.reduced import ReducedEnergy
from molecular.molecule.molecule import Molecule
from molecular.molecule.peptide import Peptide
from molecular.molecule.torsions import named_backbone_torsions, ramachandran_names
from molecular.sampling.sample import PUBLISHED_TRUNCATION, SHIPPED, load_proposal, sample, summarize
from molecular.sampling.shipped_flows import COVERAGE, Coverage
from molecular.sampling.smc import SplitFlow, smc
from nflib.io.documents import finite_or_none
from nflib.metrics import Estimate
from nflib.montecarlo import AdaptiveTemperatures, WeightedSamples

SEQUENCES = Path(molecular.__file__).parent / "recipes" / "public_sequences.json"
# Means over the 30 test sequences at 10,000 energies, arXiv 2508.18175v4: ESS / samples, energy W2 (kT), torus W2.
PUBLISHED = {
    2: {"ECNF++": (0.024, 3.470, 0.302), "TarFlow": (0.134, 0.452, 0.193), "Prose": (0.191, 0.371, 0.210)},
    4: {"ECNF++": (0.008, 10.032, 1.121), "TarFlow": (0.045, 1.260, 0.924), "Prose": (0.071, 0.932, 0.752)},
    8: {"TarFlow": (0.008, 11.298, 2.733), "Prose": (0.011, 10.038, 2.456)},
}
# Fewer effective samples than that leave a sequence to SMC.
FEWEST = 30
NUM_WORST = 3

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
CAPTION = f"""\
{METHOD}
"SMC is worth": independent draws, by the ancestry of its particles. Errors of means are standard errors over
sequences."""

# Options that the figures of a step are of, besides those of all.
SMC_OPTIONS = ("smc_samples", "conditional_ess", "moves", "final_moves")
COMPARISON_OPTIONS = (*SMC_OPTIONS, "reference_frames", "start_ps", "transport_points", "bootstrap")

# Of each sequence, by step.
Records = Mapping[str, dict[str, dict[str, Any]]]


def shipped_transferable() -> list[Path]:
    """The shipped flows that cover the most lengths."""
    lengths = {path.parent: len(Coverage.read(path).lengths) for path in sorted(SHIPPED.glob(f"*/{COVERAGE}"))}
    return [folder for folder, number in lengths.items() if number == max(lengths.values())]


def public_test(models: Mapping[str, Sequence[Path]], arguments: Namespace) -> None:
    """Compute what is missing, and print a table for each flow, or mixture of flows, and length."""
    listed = json.loads(SEQUENCES.read_text())["test"]
    chosen = [name for length in arguments.public_test for name in listed if len(name) == length]
    chosen = [name for name in chosen if not arguments.peptides or name in arguments.peptides]
    if not chosen:
        raise SystemExit("error: no public test sequence has these lengths and names; see public_sequences.json.")
    records: dict[str, Records] = {name: {sequence: {} for sequence in chosen} for name in models}
    for step, run in {"importance": importance, "smc": moved, "comparison": comparison}.items():
        for sequence in chosen:
            for name, folders in models.items():
                record = run(sequence, name, folders, arguments)
                if record is not None:
                    records[name][sequence][step] = record
                    print(f"{sequence}, {name}, {step}: {record['seconds']:.0f} s", flush=True)
    for name, own in records.items():
        for length in sorted({len(sequence) for sequence in chosen}):
            part = {sequence: record for sequence, record in own.items() if len(sequence) == length}
            print(f"\n{name}, {length} residues\n\n{table(part, length)}\n")
            print("\n".join(remarks(part)))
    print(f"\n{CAPTION}")


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

    return kept(path.with_suffix(".json"), _made_with(arguments, folders), run)


def moved(sequence: str, name: str, folders: Sequence[Path], arguments: Namespace) -> dict[str, Any] | None:
    """Particles that SMC moves from the draws of `importance`: `summarize`, and all energies, also those of draws."""
    if not arguments.smc_samples:
        return None
    path = arguments.output / "smc" / name / sequence

    def run() -> dict[str, Any]:
        peptide = Peptide(sequence)
        particles = smc(
            cast(SplitFlow, load_proposal(peptide, folders)),
            peptide,
            arguments.smc_samples,
            temperatures=AdaptiveTemperatures(arguments.conditional_ess),
            moves=arguments.moves,
            final_moves=arguments.final_moves,
            draws=WeightedSamples.load(arguments.output / "importance" / name / f"{sequence}.npz"),
            batch_size=arguments.batch_size,
            seed=arguments.seed + 1,
        )
        particles.save(path.with_suffix(".npz"))
        return summarize(particles) | {"num_energies": int(particles.history.num_evaluations[-1])}

    return kept(path.with_suffix(".json"), _made_with(arguments, folders, *SMC_OPTIONS), run)


def comparison(sequence: str, name: str, folders: Sequence[Path], arguments: Namespace) -> dict[str, Any] | None:
    """Distances to the reference, and z-scores of populations and the mean energy; None without a reference.

    Made anew where the reference has other frames than before.
    """
    folder = arguments.references and arguments.references / sequence
    if folder is None or not (folder / "report.json").is_file():
        return None
    frames = reference_frames(folder, arguments.start_ps, arguments.reference_frames)
    settings = _made_with(arguments, folders, *COMPARISON_OPTIONS)
    settings |= {"frames": len(frames), "last_ps": frames.time.max().item()}
    path = arguments.output / "comparison" / name / f"{sequence}.json"

    def run() -> dict[str, Any]:
        peptide = Peptide(sequence)
        drawn = WeightedSamples.load(arguments.output / "importance" / name / f"{sequence}.npz")
        weighted = {WEIGHTS: drawn, TRIMMED: drawn.truncate(PUBLISHED_TRUNCATION)}
        if arguments.smc_samples:
            weighted[SMC] = WeightedSamples.load(arguments.output / "smc" / name / f"{sequence}.npz")
        reference = WeightedConformations(frames.positions, groups=frames.ladder)
        evaluation = evaluate(
            weighted,
            reference,
            peptide,
            num_bootstrap=arguments.bootstrap,
            transport_points=arguments.transport_points,
            seed=arguments.seed,
        )
        truth = averages(WeightedSamples(frames.positions, torch.zeros(len(frames)), ancestors=frames.ladder), peptide)
        return {
            "distances": {
                row: {metric: plain(estimate) for metric, estimate in found.items()}
                for row, found in evaluation.rows.items()
            },
            "averages": {
                row: compared(averages(samples, peptide), truth) for row, samples in weighted.items() if row != TRIMMED
            },
        }

    if path.is_file() and json.loads(path.read_text())["made_with"] != settings:
        path.unlink()
    return kept(path, settings, run)


def _made_with(arguments: Namespace, folders: Sequence[Path], *options: str) -> dict[str, Any]:
    """What figures are of; a file made with other settings is not taken for them."""
    given = {key: getattr(arguments, key) for key in ("num_samples", "seed", *options)}
    return {"models": fingerprints(folders)} | given


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
        found[name] = {"ours": plain(one), "reference": plain(other), "z": z}
    return found


def plain(estimate: Estimate) -> dict[str, float | None]:
    """As JSON holds it."""
    return {"value": finite_or_none(estimate.value), "error": finite_or_none(estimate.error)}


def figure(record: Mapping[str, Any], column: str) -> float | None:
    """A column's figure of one sequence, None where it is not there."""
    found: Any = record
    for key in COLUMNS[column]:
        found = found.get(key) if found is not None else None
    return None if found is None else float(found)


def table(records: Records, length: int) -> str:
    """A row for each sequence, the means with standard errors over sequences, and the published means."""
    rows: list[list[object]] = [
        [sequence, *(_short(figure(record, column)) for column in COLUMNS)] for sequence, record in records.items()
    ]
    means = ["mean"]
    for column in COLUMNS:
        found = [value for record in records.values() if (value := figure(record, column)) is not None]
        means.append(str(mean_over_sequences(found)) if found else "–")
    rows.append(means)
    for model, figures in PUBLISHED.get(length, {}).items():
        values = dict(zip(AS_PUBLISHED, figures, strict=True))
        rows.append([model, *(_short(values.get(column)) for column in COLUMNS)])
    return markdown_table(["peptide", *COLUMNS], rows)


def mean_over_sequences(values: Sequence[float]) -> Estimate:
    """The mean, and its standard error, which one value alone has none of."""
    found = torch.tensor(values, dtype=torch.float64)
    return Estimate(found.mean().item(), (found.std() / len(found) ** 0.5).item() if len(found) > 1 else math.nan)


def remarks(records: Records) -> Iterator[str]:
    """What a table of many rows hides: the worst sequences, those that weights leave to SMC, and z-scores."""
    for column, sign in (("ESS / samples", 1.0), ("energy W2 / kT", -1.0), ("torus W2 / rad", -1.0)):
        found = {name: value for name, record in records.items() if (value := figure(record, column)) is not None}
        worst = sorted(found, key=lambda name: sign * found[name])[:NUM_WORST]
        if worst:
            yield f"- Worst, {column}: {', '.join(f'{name} {_short(found[name])}' for name in worst)}."
    few = {
        name: record["importance"]["effective_sample_size"]
        for name, record in records.items()
        if record["importance"]["effective_sample_size"] < FEWEST
    }
    left = f"- Effective sample size below {FEWEST}: {len(few)} of {len(records)}"
    worth = {name: figure(records[name], "SMC is worth") for name in few}
    yield (
        left
        + "".join(
            f"{',' if i else ':'} {name} {size:.1f} (SMC {_short(worth[name])})"
            for i, (name, size) in enumerate(few.items())
        )
        + "."
    )
    for ensemble in (WEIGHTS, SMC):
        yield from z_scores(records, ensemble)


def z_scores(records: Records, ensemble: str) -> Iterator[str]:
    """The share of an ensemble's z-scores within 1 and 2, and the largest, in a line; nothing without references."""
    found = {
        (sequence, name): entry["z"]
        for sequence, record in records.items()
        for name, entry in record.get("comparison", {}).get("averages", {}).get(ensemble, {}).items()
    }
    told = {key: abs(z) for key, z in found.items() if z is not None}
    if not found:
        return
    line = f"- z-scores, {ensemble}: {len(told)} of {len(found)} averages have an error"
    if told:
        shares = [sum(z < bound for z in told.values()) / len(told) for bound in (1.0, 2.0)]
        sequence, name = max(told, key=lambda key: told[key])
        line += f"; {shares[0]:.2f} of them are within 1, {shares[1]:.2f} within 2 (normal: 0.68, 0.95)"
        line += f"; the largest is {told[sequence, name]:.1f}, {name} of {sequence}"
    yield line + "."


def _short(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"
