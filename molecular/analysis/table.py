"""The result of an evaluation: a table that prints as Markdown and is saved as JSON or CSV."""

from __future__ import annotations

import csv
import html
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from nflib.metrics import Estimate


@dataclass(frozen=True)
class Evaluation:
    """The result of `evaluate`: a table with a row for each ensemble and a column for each metric.

    Attributes:
        molecule: its name.
        rows: ensemble -> metric -> `Estimate`, in the order of printing. A row may lack a metric.
        units: metric -> unit, "" for none; also the order of the columns.
        num_samples, num_rejected: ensemble -> how many conformations it has, and how many of them carry no weight.
        settings: how it was made, plain values.
        notes: what a reader must know: metrics left out and why, the resolution of the distances.

    >>> table = Evaluation("AA", {"flow": {"energy_w1": Estimate(2.04, 0.13)}}, {"energy_w1": "kT"}, {"flow": 9})
    >>> print(table)
    | AA   | samples | rejected | energy_w1 / kT |
    |------|--------:|---------:|---------------:|
    | flow |       9 |        0 |    2.04 ± 0.13 |
    """

    molecule: str
    rows: Mapping[str, Mapping[str, Estimate]]
    units: Mapping[str, str]
    num_samples: Mapping[str, int]
    num_rejected: Mapping[str, int] = field(default_factory=dict)
    settings: Mapping[str, object] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __getitem__(self, key: tuple[str, str]) -> Estimate:
        """The estimate of an ensemble's metric: ``evaluation["flow", "torus_w2"]``."""
        row, metric = key
        return self.rows[row][metric]

    def __str__(self) -> str:
        return self._lines(str)

    def to_markdown(self) -> str:
        """The table and the notes below it as Markdown; HTML and column marks in names are escaped."""
        return self._lines(lambda text: html.escape(text, quote=False).replace("|", "&#124;"))

    def _lines(self, clean: Callable[[str], str]) -> str:
        cells = [[self.molecule, "samples", "rejected", *(with_unit(name, unit) for name, unit in self.units.items())]]
        for row, estimates in self.rows.items():
            counts = [str(self.num_samples[row]), str(self.num_rejected.get(row, 0))]
            cells.append([row, *counts, *(str(estimates[name]) if name in estimates else "–" for name in self.units)])
        cells = [list(map(clean, row)) for row in cells]
        widths = [max(3, *map(len, column)) for column in zip(*cells, strict=True)]
        lines = [
            "| " + " | ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) + " |" for row in cells
        ]
        rule = "|" + "-" * (widths[0] + 2) + "|" + "|".join("-" * (width + 1) + ":" for width in widths[1:]) + "|"
        notes = [""] * bool(self.notes) + [f"- {clean(note)}" for note in self.notes]
        return "\n".join([lines[0], rule, *lines[1:], *notes])

    def save(self, path: str | Path) -> None:
        """Write the table as .json, .csv or .md, by the file's suffix; ValueError for another one."""
        path = Path(path)
        writers = {".json": self._write_json, ".csv": self._write_csv, ".md": self._write_markdown}
        if path.suffix.lower() not in writers:
            raise ValueError(f"cannot save an evaluation as {path.name}; the suffix must be .json, .csv or .md.")
        path.parent.mkdir(parents=True, exist_ok=True)
        writers[path.suffix.lower()](path)

    def _write_json(self, path: Path) -> None:
        content = {
            "molecule": self.molecule,
            "settings": dict(self.settings),
            "notes": list(self.notes),
            "units": dict(self.units),
            "ensembles": {
                row: {
                    "num_samples": self.num_samples[row],
                    "num_rejected": self.num_rejected.get(row, 0),
                    "metrics": {name: estimate.summary() for name, estimate in estimates.items()},
                }
                for row, estimates in self.rows.items()
            },
        }
        path.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")

    def _write_csv(self, path: Path) -> None:
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["ensemble", "metric", "value", "error", "unit"])
            for row, estimates in self.rows.items():
                writer.writerow([row, "num_samples", self.num_samples[row], "", ""])
                writer.writerow([row, "num_rejected", self.num_rejected.get(row, 0), "", ""])
                for name, estimate in estimates.items():
                    writer.writerow([row, name, repr(estimate.value), repr(estimate.error), self.units[name]])

    def _write_markdown(self, path: Path) -> None:
        path.write_text(self.to_markdown() + "\n")


def with_unit(name: str, unit: str) -> str:
    """For columns and axes: "energy_w1 / kT"."""
    return f"{name} / {unit}" if unit else name
