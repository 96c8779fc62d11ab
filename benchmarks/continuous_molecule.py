"""One molecule by continuous flows and by the autoregressive one, in the same coordinates, at equal training time.

    OMP_NUM_THREADS=1 python benchmarks/continuous_molecule.py --data runs/Ace-A-Nme --start_ps 80 --threads 1

The autoregressive flow is as those shipped (`MoleculeFlow`, one block, splines), trained anew. The continuous ones see
the very coordinates that its transformer sees: atoms in local frames, spherical, Gaussianised one by one. An ODE flow
is trained by flow matching; a flow map of four steps by MeanFlow, kept invertible. All are weighted to the force field
with their exact densities: E[w] / Z, 1 within its error where the weights have a mean to speak of, says so (Z by
the autoregressive flow). Networks of the continuous ones are MLPs: the Jacobian of a transformer takes a backward pass
of all tokens for each of 60 numbers and step, a weighted sample takes a second of one core.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import torch
from common import argument_parser, count_parameters, markdown_table, prepare, trained
from nflows.transforms import CompositeTransform
from torch import Tensor, nn

from molecular.data.ensembles import load_ensemble, split_by_replica_group
from molecular.energy.reduced import ReducedEnergy
from molecular.energy.symmetries import Symmetries
from molecular.flows.molecule_flow import MoleculeFlow
from molecular.molecule.storage import load_molecule
from molecular.training.fit_molecule import SPLIT, SPLIT_SEED
from nflib import Flow
from nflib.continuous import (
    RK4,
    FlowMap,
    FlowMatching,
    Heun,
    Invertible,
    MeanFlow,
    MLPFlowMap,
    MLPVelocity,
    ODEFlow,
    OptimalTransportCoupling,
)
from nflib.distributions import StandardNormal
from nflib.montecarlo import BoltzmannDensity, importance_sample

SETTINGS: dict[str, Any] = {
    "batch_size": 128,
    "optimizer": "muon",
    "learning_rate": 4e-3,
    "weight_decay": 0.01,
    "ema_decay": 0.995,
}


class Coordinates:
    """Frames under their symmetries, in the coordinates of the transformer: what continuous flows are trained on."""

    def __init__(self, positions: Tensor, symmetries: Symmetries, transform: CompositeTransform, seed: int):
        self.positions, self.symmetries, self.transform = positions, symmetries, transform
        self.generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return len(self.positions)

    @torch.no_grad()
    def batch(self, indices: Tensor) -> dict[str, Tensor]:
        return {"inputs": self.transform(self.symmetries(self.positions[indices], self.generator))[0]}


class OfAllAtoms(nn.Module):
    """A network of vectors, on the numbers of all atoms at once."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor, *times: Tensor) -> Tensor:
        return self.inner(x.flatten(1), *times).view_as(x)


def main() -> None:
    """Train the flows, weight their draws, and print the table."""
    parser = argument_parser(__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of a simulation")
    parser.add_argument("--start_ps", type=float, default=0.0, help="of its frames, ps")
    parser.add_argument("--seconds", type=float, default=300.0, help="of each training")
    parser.add_argument("--num_samples", type=int, default=2_000, help="draws of each flow")
    arguments = parser.parse_args()
    prepare(arguments)
    molecule = load_molecule(arguments.data)
    ensemble = load_ensemble(arguments.data, num_atoms=molecule.num_atoms, start_ps=arguments.start_ps)
    positions = split_by_replica_group(ensemble, SPLIT, SPLIT_SEED)[0].positions
    symmetries, target = Symmetries(molecule), BoltzmannDensity(ReducedEnergy(molecule))
    torch.manual_seed(arguments.seed)
    autoregressive = MoleculeFlow.of(molecule, channels=96, layers_per_block=6, num_bins=16)
    autoregressive.fit_coordinates(positions)
    fixed = autoregressive.coordinate_transform
    shape = (molecule.num_atoms - 2, 3)
    rows: list[list[object]] = []
    log_normalizer = math.nan

    def judge(name: str, flow: Any, parameters: int, steps: int) -> None:
        nonlocal log_normalizer
        start = time.perf_counter()
        try:
            samples = importance_sample(flow, target, arguments.num_samples, batch_size=500, seed=arguments.seed)
        except ValueError as refusal:
            rows.append([name, parameters, steps, f"refused: {refusal}", "", "", ""])
            print(*rows[-1], flush=True)
            return
        seconds = time.perf_counter() - start
        if math.isnan(log_normalizer):
            log_normalizer = samples.log_normalizer
        ratio = math.exp(samples.log_normalizer - log_normalizer)
        error = ratio * samples.log_normalizer_standard_error
        ess = samples.effective_sample_size_fraction
        rows.append([name, parameters, steps, f"{ess:.3f}", f"{samples.pareto_k:.2f}", f"{ratio:.2f} ± {error:.2f}"])
        rows[-1].append(f"{arguments.num_samples / seconds:.1f}")
        print(*rows[-1], flush=True)

    steps = trained(autoregressive, positions, arguments.seconds, arguments.seed, augment=symmetries, **SETTINGS).steps
    judge("autoregressive", autoregressive.eval(), count_parameters(autoregressive), steps)

    def on_positions(flow: Flow) -> Flow:
        return Flow(CompositeTransform([fixed, flow._transform]), StandardNormal(shape)).eval()

    data = Coordinates(positions, symmetries, fixed, arguments.seed)
    size = math.prod(shape)
    ode = ODEFlow(OfAllAtoms(MLPVelocity(size, channels=384)), shape)
    steps = trained(
        ode, data, arguments.seconds, arguments.seed, FlowMatching(OptimalTransportCoupling()), **SETTINGS
    ).steps
    for solver in (Heun(4), Heun(8), RK4(8)):
        judge(f"ODE flow, {solver}", on_positions(ode.with_solver(solver)), count_parameters(ode), steps)
    flow_map = FlowMap(OfAllAtoms(MLPFlowMap(size, channels=384)), shape)
    objective = Invertible(MeanFlow(OptimalTransportCoupling()))
    steps = trained(flow_map, data, arguments.seconds, arguments.seed, objective, **SETTINGS).steps
    judge("flow map, 4 passes", on_positions(flow_map), count_parameters(flow_map), steps)
    print()
    header = ["flow", "parameters", "steps", "ESS / samples", "Pareto k", "E[w] / Z", "weighted samples a second"]
    print(markdown_table(header, rows))


if __name__ == "__main__":
    main()
