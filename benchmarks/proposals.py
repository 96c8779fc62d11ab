"""What do wider and mixed proposals bring at equal numbers of energies? Shipped flows, over seeds.

    OMP_NUM_THREADS=1 python benchmarks/proposals.py --peptides Ace-A-Nme --num_samples 10000 --seeds 10 --threads 1

Beside the flow itself: its noise scaled ("scale 1.02"), its noise with tails ("tails": 3 % of the numbers 1.5 times as
wide), a tenth of the draws from a flow at a higher temperature ("defensive"), half of them from each further model
given ("with FOLDER"), equally many from all of these ("all"), and the average of all, number by number ("average").
All densities are exact. Of each seed the same noise is drawn; ESS is a fraction of the draws.
"""

import statistics
import time
from pathlib import Path

from common import argument_parser, markdown_table, prepare

from molecular.molecule.peptide import Peptide
from molecular.sampling import load_flow, sample
from molecular.sampling.proposals import combined
from molecular.sampling.summary import PUBLISHED_TRUNCATION
from nflib.montecarlo import Mixture, Proposal

HEADER = ["peptide", "proposal", "seeds", "ESS: median (range)", "top 0.2 % removed", "Pareto k", "s a run"]
TAILS, TAIL_WEIGHTS = (1.0, 1.5), (0.97, 0.03)


def proposals(peptide: Peptide, model: Path | None, others: list[Path]) -> dict[str, Proposal]:
    """What is compared, by name."""
    flow = load_flow(peptide, model)

    def scaled(*scales: float, weights: tuple[float, ...] | None = None) -> Proposal:
        return flow.flow.with_scaled_noise(*scales, weights=weights).given(peptide)

    found = {"flow": flow} | {f"scale {scale}": scaled(scale) for scale in (0.98, 1.02, 1.05)}
    found["tails"] = scaled(*TAILS, weights=TAIL_WEIGHTS)
    found["defensive"] = Mixture([flow, scaled(1.1)], [0.9, 0.1])
    further = {other: load_flow(peptide, other) for other in others}
    found |= {f"with {other}": Mixture([flow, own]) for other, own in further.items()}
    every = [flow, *further.values()]
    return found | ({"all": Mixture(every), "average": combined(every)} if others else {})


def main() -> None:
    """Print the table, a row as soon as it is known."""
    parser = argument_parser(__doc__)
    parser.add_argument("--peptides", nargs="+", default=["Ace-A-Nme"])
    parser.add_argument("--model", type=Path, help="folder of the flow (default: the shipped one)")
    parser.add_argument("--others", nargs="*", type=Path, default=[], help="folders of flows to mix with it")
    parser.add_argument("--only", nargs="*", help="names of proposals (default: all)")
    parser.add_argument("--num_samples", type=int, default=10000)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--batch_size", type=int, default=500)
    arguments = parser.parse_args()
    prepare(arguments)
    rows = []
    for name in arguments.peptides:
        peptide = Peptide(name)
        for label, proposal in proposals(peptide, arguments.model, arguments.others).items():
            if arguments.only and label not in arguments.only:
                continue
            start, runs = time.perf_counter(), []
            for seed in range(arguments.seed, arguments.seed + arguments.seeds):
                settings = {"batch_size": arguments.batch_size, "seed": seed}
                runs.append(sample(proposal, peptide, arguments.num_samples, **settings))
            seconds = (time.perf_counter() - start) / len(runs)
            sizes = [run.effective_sample_size_fraction for run in runs]
            trimmed = [run.truncate(PUBLISHED_TRUNCATION).effective_sample_size_fraction for run in runs]
            spread = f"{statistics.median(sizes):.3f} ({min(sizes):.3f} to {max(sizes):.3f})"
            k = statistics.median(run.pareto_k for run in runs)
            rows.append([name, label, len(runs), spread, f"{statistics.median(trimmed):.3f}", f"{k:.2f}"])
            rows[-1].append(f"{seconds:.0f}")
            print(markdown_table(HEADER, rows[-1:]), flush=True)
    print(f"\n{markdown_table(HEADER, rows)}")


if __name__ == "__main__":
    main()
