"""Flows of one peptide each, beside the published figures: effective sample sizes, and distances to a simulation.

    OMP_NUM_THREADS=1 python benchmarks/single_systems.py --models AAA=runs/AAA/model --references runs/simulations \
        --output runs/single_systems --start_ps 80 --threads 1

Without --models, the shipped flows. `references` holds a folder of `python -m molecular simulate` for each peptide,
named like it; one that is not there leaves its distances out. Each peptide and seed has files in the output folder, and
what is there is not computed again. 10,000 draws of a peptide of 22 (52) atoms take 20 (60) seconds of one core, and
their distances as long again.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from common import argument_parser, markdown_table, named_folders, prepare
from peptide_steps import (
    AS_PUBLISHED,
    COLUMNS,
    METHOD,
    SMC_OPTIONS,
    add_sampling_options,
    comparison,
    figure,
    importance,
)

from molecular.sampling.shipped import SHIPPED

# arXiv 2508.18175v4, 2502.18462 and FALCON's own: ESS / samples, energy W2 (kT), torus W2; None where none is given.
PUBLISHED: dict[str, dict[str, tuple[float | None, ...]]] = {
    "Ace-A-Nme": {
        "ECNF++": (0.275, 0.914, 0.189),
        "SBG (TarFlow)": (0.030, 0.873, 0.439),
        "FALCON": (0.067, 0.225, 0.402),
    },
    "AAA": {"ECNF++": (0.003,), "SBG (TarFlow)": (0.052,), "FALCON": (0.077,)},
    "Ace-AAA-Nme": {"ECNF++": (0.006,), "SBG (TarFlow)": (0.046,), "FALCON": (0.055,)},
    "AAAAAA": {"ECNF++": (None, 10.668), "SBG (TarFlow)": (0.034, 1.021), "FALCON": (0.060, 0.892)},
}
# What a row shows, of the columns of the public test.
SHOWN = [column for column in COLUMNS if "SMC" not in column]


def main() -> None:
    """Compute what is missing, and print the table."""
    parser = argument_parser(__doc__)
    parser.add_argument(
        "--models",
        nargs="+",
        help="PEPTIDE=FOLDER of each flow, or PEPTIDE=FOLDER,FOLDER of a mixture; by default those shipped",
    )
    parser.add_argument("--references", type=Path, help="a folder of simulations, each named like its peptide")
    parser.add_argument("--seeds", type=int, default=5, help="so many, from --seed on")
    add_sampling_options(parser)
    without_smc = dict.fromkeys(SMC_OPTIONS, 0)
    parser.set_defaults(batch_size=1_000, transport_points=2_000, bootstrap=3, **without_smc)
    arguments = parser.parse_args()
    prepare(arguments)
    entries = arguments.models or [f"{name}={SHIPPED / name}" for name in PUBLISHED if (SHIPPED / name).is_dir()]
    rows: list[list[object]] = []
    for entry in entries:
        if "=" not in entry:
            raise SystemExit(f"error: --models are PEPTIDE=FOLDER, not {entry!r}.")
    for name, folders in named_folders(entries).items():
        rows += table_rows(name, [records(name, folders, arguments, seed) for seed in range(arguments.seeds)])
    print("\n" + markdown_table(["peptide", "flow", *SHOWN], rows))
    print(f"\nMedian (range) over {arguments.seeds} seeds. {METHOD}")


def records(name: str, folders: Sequence[Path], arguments: Namespace, number: int) -> dict[str, dict[str, Any]]:
    """The steps of one peptide and seed, as the public test makes them."""
    seed = arguments.seed + number
    of_seed = Namespace(**vars(arguments) | {"seed": seed, "output": arguments.output / f"seed-{seed}"})
    steps = {"importance": importance(name, "flow", folders, of_seed)}
    compared = comparison(name, "flow", folders, of_seed)
    if compared is not None:
        steps["comparison"] = compared
    return steps


def table_rows(name: str, seeds: Sequence[Mapping[str, dict[str, Any]]]) -> list[list[object]]:
    """A row of ours, and those published for this peptide."""
    ours: list[object] = [name, "ours"]
    for column in SHOWN:
        found = sorted(value for record in seeds if (value := figure(record, column)) is not None)
        ours.append(f"{median(found):.3g} ({found[0]:.3g} to {found[-1]:.3g})" if found else "–")
    rows = [ours]
    for flow, figures in PUBLISHED.get(name, {}).items():
        values = dict(zip(AS_PUBLISHED, figures, strict=False))
        rows.append([name, flow, *("–" if values.get(c) is None else f"{values[c]:.3g}" for c in SHOWN)])
    return rows


if __name__ == "__main__":
    main()
