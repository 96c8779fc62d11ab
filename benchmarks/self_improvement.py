"""Self-improvement at equal numbers of energies: all for importance sampling, or some to improve the flow first.

    python -m molecular improve --peptide NL --model molecular/shipped/peptides --output runs/improved/NL ...
    OMP_NUM_THREADS=1 python benchmarks/self_improvement.py --peptide NL --teacher molecular/shipped/peptides \
        --improved runs/improved/NL --energies 20000 --threads 1

The teacher has as many samples as there are energies; the improved flow as many as improvement has left. The effective
sample size (Kish's, no weight clipped) is given as a count, what the energies bought, and as a fraction. With
--num_samples the fractions are measured on so many draws of either flow, and the counts are these times the samples.
"""

import json
from pathlib import Path

import torch
from common import argument_parser, markdown_table, prepare

from molecular.commands.improvement import RECORD
from molecular.molecule.peptide import Peptide
from molecular.sampling import load_flow, sample


def main() -> None:
    """Print the table."""
    parser = argument_parser(__doc__)
    parser.add_argument("--peptide", required=True, help="sequence")
    parser.add_argument("--teacher", type=Path, help="folder of the first flow; by default the one shipped")
    parser.add_argument("--improved", type=Path, required=True, help="output folder of python -m molecular improve")
    parser.add_argument("--energies", type=int, default=20_000, help="in all, on each side")
    parser.add_argument("--num_samples", type=int, help="draws to measure each fraction on; by default all samples")
    parser.add_argument("--batch_size", type=int, default=2_000, help="conformations decoded at once")
    arguments = parser.parse_args()
    prepare(arguments)
    record = json.loads((arguments.improved / RECORD).read_text())
    spent, peptide = record["num_energies"], Peptide(record["molecule"], temperature=record["temperature_K"])
    if record["molecule"] != arguments.peptide:
        raise SystemExit(f"error: {arguments.improved} was improved for {record['molecule']}, not {arguments.peptide}.")
    if spent >= arguments.energies:
        raise SystemExit(f"error: improvement took {spent} energies; give more than that.")
    rows, sizes = [], []
    for name, model, before in (("teacher", arguments.teacher, 0), ("improved", arguments.improved / "model", spent)):
        flow = load_flow(Peptide(arguments.peptide), model)
        count = arguments.energies - before
        num_draws = min(arguments.num_samples or count, count)
        drawn = sample(flow, peptide, num_draws, batch_size=arguments.batch_size, seed=arguments.seed)
        fraction = drawn.effective_sample_size_fraction
        sizes.append(fraction * count)
        weights = drawn.log_weights[torch.isfinite(drawn.log_weights)]
        spread = float(weights.quantile(0.75) - weights.quantile(0.25))
        rows.append([name, before, count, num_draws, f"{sizes[-1]:.0f}", f"{fraction:.4f}", f"{drawn.pareto_k:.2f}"])
        rows[-1] += [f"{drawn.log_normalizer:.2f}", f"{spread:.2f}"]
    header = ["flow", "energies to improve", "to sample", "measured on", "ESS", "of the samples", "Pareto k", "log Z"]
    print(markdown_table([*header, "quartiles apart / nats"], rows))
    print(f"\n{arguments.peptide}: {sizes[1] / sizes[0]:.2f} times the effective sample size.")


if __name__ == "__main__":
    main()
