"""What a free energy costs: CPU seconds to an error of 0.1 kT in that of phi > 0, by flows and by simulation.

    OMP_NUM_THREADS=1 python benchmarks/amortised.py --threads 1 --molecules Ace-A-Nme=runs/Ace-A-Nme AA=runs/AA

Of each molecule the folder of a long simulation is named (`python -m molecular simulate`): the reference, and what
parallel tempering reaches. The error of a flow is the spread of repeats with other seeds, weights or sequential Monte
Carlo, and its cost their CPU time. The error of parallel tempering is that of the mean over its replica groups, all
independent, from --start_ps on, and its cost the CPU time of a replica's step, measured here, times all steps
of all replicas; time to equilibrate is left out, which is in favour of simulation. OpenMM's runs the same dynamics: its
error in the same simulated time is taken to be the same, and only its time for a step differs. Costs are scaled to an
error of 0.1 kT by its square. --prepared: CPU seconds that a molecule's flow cost beforehand, its data and training.
"difference": from the simulation, with both errors.
"""

import json
import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from common import argument_parser, markdown_table, prepare
from tempering import SWAP_INTERVAL, TIMESTEP, Advance, tempering

from molecular.analysis.analyse import ELSEWHERE, analyse
from molecular.analysis.observables import CollectiveVariable
from molecular.data.ensembles import load_ensemble
from molecular.dynamics import Langevin
from molecular.dynamics.openmm_engine import OpenMMEngine
from molecular.energy import compile_system
from molecular.molecule.peptide import Peptide
from molecular.molecule.storage import load_molecule
from molecular.molecule.torsions import named_backbone_torsions
from molecular.sampling import load_flow, sample, smc
from nflib.montecarlo import WeightedSamples

ERROR = 0.1  # kT


class Cost(NamedTuple):
    """Of one method: the free energy and its error in kT, CPU seconds for that error."""

    method: str
    value: float
    error: float
    seconds: float

    @property
    def needed(self) -> float:
        """CPU seconds to an error of `ERROR`."""
        return self.seconds * (self.error / ERROR) ** 2


def first_phi(peptide: Peptide) -> str:
    """The name of the first residue's phi that has one."""
    return next(iter(named_backbone_torsions(peptide.topology)))


def by_flow(method: str, draw: Callable[[int], WeightedSamples], peptide: Peptide, seeds: Iterable[int]) -> Cost:
    """The mean over seeds, the error and CPU time of one."""
    values, seconds = [], []
    for seed in seeds:
        start = time.process_time()
        with torch.no_grad():
            samples = draw(seed)
        seconds.append(time.process_time() - start)
        found = analyse(samples, peptide, [], basins={"left": f"{first_phi(peptide)} > 0"}, unit="kT")
        values.append(found.differences["left", ELSEWHERE].value)
        print(f"  {method}, seed {seed}: {values[-1]:.3f} kT, {seconds[-1]:.1f} s, {samples}", flush=True)
    return Cost(method, float(np.mean(values)), float(np.std(values, ddof=1)), float(np.mean(seconds)))


def by_simulation(folder: Path, start_ps: float, peptide: Peptide) -> tuple[float, float, float]:
    """The free energy, its error over replica groups, and the steps of all replicas that it took."""
    ensemble = load_ensemble(folder, num_atoms=peptide.num_atoms, start_ps=start_ps)
    is_left = CollectiveVariable.of(first_phi(peptide), peptide)(ensemble.positions) > 0
    shares = np.array(
        [float(is_left[ensemble.replica_group == group].double().mean()) for group in ensemble.replica_group.unique()]
    )
    share = float(shares.mean())
    error = float(shares.std(ddof=1)) / math.sqrt(len(shares)) / (share * (1 - share))
    settings = json.loads((folder / "settings.json").read_text())
    steps = (settings["picoseconds"] - start_ps) / settings["timestep"]
    return math.log((1 - share) / share), error, steps * len(shares) * len(settings["temperatures"])


def seconds_a_step(advance: Advance, least: float) -> float:
    """CPU seconds for a step of one replica, from so many seconds or more, after a warm-up."""
    advance()
    steps, start = 0.0, time.process_time()
    while (elapsed := time.process_time() - start) < least:
        steps += advance() / TIMESTEP
    return elapsed / steps


def main() -> None:
    """Print the tables."""
    parser = argument_parser(__doc__)
    parser.add_argument("--molecules", nargs="+", required=True, help="PEPTIDE=FOLDER of its simulation")
    parser.add_argument("--models", nargs="*", default=[], help="PEPTIDE=FOLDER of its flow; default: what is shipped")
    parser.add_argument("--prepared", nargs="*", default=[], help="PEPTIDE=SECONDS of CPU for its flow")
    parser.add_argument("--start_ps", type=float, default=80.0, help="ps of the simulations that are left out")
    parser.add_argument("--seeds", type=int, default=10, help="repeats of a flow")
    parser.add_argument("--num_samples", type=int, default=10_000, help="draws of each")
    parser.add_argument("--num_particles", type=int, default=2_000, help="particles of sequential Monte Carlo")
    parser.add_argument("--final_moves", type=int, default=20, help="of sequential Monte Carlo")
    parser.add_argument("--replica_groups", type=int, default=64, help="of the batched engine, while it is timed")
    parser.add_argument("--seconds", type=float, default=20.0, help="CPU time to time each engine")
    arguments = parser.parse_args()
    prepare(arguments)
    models = dict(entry.split("=", 1) for entry in arguments.models)
    prepared = {name: float(value) for name, value in (entry.split("=", 1) for entry in arguments.prepared)}
    seeds = range(arguments.seed, arguments.seed + arguments.seeds)
    for entry in arguments.molecules:
        name, folder = entry.split("=", 1)
        peptide = Peptide(name)
        if difference := load_molecule(folder).topology.difference(peptide.topology):
            raise SystemExit(f"{folder} is a simulation of another molecule than {name}: {difference}.")
        print(f"{peptide}", flush=True)
        flow = load_flow(peptide, models.get(name))
        free_energy, error, steps = by_simulation(Path(folder), arguments.start_ps, peptide)
        temperatures = len(json.loads((Path(folder) / "settings.json").read_text())["temperatures"])

        def weighted(seed: int, flow=flow, peptide=peptide) -> WeightedSamples:
            return sample(flow, peptide, arguments.num_samples, seed=seed)

        def moved(seed: int, flow=flow, peptide=peptide) -> WeightedSamples:
            return smc(flow, peptide, arguments.num_particles, final_moves=arguments.final_moves, seed=seed)

        costs = [
            by_flow(f"flow, {arguments.num_samples} weighted draws", weighted, peptide, seeds),
            by_flow(f"flow, SMC of {arguments.num_particles} particles", moved, peptide, seeds),
        ]
        compiled = compile_system(peptide.system, compile=True)
        reference = OpenMMEngine(peptide.system, "CPU", arguments.threads)
        engines = {
            "parallel tempering, batched": tempering(
                peptide, compiled, Langevin, torch.float32, arguments.replica_groups, temperatures, arguments.seed
            ),
            "parallel tempering, OpenMM": tempering(
                peptide, reference, reference.integrator, torch.float64, 1, temperatures, arguments.seed
            ),
        }
        for method, advance in engines.items():
            a_step = seconds_a_step(advance, arguments.seconds)
            print(f"  {method}: {1e6 * a_step:.1f} µs of CPU for a step of a replica ({SWAP_INTERVAL} between swaps)")
            costs.append(Cost(method, free_energy, error, steps * a_step))
        cheapest = min(cost.needed for cost in costs[:2])
        rows = []
        for cost in costs:
            is_flow = cost in costs[:2]
            mean_error = cost.error / math.sqrt(arguments.seeds)
            beforehand = prepared.get(name, math.nan) if is_flow else 0.0
            rows.append(
                [
                    cost.method,
                    f"{cost.value:.3f} ± {mean_error if is_flow else cost.error:.3f}",
                    f"{cost.value - free_energy:.2f} ± {math.hypot(mean_error, error):.2f}" if is_flow else "–",
                    f"{cost.error:.3f}",
                    f"{cost.seconds:.1f}",
                    f"{cost.needed:.1f}",
                    f"{cost.needed / cheapest:.3g}",
                    "–" if math.isnan(beforehand) else f"{cost.needed + beforehand:.0f}",
                ]
            )
        header = ["method", "ΔF / kT", "difference", "error", "CPU s", f"CPU s to {ERROR} kT", "ratio", "with training"]
        print("\n" + markdown_table(header, rows) + "\n", flush=True)


if __name__ == "__main__":
    main()
