"""The public test sequences: what a transferable flow is worth on each, beside the published figures.

`benchmarks/transferable.py --public-test 2 4` runs this: all sequences by importance sampling, then by sequential Monte
Carlo, then both against a reference, where there is one (`peptide_steps.py`).
"""

from __future__ import annotations

import json
import math
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from common import markdown_table
from peptide_steps import AS_PUBLISHED, COLUMNS, METHOD, SMC, WEIGHTS, comparison, figure, importance, moved

import molecular
from nflib.metrics import Estimate

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

CAPTION = f"""\
{METHOD}
"SMC is worth": independent draws, by the ancestry of its particles. Errors of means are standard errors over
sequences."""

# Of each sequence, by step.
Records = Mapping[str, dict[str, dict[str, Any]]]


def public_test(
    models: Mapping[str, Sequence[Path]], lengths: Sequence[int], peptides: Sequence[str] | None, arguments: Namespace
) -> None:
    """Compute what is missing for the sequences of these lengths, or those named of them, and print a table for each
    flow, or mixture of flows, and length.
    """
    listed = json.loads(SEQUENCES.read_text())["test"]
    chosen = [name for length in lengths for name in listed if len(name) == length]
    chosen = [name for name in chosen if not peptides or name in peptides]
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


def table(records: Records, length: int) -> str:
    """A row for each sequence, the means with standard errors over sequences, and the published means."""
    rows: list[list[object]] = [
        [sequence, *(_short(figure(record, column)) for column in COLUMNS)] for sequence, record in records.items()
    ]
    means: list[object] = ["mean"]
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
