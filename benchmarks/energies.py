"""Energies and forces of peptides: conformations per second of OpenMM and of the compiled system, in one run.

    OMP_NUM_THREADS=1 chrt -r 1 python benchmarks/energies.py --threads 2 --batch 1024 --seconds 20

OpenMM evaluates one conformation at a time (setPositions, then getState with energy and forces as an array); the
batched system evaluates the batch, operator by operator or fused by torch.compile ("compiled"). The engines take turns,
so that whatever else the machine does hits them alike.
"""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import openmm
import torch
from common import argument_parser, markdown_table, prepare
from numpy.typing import NDArray

from molecular import Peptide
from molecular.energy import compile_system

Evaluate = Callable[[Any], object]
ROUNDS = 10


def openmm_evaluator(system: openmm.System, platform: str, properties: dict[str, str]) -> Evaluate:
    """Energies and forces by OpenMM, one conformation after the other."""
    integrator = openmm.VerletIntegrator(0.001)
    context = openmm.Context(system, integrator, openmm.Platform.getPlatformByName(platform), properties)

    def evaluate(x: NDArray[np.float64]) -> object:
        results = []
        for positions in x:
            context.setPositions(positions)
            state = context.getState(getEnergy=True, getForces=True)
            results.append((state.getPotentialEnergy()._value, state.getForces(asNumpy=True)._value))
        return results

    return evaluate


def torch_evaluator(system: openmm.System, dtype: torch.dtype, compile: bool) -> Evaluate:
    """Energies and forces by the batched system, all at once."""
    energy = compile_system(system, dtype, compile=compile)
    return energy.energy_and_force


def thermal_conformations(peptide: Peptide, number: int, seed: int) -> NDArray[np.float64]:
    """Conformations of a short Langevin simulation, (number, n, 3) nm; at most 64 different ones."""
    integrator = openmm.LangevinMiddleIntegrator(peptide.temperature, 10.0, 0.001)
    integrator.setRandomNumberSeed(seed + 1)
    platform = openmm.Platform.getPlatformByName("CPU")
    context = openmm.Context(peptide.system, integrator, platform, {"Threads": "1"})
    context.setPositions(peptide.positions)
    frames = []
    for _ in range(min(number, 64)):
        integrator.step(20)
        frames.append(context.getState(getPositions=True).getPositions(asNumpy=True)._value)
    return np.resize(np.array(frames), (number, peptide.num_atoms, 3))


def rates(engines: dict[str, tuple[Evaluate, Any]], seconds: float) -> dict[str, list[float]]:
    """Conformations per second in each of several rounds; an engine is a function and the batch it is called with."""
    result: dict[str, list[float]] = {name: [] for name in engines}
    for evaluate, x in engines.values():
        evaluate(x)
    for _ in range(ROUNDS):
        for name, (evaluate, x) in engines.items():
            done, start = 0, time.perf_counter()
            while (elapsed := time.perf_counter() - start) < seconds / ROUNDS:
                evaluate(x)
                done += len(x)
            result[name].append(done / elapsed)
    return result


def main() -> None:
    """Print the table."""
    parser = argument_parser(__doc__)
    parser.add_argument("--batch", type=int, default=1024, help="conformations per call of the batched system")
    parser.add_argument("--seconds", type=float, default=10.0, help="time for each engine and peptide")
    parser.add_argument("--peptides", nargs="+", default=["AA", "Ace-A-Nme"])
    parser.add_argument("--no-compiled", action="store_true", help="leave out torch.compile, which takes minutes first")
    arguments = parser.parse_args()
    prepare(arguments)
    rows = []
    for sequence in arguments.peptides:
        peptide = Peptide(sequence)
        threads = {"Threads": str(arguments.threads)}
        x = thermal_conformations(peptide, arguments.batch, arguments.seed)
        double = torch.from_numpy(x)
        single = double.float()
        engines: dict[str, tuple[Evaluate, Any]] = {
            "OpenMM Reference": (openmm_evaluator(peptide.system, "Reference", {}), x[:16]),
            "OpenMM CPU": (openmm_evaluator(peptide.system, "CPU", threads), x[:16]),
            "torch float32": (torch_evaluator(peptide.system, torch.float32, False), single),
            "torch float64": (torch_evaluator(peptide.system, torch.float64, False), double),
        }
        if not arguments.no_compiled:
            engines["torch float32, compiled"] = (torch_evaluator(peptide.system, torch.float32, True), single)
        measured = rates(engines, arguments.seconds)
        peer = float(np.median(measured["OpenMM CPU"]))
        for name, values in measured.items():
            median = float(np.median(values))
            rows.append([sequence, name, f"{median:.0f}", f"{max(values):.0f}", f"{median / peer:.1f}"])
    print(f"Energies and forces, batch {arguments.batch}; OpenMM CPU with {arguments.threads} threads")
    header = ["peptide", "engine", "conformations/s, median", "best", "times OpenMM CPU"]
    print(markdown_table(header, rows))


if __name__ == "__main__":
    main()
