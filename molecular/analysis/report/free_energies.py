"""The folder of an analysis of free energies: CSV, PNG and JSON, and a page that shows them all."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from molecular.analysis.analyse import ELSEWHERE, Analysis
from molecular.analysis.free_energy import FreeEnergy, energy_unit
from molecular.analysis.free_energy_plots import draw, figures
from nflib.io import complete_folder, write_json
from nflib.metrics import Estimate
from nflib.metrics.estimates import UNKNOWN
from nflib.page import Section, bullets, definitions, drawing, grid, paragraph, table, write_page

RECORD = "analysis.json"
# Of the files that an analysis writes, those that another one may not: removed where there is a record of one.
OPTIONAL = ("profile-*.csv", "profile-*.png", "map-*.csv", "map-*.png", "basins.csv")
_NO_LETTERS = re.compile(r"\W+")
_LONGEST_NAME = 50  # characters, of which file systems hold 63 of the longest


def save_analysis(analysis: Analysis, folder: str | Path) -> dict[str, Path]:
    """Write report.html, analysis.json, a CSV file and a PNG of each profile and map, and basins.csv: all or none.

    Returns:
        The figures by the names of their variables.

    Raises:
        OSError: the folder cannot be written.
    """
    surfaces = {**analysis.profiles, **analysis.maps}
    files = dict(zip(surfaces, _file_names(list(surfaces.values())), strict=True))
    is_again = (Path(folder) / RECORD).is_file()
    with complete_folder(folder, replaces=OPTIONAL if is_again else ()) as temporary:
        for name, surface in surfaces.items():
            surface.write_csv(temporary / f"{files[name]}.csv")
            draw(surface, temporary / f"{files[name]}.png", title=_title(analysis))
        if analysis.populations:
            _write_basins(analysis, temporary / "basins.csv")
        write_json(temporary / RECORD, analysis.summary() | {"files": files})
        _write_page(analysis, files, temporary / "report.html")
    return {name: Path(folder) / f"{file}.png" for name, file in files.items()}


def _title(analysis: Analysis) -> str:
    return f"{analysis.molecule}, {analysis.temperature:g} K"


def _write_page(analysis: Analysis, files: Mapping[str, str], path: Path) -> None:
    sections = [Section("Notes", bullets(analysis.notes))] if analysis.notes else []
    if analysis.populations:
        sections.append(Section("Basins", _basins(analysis)))
    if analysis.profiles:
        explained = paragraph(
            "Lines: free energy above the lowest bin. Bands: one standard error of each bin, for a density normalised "
            "over all conformations. Dots: bins with too few conformations to tell an error."
        )
        sections.append(Section("Profiles", explained + _drawings(analysis.profiles, files)))
    if analysis.maps:
        explained = paragraph("Free energy above the lowest bin, and the standard error of each bin that has one.")
        sections.append(Section("Maps", explained + _drawings(analysis.maps, files)))
    independent = "which are independent"
    if analysis.num_independent < analysis.num_samples:
        independent = f"of {analysis.num_independent} independent groups"
    summary = (
        f"{analysis.num_samples} conformations, {independent}, at {analysis.temperature:g} K; effective sample size "
        f"{analysis.effective_sample_size:.0f}."
    )
    sections.append(Section("Settings", definitions(_settings(analysis))))
    write_page(path, f"Free energies of {analysis.molecule}", summary, sections)


def _settings(analysis: Analysis) -> dict[str, object]:
    temperature = f"{analysis.temperature:g} K"
    if analysis.source_temperature != analysis.temperature:
        temperature += f", reweighted from {analysis.source_temperature:g} K"
    return {
        "molecule": analysis.molecule,
        "temperature": temperature,
        "kT": f"{analysis.kT:.4f} kJ/mol",
        "unit of figures and files": analysis.unit,
    }


def _basins(analysis: Analysis) -> str:
    units = [unit for unit in ("kT", "kJ/mol", "kcal/mol") if unit in ("kT", "kJ/mol", analysis.unit)]
    columns = [f"ΔF / {unit}" for unit in units]

    def in_units(estimate: Estimate) -> list[str]:
        factors = (energy_unit(unit, analysis.kT) / energy_unit(analysis.unit, analysis.kT) for unit in units)
        return [_shown(Estimate(factor * estimate.value, factor * estimate.error)) for factor in factors]

    alone = [
        [name, _shown(share), *in_units(analysis.differences[name, ELSEWHERE])]
        for name, share in analysis.populations.items()
    ]
    pairs = [
        [f"{first} less {second}", *in_units(estimate)]
        for (first, second), estimate in analysis.differences.items()
        if second != ELSEWHERE
    ]
    text = table(["basin", "population", *columns], alone, [analysis.conditions[name] for name in analysis.populations])
    text += paragraph("ΔF: free energy of a basin less that of all conformations outside of it, with standard errors.")
    if pairs:
        text += table(["two basins", *columns], pairs)
    if UNKNOWN in text:
        text += paragraph(
            f"“{UNKNOWN}”: no error can be told, since a side is worth too few independent conformations, or the "
            "weights are too uneven."
        )
    return text


def _shown(estimate: Estimate) -> str:
    """The estimate, with the sign of infinity."""
    return str(estimate).replace("inf", "∞")


def _drawings(surfaces: Mapping[str, FreeEnergy], files: Mapping[str, str]) -> str:
    return grid(
        drawing(figures(surface), name, f"{name}: {_known(surface)}; {files[name]}.csv")
        for name, surface in surfaces.items()
    )


def _known(surface: FreeEnergy) -> str:
    known, filled = (int(np.isfinite(values).sum()) for values in (surface.errors, surface.values))
    outside = f", {100 * surface.outside:.1f} % of the ensemble outside of them" if surface.outside > 0.0005 else ""
    return f"{filled} of {surface.values.size} bins hold conformations, {known} state an error{outside}"


def _write_basins(analysis: Analysis, path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["quantity", "basin", "less", "value", "standard error", "unit"])
        rows: list[tuple[str, str, str, Estimate, str]] = [
            ("population", name, "", estimate, "") for name, estimate in analysis.populations.items()
        ]
        rows += [
            ("free energy", first, second, estimate, analysis.unit)
            for (first, second), estimate in analysis.differences.items()
        ]
        for quantity, first, second, estimate, unit in rows:
            writer.writerow([quantity, first, second, f"{estimate.value:.7g}", f"{estimate.error:.3g}", unit])


def _file_names(surfaces: Sequence[FreeEnergy]) -> list[str]:
    """ "profile-phi-1", "map-phi-1-psi-1"; numbered where two would be one."""
    names: list[str] = []
    for surface in surfaces:
        kind = "profile" if len(surface.variables) == 1 else "map"
        name = f"{kind}-{_NO_LETTERS.sub('-', surface.name).strip('-')[:_LONGEST_NAME] or 'variable'}"
        number = 1
        while (numbered := name if number == 1 else f"{name}-{number}").lower() in map(str.lower, names):
            number += 1
        names.append(numbered)
    return names
