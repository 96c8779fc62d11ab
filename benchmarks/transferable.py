"""Transferable flows on peptides that they were not trained on: held-out references, or the public test sequences.

    OMP_NUM_THREADS=1 python benchmarks/transferable.py --models peptides=molecular/shipped/peptides \
        --references runs/references --output runs/table --threads 1
    OMP_NUM_THREADS=1 python benchmarks/transferable.py --models internal=runs/internal/model \
        cartesian=runs/cartesian/model --references runs/references --output runs/comparison \
        --likelihood_only --threads 1
    OMP_NUM_THREADS=1 python benchmarks/transferable.py --public-test 2 4 --references runs/public_test/references \
        --start_ps 60 --output runs/public_test/table --batch_size 500 --threads 1

Draws of each flow as they are (proposal), weighted to the force field (reweighted) and moved to it by sequential Monte
Carlo (SMC, where the flow can be taken apart), against parallel tempering: the metrics of `molecular.analysis`, no
weight clipped, errors by bootstrap. The row "reference, half to half" is what a perfect ensemble would get. "energies"
are evaluations, a force counting as one.

With --likelihood_only: minus the log-density of reference frames in nats a dimension, and the effective sample size.
The density is that of a conformation modulo rigid motion, over 3n - 6 dimensions, for all flows: a flow on plain
positions is given frames moved at random, and the known density of where they were put is taken off.

With --public-test: the sequences that published transferable flows are judged by, 30 of each length, beside the
published means (`public_test.py`). --models is by default the shipped flow; a sequence without a reference
(molecular/recipes/simulate_public_test.sh makes them) still has effective sample sizes. SMC begins with the draws that
importance sampling weighted; --smc_samples 0 leaves it out. CPU time of one thread (Zen 4, 2026-11-28, shipped flow,
10,000 draws, 1,000 particles): AA or SS 50 s with the comparison, QR 60 s and 50 s of SMC; of four residues, KRWN, 75 s
for 4,000 draws. No flow that is shipped was trained on any of the sequences.

Each peptide and flow has a JSON file in the output folder; those that are there are not computed again.
"""

import dataclasses
import json
import math
from argparse import Namespace
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import argument_parser, kept, markdown_table, named_folders, prepare, reference_frames
from peptide_steps import COMPARISON_OPTIONS, add_sampling_options, add_smc_options, evaluated, made_with, moved_by_smc
from public_test import public_test
from torch import Tensor

from molecular.analysis import WeightedConformations
from molecular.analysis.compare import FLOOR
from molecular.data.corpus.folder import Corpus
from molecular.flows.conformations import GivenMolecule
from molecular.molecule.canonical_names import with_canonical_names
from molecular.molecule.peptide import Peptide
from molecular.sampling import load_flow, load_proposal, sample
from molecular.sampling.shipped import COVERAGE, SHIPPED, Coverage
from nflib.metrics import Estimate
from nflib.montecarlo import WeightedSamples

METRICS = ("effective_sample_size_fraction", "energy_w2", "torus_w2", "bond_graph_rate", "chirality_rate")
HEADER = ["peptide", "flow", "ensemble", "samples", "energies", "ESS / samples", "energy W2 / kT", "torus W2 / rad"]
HEADER += ["bonds right", "chirality right"]


def main() -> None:
    """Compute what is missing, and print the tables."""
    arguments = parse()
    prepare(arguments)
    shipped = ",".join(map(str, shipped_transferable()))
    models = named_folders(arguments.models or [f"shipped={shipped}"])
    if arguments.public_test:
        return public_test(models, arguments.public_test, arguments.peptides, arguments)
    corpus = Corpus(arguments.references)
    peptides = arguments.peptides or [name for part in ("test", "validation") for name in corpus.sequences(part)]
    if not peptides:
        raise SystemExit(f"error: {arguments.references} holds no finished peptide; name some with --peptides.")
    run = likelihoods if arguments.likelihood_only else ensembles
    records: dict[tuple[str, str], dict[str, Any]] = {}
    for sequence in peptides:
        for name, folders in models.items():
            path = arguments.output / ("likelihood" if arguments.likelihood_only else "ensembles") / name
            records[sequence, name] = kept(
                path / f"{sequence}.json",
                made_with(arguments, folders, *COMPARISON_OPTIONS, "smc_draws"),
                partial(run, sequence, folders, corpus, arguments),
            )
            print(f"{sequence}, {name}: {records[sequence, name]['seconds']:.0f} s", flush=True)
    print("\n" + (likelihood_table if arguments.likelihood_only else ensemble_table)(records))


def parse() -> Namespace:
    """The command line."""
    parser = argument_parser(__doc__)
    parser.add_argument(
        "--models",
        nargs="+",
        help="flows, as NAME=FOLDER, or mixtures, as NAME=FOLDER,FOLDER; by default what is shipped",
    )
    parser.add_argument(
        "--public-test", type=int, nargs="+", metavar="LENGTH", help="the public test sequences of these lengths"
    )
    parser.add_argument(
        "--references", type=Path, help="corpus of simulated peptides; of --public-test, a folder of simulations"
    )
    parser.add_argument("--peptides", nargs="+", help="sequences; by default those that the corpus has for testing")
    parser.add_argument("--smc_draws", type=int, help="draws of which the particles are the better ones")
    add_sampling_options(parser)
    add_smc_options(parser)
    parser.add_argument("--likelihood_only", action="store_true", help="likelihood and effective sample size alone")
    arguments = parser.parse_args()
    if arguments.likelihood_only and any("," in entry for entry in arguments.models or ()):
        parser.error("--likelihood_only is of single flows; give each a NAME=FOLDER of its own")
    if arguments.references is None and not arguments.public_test:
        parser.error("give --references, or --public-test")
    return arguments


def ensembles(sequence: str, folders: Sequence[Path], corpus: Corpus, arguments: Namespace) -> dict[str, Any]:
    """Metrics of the three ensembles and of the reference's halves, as `Evaluation.save` writes them, and energies."""
    peptide, flow = Peptide(sequence), load_proposal(Peptide(sequence), folders)
    frames = reference_frames(corpus.system(sequence), arguments.start_ps, arguments.reference_frames)
    drawn = sample(flow, peptide, arguments.num_samples, batch_size=arguments.batch_size, seed=arguments.seed)
    named: dict[str, WeightedConformations | WeightedSamples] = {
        "proposal": WeightedConformations(drawn.x),
        "reweighted": drawn,
    }
    energies = {"reweighted": len(drawn)}
    if arguments.smc_samples:
        moved = moved_by_smc(flow, peptide, arguments, num_draws=arguments.smc_draws, seed=arguments.seed)
        named["SMC"], energies["SMC"] = moved, int(moved.history.num_evaluations[-1])
    evaluation = evaluated(named, frames, peptide, arguments)
    path = arguments.output / f".{sequence}.evaluation.json"
    dataclasses.replace(evaluation, settings=dict(evaluation.settings) | {"energies": energies}).save(path)
    record: dict[str, Any] = json.loads(path.read_text())
    path.unlink()
    return record


def likelihoods(sequence: str, folders: Sequence[Path], corpus: Corpus, arguments: Namespace) -> dict[str, Any]:
    """Minus log-likelihood of reference frames a dimension, its standard error over groups, and the sample size."""
    peptide, (folder,) = Peptide(sequence), folders
    flow = load_flow(peptide, folder)
    frames = reference_frames(corpus.system(sequence), arguments.start_ps, arguments.reference_frames)
    positions = with_canonical_names(frames.positions, peptide)
    values = torch.cat(
        [modulo_rigid_motion(flow, part, arguments.seed) for part in positions.split(arguments.batch_size)]
    )
    # Whether the flow knows one naming of equivalent atoms or all.
    values = (values + flow.flow.symmetries([peptide]).log_namings[0]) / (3 * peptide.num_atoms - 6)
    groups = torch.stack([values[frames.replica_group == group].mean() for group in frames.replica_group.unique()])
    drawn = sample(flow, peptide, arguments.num_samples, batch_size=arguments.batch_size, seed=arguments.seed)
    return {
        "nats_per_dimension": values.mean().item(),
        "error": (groups.std() / len(groups) ** 0.5).item(),
        "effective_sample_size_fraction": drawn.effective_sample_size_fraction,
        "parameters": sum(parameter.numel() for parameter in flow.flow.parameters()),
    }


@torch.no_grad()
def modulo_rigid_motion(flow: GivenMolecule, positions: Tensor, seed: int) -> Tensor:
    """Minus the log-density (B,) of conformations modulo rigid motion, float64."""
    exists = torch.ones(positions.shape[:2], dtype=torch.bool)
    placed = flow.flow.placed(positions, exists, torch.Generator().manual_seed(seed))
    placing = flow.target_energy(lambda x: torch.zeros(len(x), dtype=torch.float64))
    return -flow.log_prob(placed).double() - placing(placed)


def shipped_transferable() -> list[Path]:
    """The shipped flows that cover the most lengths."""
    lengths = {path.parent: len(Coverage.read(path).lengths) for path in sorted(SHIPPED.glob(f"*/{COVERAGE}"))}
    return [folder for folder, number in lengths.items() if number == max(lengths.values())]


def ensemble_table(records: Mapping[tuple[str, str], dict[str, Any]]) -> str:
    """A row for each peptide, flow and ensemble, and how often SMC came nearer than weights."""
    rows: list[list[object]] = []
    nearer: list[bool] = []
    floors = set()
    for (sequence, name), record in records.items():
        energies = record["settings"]["energies"]
        torus = {}
        for ensemble, content in record["ensembles"].items():
            if ensemble == FLOOR and sequence in floors:
                continue
            figures = {metric: estimate(content["metrics"].get(metric)) for metric in METRICS}
            torus[ensemble] = figures["torus_w2"]
            of = "–" if ensemble == FLOOR else name
            counts = [content["num_samples"], energies.get(ensemble, "–")]
            rows.append([sequence, of, ensemble, *counts, *("–" if f is None else str(f) for f in figures.values())])
        floors.add(sequence)
        pair = torus.get("SMC"), torus.get("reweighted")
        if pair[0] is not None and pair[1] is not None:
            nearer.append(pair[0].value < pair[1].value)
    return f"{markdown_table(HEADER, rows)}\n\ntorus W2: SMC below reweighted for {sum(nearer)} of {len(nearer)}."


def likelihood_table(records: Mapping[tuple[str, str], dict[str, Any]]) -> str:
    """A row for each peptide and flow, and the means."""
    header = ["peptide", "flow", "parameters", "-log q / nats a dimension", "ESS / samples"]
    rows: list[list[object]] = []
    for (sequence, name), record in records.items():
        value = Estimate(record["nats_per_dimension"], record["error"])
        size = f"{record['effective_sample_size_fraction']:.3g}"
        rows.append([sequence, name, record["parameters"], str(value), size])
    for flow in dict.fromkeys(name for _, name in records):
        own = [record for (_, name), record in records.items() if name == flow]
        nats = sum(record["nats_per_dimension"] for record in own) / len(own)
        size = f"{sum(record['effective_sample_size_fraction'] for record in own) / len(own):.3g}"
        rows.append(["mean", flow, own[0]["parameters"], f"{nats:.4f}", size])
    return markdown_table(header, rows)


def estimate(entry: Mapping[str, Any] | None) -> Estimate | None:
    """As `Evaluation` writes it, None for a number that is not finite (a string, in earlier versions)."""
    if entry is None:
        return None
    return Estimate(**{part: math.nan if number is None else float(number) for part, number in entry.items()})


if __name__ == "__main__":
    main()
