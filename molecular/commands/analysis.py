"""Free energies of samples or of a simulation, into a folder."""

from __future__ import annotations

import logging
from pathlib import Path

from molecular.analysis.analyse import Analysis
from molecular.analysis.analyse import analyse as run
from molecular.analysis.report.free_energies import save_analysis
from molecular.analysis.sources import read_ensemble
from molecular.molecule.molecule import Molecule
from molecular.molecule.storage import read_system
from nflib.io import check_writable

log = logging.getLogger(__name__)


def analyse(
    data: Path,
    output: Path,
    variables: list[str] | None = None,
    basins: list[str] | None = None,
    temperature: float | None = None,
    system: Path | None = None,
    bins: int | None = None,
    unit: str = "kJ/mol",
    start_ps: float = 0.0,
) -> Analysis:
    """Free-energy profiles and maps, populations and differences of basins, with errors: CSV, PNG, JSON and HTML.

    Args:
        data: folder that sample, simulate or import wrote.
        output: folder for report.html, analysis.json, basins.csv, and a CSV file and a figure of each profile and map.
        variables: of the profiles: "phi 1", "psi 2", "rg", or two, three or four atoms, each an index from 0 or
            NAME:RESIDUE, as in "C:1 N:2 CA:2 C:2"; may be given again; default: all phi and psi with their maps, or all
            torsions.
        basins: NAME=CONDITION, such as "left=phi 1 > 0" or "alpha=-120 < phi 1 < -30"; may be given again.
        temperature: K, that the conformations are reweighted to, of a simulation those that were saved at the nearest
            temperature; default: their own.
        system: an OpenMM System as XML, another force field that they are reweighted to.
        bins: of each axis.
        unit: of free energies: kJ/mol, kcal/mol or kT.
        start_ps: of a simulation, frames before this time are left out.
    """
    source, molecule = read_ensemble(data, start_ps, temperature)
    regions = {}
    for basin in basins or ():
        name, equals, condition = basin.partition("=")
        if not equals or not name.strip():
            raise ValueError(f"--basins is {basin!r}; write NAME=CONDITION, as in 'left=phi 1 > 0'.")
        if name.strip() in regions:
            raise ValueError(f"two basins are named {name.strip()!r}; give each a name of its own.")
        regions[name.strip()] = condition.strip()
    target = None
    if temperature not in (None, molecule.temperature) or system is not None:
        target = Molecule(
            molecule.topology,
            molecule.system if system is None else read_system(system),
            molecule.positions,
            molecule.temperature if temperature is None else temperature,
            name=molecule.name,
        )
    check_writable(output)
    found = run(source, molecule, variables, basins=regions, target=target, bins=bins, unit=unit)
    save_analysis(found, output)
    for line in str(found).splitlines():
        log.info("%s", line)
    log.info("Written to %s: report.html, analysis.json, CSV files and figures.", output)
    return found
