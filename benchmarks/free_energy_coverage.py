"""Do the errors of free energies cover? Ace-A-Nme from the shipped flow, over seeds, against a long simulation.

    OMP_NUM_THREADS=1 python benchmarks/free_energy_coverage.py --threads 1 --reference FOLDER

Each seed draws anew, weights to 300 K and, the same draws, to 330 K. Compared are the profiles along phi and psi, in
bins of 6 degrees, their map in bins of 10, and the free energy of phi > 0 less that of phi < 0. The reference is a
folder of `python -m molecular simulate` at 300 K, reweighted to 330 K; its own errors, over its groups, are added in
quadrature. "cells": bins of all seeds for which flow and reference state an error; "stated": their share of the bins in
which the reference does. For normal errors that are right, 68 % and 95 % of the cells lie within one and two. "bias":
the mean error over seeds and cells, in units of the stated one. "width": root mean square of the scores; above one
where errors are stated too small.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from common import argument_parser, markdown_table, prepare
from numpy.typing import NDArray

from molecular.analysis.analyse import ELSEWHERE, Analysis, analyse
from molecular.analysis.free_energy import FreeEnergy
from molecular.data.ensembles import load_ensemble
from molecular.molecule.peptide import Peptide
from molecular.sampling import load_flow, sample

SEQUENCE = "Ace-A-Nme"
TEMPERATURES = (300.0, 330.0)
BASINS = {"left": "phi 1 > 0"}


@dataclass
class Scores:
    """What one kind of figure scored, of all seeds."""

    scores: list[NDArray] = field(default_factory=list)
    errors: list[NDArray] = field(default_factory=list)
    possible: int = 0

    def add(self, values: NDArray, errors: NDArray, truth: NDArray, truth_errors: NDArray) -> None:
        """Of one seed."""
        known = np.isfinite(truth_errors)
        self.possible += int(known.sum())
        known &= np.isfinite(errors)
        self.scores.append((values[known] - truth[known]) / np.hypot(errors, truth_errors)[known])
        self.errors.append(errors[known])

    def row(self) -> list[str]:
        """Cells, their share, shares within one and two errors, bias, width, median error."""
        scores = np.concatenate(self.scores)
        if not len(scores):
            return ["0", "0 %", "–", "–", "–", "–", "–"]
        return [
            str(len(scores)),
            f"{100 * len(scores) / self.possible:.0f} %",
            *(f"{100 * np.mean(np.abs(scores) < multiple):.0f} %" for multiple in (1, 2)),
            f"{scores.mean():.2f}",
            f"{np.sqrt(np.mean(scores**2)):.2f}",
            f"{np.median(np.concatenate(self.errors)):.2f}",
        ]


def free_energies(surface: FreeEnergy) -> tuple[NDArray, NDArray]:
    """Absolute values, whose errors are stated, and the errors."""
    return (surface.values + surface.lowest).ravel(), surface.errors.ravel()


def figures(analysis: Analysis) -> dict[str, tuple[NDArray, NDArray]]:
    """Values and errors by name."""
    surfaces = {**analysis.profiles, **analysis.maps}
    found = {f"F({name})": free_energies(surface) for name, surface in surfaces.items()}
    difference = analysis.differences["left", ELSEWHERE]
    return found | {"ΔF(phi > 0)": (np.array([difference.value]), np.array([difference.error]))}


def main() -> None:
    """Print the table."""
    parser = argument_parser(__doc__)
    parser.add_argument("--reference", required=True, help="folder of a simulation of Ace-A-Nme at 300 K")
    parser.add_argument("--start_ps", type=float, default=80.0, help="ps of the reference that are left out")
    parser.add_argument("--seeds", type=int, default=20, help="repeats")
    parser.add_argument("--num_samples", type=int, default=10_000, help="draws of each")
    arguments = parser.parse_args()
    prepare(arguments)
    peptide = Peptide(SEQUENCE, temperature=TEMPERATURES[0])
    targets = {temperature: peptide.at(temperature) for temperature in TEMPERATURES}
    ensemble = load_ensemble(arguments.reference, num_atoms=peptide.num_atoms, start_ps=arguments.start_ps)
    truth = {}
    for temperature, target in targets.items():
        known = analyse(ensemble, peptide, basins=BASINS, target=target)
        print(known, flush=True)
        truth[temperature] = figures(known)
    scores = {temperature: {name: Scores() for name in found} for temperature, found in truth.items()}
    flow = load_flow(Peptide(SEQUENCE))
    for seed in range(arguments.seed, arguments.seed + arguments.seeds):
        with torch.no_grad():
            samples = sample(flow, peptide, arguments.num_samples, seed=seed)
        print(f"seed {seed}: {samples}", flush=True)
        for temperature, target in targets.items():
            found = analyse(samples, peptide, basins=BASINS, target=target)
            print(f"  {temperature:g} K: ΔF(phi > 0) {found.differences['left', ELSEWHERE]} {found.unit}", flush=True)
            for name, (values, errors) in figures(found).items():
                scores[temperature][name].add(values, errors, *truth[temperature][name])
    rows = [
        [f"{temperature:g} K", name, *one.row()] for temperature, found in scores.items() for name, one in found.items()
    ]
    header = ["at", "of", "cells", "stated", "within 1 error", "within 2", "bias", "width", "error, kJ/mol"]
    print("\n" + markdown_table(header, rows))


if __name__ == "__main__":
    main()
