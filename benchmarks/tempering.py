"""Parallel tempering of a peptide: simulated time a second of the batched engine and of OpenMM, in one run.

    python benchmarks/tempering.py --replica_groups 32 128 --seconds 20

Every engine integrates the same system with the same time step. "one replica" is OpenMM's LangevinMiddleIntegrator
left alone, without tempering, on all threads; "replicas" is parallel tempering by our OpenMM engine, one replica a
thread at a time; "batched" is parallel tempering of all replicas at once, swaps and statistics included. Simulated time
is summed over replicas. The engines take turns, so that whatever else the machine does hits them alike.
"""

import time
from collections.abc import Callable

import numpy as np
import openmm
import torch
from common import argument_parser, markdown_table, prepare

from molecular import Peptide
from molecular.dynamics import EnergyAndForce, Langevin, TemperingSettings, geometric_temperatures
from molecular.dynamics.openmm_engine import OpenMMEngine
from molecular.dynamics.replicas import MakeIntegrator, Replicas
from molecular.energy import compile_system
from molecular.molecule.constants import MOLAR_GAS_CONSTANT

TIMESTEP = 0.001
SWAP_INTERVAL = 100
ROUNDS = 5
# Simulates a little, and returns how much: ps, summed over replicas.
Advance = Callable[[], float]


def openmm_alone(peptide: Peptide, platform: str, properties: dict[str, str], steps: int) -> Advance:
    """One replica, nothing around it."""
    integrator = openmm.LangevinMiddleIntegrator(peptide.temperature, 1.0, TIMESTEP)
    context = openmm.Context(peptide.system, integrator, openmm.Platform.getPlatformByName(platform), properties)
    context.setPositions(peptide.positions)

    def advance() -> float:
        context.getIntegrator().step(steps)  # an integrator alone does not keep its context alive
        return steps * TIMESTEP

    return advance


def tempering(
    peptide: Peptide,
    energy: EnergyAndForce,
    integrator: MakeIntegrator,
    dtype: torch.dtype,
    num_replica_groups: int,
    num_temperatures: int,
    seed: int,
) -> Advance:
    """One stretch between swaps of every replica, with what parallel tempering does around it."""
    settings = TemperingSettings(
        temperatures=geometric_temperatures(peptide.temperature, 900.0, num_temperatures),
        num_replica_groups=num_replica_groups,
        timestep=TIMESTEP,
        friction=1.0,
        swap_interval=SWAP_INTERVAL,
        save_interval=SWAP_INTERVAL,
        equilibration_steps=0,
        saved_temperatures=1,
        recentre=True,
    )
    batch = num_replica_groups * num_temperatures
    start = torch.tensor(peptide.positions, dtype=dtype).expand(batch, -1, -1)
    generator = torch.Generator().manual_seed(seed)
    replicas = Replicas(energy, torch.tensor(peptide.masses, dtype=dtype), start, settings, generator, integrator)
    parity = 0

    def advance() -> float:
        nonlocal parity
        replicas.advance(SWAP_INTERVAL)
        replicas.restart_broken(check_heat=True)
        replicas.measure(0.0)
        parity = 1 - parity
        replicas.swap(parity, count=True)
        if not bool(torch.isfinite(replicas.potential).all()):
            raise RuntimeError("a replica has an energy that is not finite; the figures would mean nothing.")
        return batch * SWAP_INTERVAL * TIMESTEP

    return advance


def rates(engines: dict[str, Advance], seconds: float) -> dict[str, list[float]]:
    """Simulated ps a second in each of several rounds, after a warm-up."""
    result: dict[str, list[float]] = {name: [] for name in engines}
    for advance in engines.values():
        advance()
    for _ in range(ROUNDS):
        for name, advance in engines.items():
            done, start = 0.0, time.perf_counter()
            while (elapsed := time.perf_counter() - start) < seconds / ROUNDS:
                done += advance()
            result[name].append(done / elapsed)
    return result


def main() -> None:
    """Print the table."""
    parser = argument_parser(__doc__)
    parser.add_argument("--peptide", default="AA")
    parser.add_argument("--replica_groups", type=int, nargs="+", default=[32, 128], help="of the batched engine")
    parser.add_argument("--temperatures", type=int, default=8, help="temperatures in each replica group")
    parser.add_argument("--seconds", type=float, default=20.0, help="time for each engine")
    parser.add_argument("--fused", action="store_true", help="also torch.compile; compiling takes minutes")
    arguments = parser.parse_args()
    prepare(arguments)
    peptide = Peptide(arguments.peptide)
    threads = {"Threads": str(arguments.threads)}
    reference = OpenMMEngine(peptide.system, "CPU", arguments.threads)
    numbers = arguments.temperatures, arguments.seed
    engines: dict[str, Advance] = {
        "OpenMM CPU, one replica": openmm_alone(peptide, "CPU", threads, SWAP_INTERVAL),
        "OpenMM Reference, one replica": openmm_alone(peptide, "Reference", {}, SWAP_INTERVAL),
        "OpenMM CPU, replicas": tempering(peptide, reference, reference.integrator, torch.float64, 1, *numbers),
    }
    for compiled in [False, True] if arguments.fused else [False]:
        energy = compile_system(peptide.system, compile=compiled)
        for groups in arguments.replica_groups:
            name = f"batched, {groups * arguments.temperatures} replicas" + (", fused" if compiled else "")
            engines[name] = tempering(peptide, energy, Langevin, torch.float32, groups, *numbers)
    measured = rates(engines, arguments.seconds)
    peers = {name: float(np.median(values)) for name, values in measured.items() if name.startswith("OpenMM")}
    peer = max(peers.values())
    rows = [
        [name, f"{np.median(values):.1f}", f"{min(values):.1f} to {max(values):.1f}", f"{np.median(values) / peer:.1f}"]
        for name, values in measured.items()
    ]
    print(f"Parallel tempering of {peptide}, {1000 * TIMESTEP:g} fs, swaps every {SWAP_INTERVAL} steps,")
    print(f"kT {MOLAR_GAS_CONSTANT * peptide.temperature:.2f} kJ/mol; OpenMM with {arguments.threads} threads\n")
    print(markdown_table(["engine", "simulated ps/s, median", "rounds", "times the fastest OpenMM"], rows))


if __name__ == "__main__":
    main()
