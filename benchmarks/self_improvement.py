"""Self-improvement at equal numbers of energies: all for importance sampling, or some to improve the flow first.

    python -m molecular improve --peptide NL --model molecular/shipped/dipeptides --output runs/improved/NL ...
    OMP_NUM_THREADS=1 python benchmarks/self_improvement.py --peptide NL --teacher molecular/shipped/dipeptides \
        --improved runs/improved/NL --energies 20000 --threads 1

The teacher draws as many samples as there are energies; the improved flow as many as improvement has left. The
effective sample size (Kish's, no weight clipped) is given as a count, what the energies bought, and as a fraction.
"""

import json
from pathlib import Path

from common import argument_parser, markdown_table, prepare

from molecular.improve import RECORD
from molecular.peptide import Peptide
from molecular.sample import load_flow, sample


def main() -> None:
    """Print the table."""
    parser = argument_parser(__doc__)
    parser.add_argument("--peptide", required=True, help="sequence")
    parser.add_argument("--teacher", type=Path, help="folder of the first flow; by default the one shipped")
    parser.add_argument("--improved", type=Path, required=True, help="output folder of python -m molecular improve")
    parser.add_argument("--energies", type=int, default=20_000, help="in all, on each side")
    parser.add_argument("--batch_size", type=int, default=2_000, help="conformations decoded at once")
    arguments = parser.parse_args()
    prepare(arguments)
    record = json.loads((arguments.improved / RECORD).read_text())
    spent, peptide = record["num_energies"], Peptide(record["peptide"], temperature=record["temperature_K"])
    if record["peptide"] != arguments.peptide:
        raise SystemExit(f"error: {arguments.improved} was improved for {record['peptide']}, not {arguments.peptide}.")
    if spent >= arguments.energies:
        raise SystemExit(f"error: improvement took {spent} energies; give more than that.")
    rows, counts = [], []
    for name, model, before in (("teacher", arguments.teacher, 0), ("improved", arguments.improved / "model", spent)):
        flow = load_flow(arguments.peptide, model)
        count = arguments.energies - before
        drawn = sample(flow, peptide, count, batch_size=arguments.batch_size, seed=arguments.seed)
        counts.append(drawn.effective_sample_size)
        fraction = f"{drawn.effective_sample_size_fraction:.4f}"
        rows.append([name, before, count, f"{counts[-1]:.1f}", fraction, f"{drawn.pareto_k:.2f}"])
    header = ["flow", "energies to improve", "to sample", "ESS", "of the samples", "Pareto k"]
    print(markdown_table(header, rows))
    print(f"\n{arguments.peptide}: {counts[1] / counts[0]:.2f} times the effective sample size.")


if __name__ == "__main__":
    main()
