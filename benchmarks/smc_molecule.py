"""Ace-A-Nme from the shipped flow: sequential Monte Carlo beside importance sampling, at equal numbers of energies.

    OMP_NUM_THREADS=1 python benchmarks/smc_molecule.py --threads 1
    OMP_NUM_THREADS=1 python benchmarks/smc_molecule.py --threads 1 --widening 1.0 1.1 1.2 1.4

`--widening` makes proposals that are worse, without training: the same flow from a base normal that many times as wide,
whose density is as exact. At which effective sample size of importance sampling does SMC take over?
An energy with its forces counts as one evaluation, like an energy alone; the flow's own densities and gradients do not
count. Each setting of smc takes a fixed number of evaluations a particle, so its particles are as many as the budget
allows, and importance sampling draws as many samples as the budget. Both repeat with fresh seeds.
The first table has the mean over the repeats, with its standard error, of each distance to the reference ensemble
(shipped with the package, 4000 frames of parallel tempering). Its last rows are the noise floor: what the reference's
one half is from the other, and what samples of the reference itself, as many as importance sampling's effective
ones, are from it.
ESS is Kish's, of the final weights: resampling makes it large, so "draws left" says from how many draws of the flow the
particles descend. The second table has the repeats of each sampler put together, with bootstrap errors.
"""

import math
import statistics
from argparse import Namespace
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from common import argument_parser, markdown_table, prepare
from nflows.transforms import CompositeTransform, Transform

from molecular.analysis import Evaluation, WeightedConformations, evaluate
from molecular.analysis.compare import FLOOR
from molecular.energy.reduced import ReducedEnergy
from molecular.flows.molecule_flow import MoleculeFlow
from molecular.molecule.peptide import Peptide
from molecular.sampling import load_flow, sample, smc
from molecular.sampling.sequential import SplitFlow
from molecular.sampling.shipped import reference_positions
from nflib import Flow
from nflib.montecarlo import HMC, MALA, AcceptanceTarget, IndependentMetropolis, Kernel, SMCSamples, WeightedSamples
from nflib.transforms import Standardize

SEQUENCE = "Ace-A-Nme"
METRICS = ("energy_w1", "torus_w2")
IMPORTANCE, RESAMPLED = "importance sampling", "reference, resampled"


@dataclass(frozen=True)
class Setting:
    """A kernel and a path; `gradients`: evaluations that one step of the kernel takes. `draws`: for each particle."""

    kernel: Kernel
    temperatures: tuple[float, ...]
    moves: int = 1
    gradients: int = 1
    draws: int = 1

    @property
    def evaluations(self) -> int:
        """For each particle: its draws, a gradient where only those that are kept get one, and its moves."""
        gradient = int(self.draws > 1)
        return self.draws + gradient + len(self.temperatures) * self.moves * self.gradients


SETTINGS = {
    "smc, MALA at 1": Setting(MALA(step_size=0.4), (1.0,)),
    "smc, one draw of 3, MALA at 1": Setting(MALA(step_size=0.4), (1.0,), draws=3),
    "smc, MALA at 0.4, 1": Setting(MALA(step_size=0.4), (0.4, 1.0)),
    "smc, MALA at 0.3, 0.6, 1": Setting(MALA(step_size=0.4), (0.3, 0.6, 1.0)),
    "smc, MALA at 0.1, 0.2, … 1": Setting(MALA(step_size=0.4), tuple(k / 10 for k in range(1, 11))),
    "smc, 2 MALA at 0.4, 1": Setting(MALA(step_size=0.4), (0.4, 1.0), moves=2),
    "smc, HMC of 3 at 0.4, 1": Setting(HMC(step_size=0.35, num_leapfrog=3), (0.4, 1.0), gradients=3),
    "smc, independent at 0.4, 1": Setting(IndependentMetropolis(), (0.4, 1.0)),
}


class WidenedFlow(Flow):
    """A flow whose base normal is `factor` times as wide, by a last transform `z / factor`; weights are shared."""

    def __init__(self, flow: MoleculeFlow, factor: float) -> None:
        widen = Standardize(torch.zeros(flow._distribution.event_shape(None)), torch.tensor(factor))
        super().__init__(CompositeTransform([flow._transform, widen]), flow._distribution)
        self.flow, self.widen = flow, widen

    def split_coordinates(self) -> tuple[Transform, Flow]:
        """As `MoleculeFlow.split_coordinates`, which the widening leaves as it is."""
        fixed, rest = self.flow.split_coordinates()
        return fixed, Flow(CompositeTransform([rest._transform, self.widen]), rest._distribution)


def run_smc(setting: Setting, flow: SplitFlow, peptide: Peptide, budget: int, seed: int) -> SMCSamples:
    """One run within the budget. Steps start near where they end: a search for the first one would cost energies."""
    num_samples = budget // setting.evaluations
    return smc(
        flow,
        peptide,
        num_samples,
        num_draws=setting.draws * num_samples,
        kernel=setting.kernel,
        temperatures=setting.temperatures,
        moves=setting.moves,
        step_sizes=AcceptanceTarget(pilot_moves=0),
        seed=seed,
    )


def together(repeats: list[WeightedSamples]) -> WeightedConformations:
    """The repeats as one ensemble: each weighs as its normaliser says, and particles of one ancestor stay together."""
    groups, first = [], 0
    for samples in repeats:
        own = torch.arange(len(samples)) if samples.ancestors is None else samples.ancestors
        groups.append(own + first)
        first += len(samples)
    weights = [samples.log_weights - math.log(len(samples)) for samples in repeats]
    return WeightedConformations(torch.cat([samples.x for samples in repeats]), torch.cat(weights), torch.cat(groups))


def num_ancestors(samples: WeightedSamples) -> int:
    """Draws of the flow that the samples descend from."""
    return len(samples) if samples.ancestors is None else len(samples.ancestors.unique())


def mean_and_error(values: list[float]) -> str:
    """Mean and its standard error."""
    if len(values) < 2:
        return f"{values[0]:.3f}"
    return f"{statistics.mean(values):.3f} ± {statistics.stdev(values) / math.sqrt(len(values)):.3f}"


def repeat_rows(
    results: Mapping[str, list[WeightedSamples]],
    reference: torch.Tensor,
    peptide: Peptide,
    points: int,
    generator: torch.Generator,
) -> list[list[object]]:
    """The rows of the first table."""
    counts = [samples.effective_sample_size for samples in results[IMPORTANCE]]
    ensembles: dict[str, object] = {}
    for name, repeats in results.items():
        ensembles |= {f"{name}, {k}": samples for k, samples in enumerate(repeats)}
    for k, count in enumerate(counts):
        drawn = torch.randint(len(reference), (round(count),), generator=generator)
        ensembles[f"{RESAMPLED}, {k}"] = reference[drawn]
    figures = evaluate(
        ensembles, reference, peptide, energy=ReducedEnergy(peptide), num_bootstrap=0, transport_points=points
    )

    def distances(name: str) -> list[str]:
        return [
            mean_and_error([figures[f"{name}, {k}", metric].value for k in range(len(counts))]) for metric in METRICS
        ]

    rows: list[list[object]] = []
    for name, repeats in results.items():
        spent = [s.history.num_evaluations[-1] if isinstance(s, SMCSamples) else len(s) for s in repeats]
        rows.append(
            [
                name,
                len(repeats[0]),
                round(statistics.mean(spent)),
                f"{statistics.mean(s.effective_sample_size for s in repeats):.0f}",
                round(statistics.mean(num_ancestors(s) for s in repeats)),
                mean_and_error([s.log_normalizer for s in repeats]),
                f"{statistics.mean(s.log_normalizer_standard_error for s in repeats):.3f}",
                *distances(name),
                sum(s.num_rejected for s in repeats),
            ]
        )
    size = f"{statistics.mean(counts):.0f}"
    rows.append([RESAMPLED, size, "–", size, "–", "–", "–", *distances(RESAMPLED), 0])
    halves = [f"{figures[FLOOR, metric].value:.3f}" for metric in METRICS]
    rows.append([FLOOR, len(reference) // 2, "–", len(reference) // 2, "–", "–", "–", *halves, 0])
    return rows


def repeat(
    flow: MoleculeFlow | WidenedFlow, peptide: Peptide, arguments: Namespace
) -> dict[str, list[WeightedSamples]]:
    """Every sampler's runs, which take turns."""
    runners: dict[str, Callable[[int], WeightedSamples]] = {
        IMPORTANCE: lambda seed: sample(flow, peptide, arguments.evaluations, seed=seed)  # type: ignore[arg-type]
    }
    for name in arguments.settings:
        runners[name] = partial(run_smc, SETTINGS[name], flow, peptide, arguments.evaluations)
    results: dict[str, list[WeightedSamples]] = {name: [] for name in runners}
    for seed in range(arguments.seed, arguments.seed + arguments.runs):
        for name, run in runners.items():
            results[name].append(run(seed))
    return results


def main() -> None:
    """Print the tables."""
    parser = argument_parser(__doc__)
    parser.add_argument("--evaluations", type=int, default=6000, help="energies for each run")
    parser.add_argument("--runs", type=int, default=4, help="repeats of each sampler")
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS)[:3], choices=list(SETTINGS), help="of smc")
    parser.add_argument("--points", type=int, default=1000, help="of an ensemble in the torus distance, at most")
    parser.add_argument(
        "--widening", nargs="+", type=float, default=[1.0], help="factors on the width of the flow's base"
    )
    arguments = parser.parse_args()
    prepare(arguments)
    peptide = Peptide(SEQUENCE)
    shipped, reference = load_flow(peptide).flow, reference_positions(peptide)
    assert reference is not None
    rows: list[list[object]] = []
    wholes: dict[float, Evaluation] = {}
    for widening in arguments.widening:
        flow = shipped if widening == 1.0 else WidenedFlow(shipped, widening)
        results = repeat(flow, peptide, arguments)
        generator = torch.Generator().manual_seed(arguments.seed)
        new = repeat_rows(results, reference, peptide, arguments.points, generator)
        rows += [[f"{widening:g}", *row] for row in new]
        whole = {name: together(repeats) for name, repeats in results.items()}
        wholes[widening] = evaluate(whole, reference, peptide, transport_points=arguments.points)
    header = [
        "base width",
        "sampler",
        "particles",
        "evaluations",
        "ESS",
        "draws left",
        "log Z",
        "its own s.e.",
        "energy W1 / kT",
        "torus W2 / rad",
        "rejected",
    ]
    print(f"{arguments.runs} runs; means and their standard errors")
    print(markdown_table(header, rows))
    for widening, of_all in wholes.items():
        print(f"\nAll runs of a sampler put together, base width {widening:g}")
        print(of_all)


if __name__ == "__main__":
    main()
