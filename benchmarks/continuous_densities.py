"""Which log-densities of continuous flows importance weights can trust: mean weights, where 1 is right.

    python benchmarks/continuous_densities.py --threads 1

The target is a mixture of three anisotropic normals in the plane, the flow its exact velocity along the linear path, in
float64: what is left of the mean weight is the solver and the density. "refused" is a map that cannot be shown to be
one-to-one.
"""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from common import argument_parser, markdown_table, prepare
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from nflib.continuous import RK4, DiffusionProposal, Dopri5, Euler, Heun, ODEFlow, Solver
from nflib.montecarlo import importance_sample

MEANS = torch.tensor([[2.0, 0.0], [-1.0, 1.5], [-1.0, -1.5]]).double()
ROOTS = torch.tensor([[[0.5, 0.0], [0.3, 0.2]], [[0.3, 0.0], [0.0, 0.6]], [[0.4, 0.0], [-0.3, 0.25]]]).double()
WEIGHTS = torch.tensor([0.5, 0.3, 0.2]).double()
SOLVERS: list[tuple[Solver, str]] = [
    (RK4(32), "trace"),
    (RK4(32), "hutchinson"),
    (Dopri5(1e-6, 1e-6), "trace"),
    *((solver, density) for solver in (Euler(8), Heun(4), RK4(2)) for density in ("trace", "map")),
    (Euler(2), "map"),
]
PATH_STEPS = (10, 30, 100)


def velocity(x: Tensor, t: Tensor, context: Any = None) -> Tensor:
    """``E[x1 - x0 | x_t]``: of each normal it is linear, and these are mixed by their shares in the density at x."""
    covariance = ROOTS @ ROOTS.mT
    noise, data = (1 - t)[:, None, None, None], t[:, None, None, None]
    spread = noise.square() * torch.eye(2).double() + data.square() * covariance
    off = x[:, None] - t[:, None, None] * MEANS
    pull = torch.linalg.solve(spread, off.unsqueeze(-1))
    shares = (WEIGHTS.log() - 0.5 * (off * pull.squeeze(-1)).sum(-1) - 0.5 * torch.logdet(spread)).softmax(-1)
    own = MEANS + ((data * covariance - noise * torch.eye(2).double()) @ pull).squeeze(-1)
    return (shares.unsqueeze(-1) * own).sum(1)


def main() -> None:
    """Weight the draws of each solver and density, and of the stochastic equation, and print the table."""
    parser = argument_parser(__doc__)
    parser.add_argument("--num_samples", type=int, default=20_000, help="draws of each")
    parser.add_argument("--epsilon", type=float, default=0.2, help="of the stochastic equation")
    arguments = parser.parse_args()
    prepare(arguments)
    target = MixtureSameFamily(Categorical(WEIGHTS), MultivariateNormal(MEANS, scale_tril=ROOTS))
    flow = ODEFlow(velocity, (2,)).double()
    proposals: list[tuple[object, str, Any]] = [
        (solver, density, flow.with_solver(solver, density)) for solver, density in SOLVERS
    ]
    proposals += [
        (f"{steps} steps of the stochastic equation", "path", DiffusionProposal(flow, arguments.epsilon, steps))
        for steps in PATH_STEPS
    ]
    rows = []
    for name, density, proposal in proposals:
        start = time.perf_counter()
        try:
            samples = importance_sample(
                proposal, target, arguments.num_samples, batch_size=5_000, seed=arguments.seed, allow_stochastic=True
            )
        except ValueError as refusal:
            rows.append([name, density, f"refused: {str(refusal).partition(':')[0]}", "", ""])
        else:
            mean = math.exp(samples.log_normalizer)
            error = mean * samples.log_normalizer_standard_error
            share = f"{samples.effective_sample_size_fraction:.3f}"
            rows.append([name, density, f"{mean:.4f} ± {error:.4f}", share, f"{time.perf_counter() - start:.0f}"])
        print(*rows[-1], flush=True)
    print("\n" + markdown_table(["solver", "density", "mean weight", "ESS", "seconds"], rows))


if __name__ == "__main__":
    main()
