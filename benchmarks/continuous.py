"""Continuous flows of two-dimensional densities: how good, how exact and how fast, beside other packages.

    python benchmarks/continuous.py --threads 1

Eight Gaussians, a checkerboard and two spirals. Every model trains for the same processor time with the same optimiser;
nflib, torchcfm (with its minibatch optimal-transport pairs) and flow_matching the same network by flow matching, zuko's
CNF its own network, two layers of the same width, by maximum likelihood. Solvers and tolerances are those of the
packages' own examples, all with exact traces: torchcfm dopri5 at 1e-4, flow_matching midpoint steps of 0.05, zuko's
defaults; nflib's Dopri5 at 1e-4 as well.

log q: mean log-density of held-out data, as the model reports it; "exact" is that of the density itself, where it is
known. error: the mean distance from the same in float64 by a fine solve (of a map: by the map itself). batch: the
largest change of log q when points come one at a time. E[w], with its standard error, and ESS: of weights p / q on own
samples, where p is known; 1 is right. samples/s: drawn with their log-densities.

Packages that are not installed are left out: pip install torchcfm flow_matching torchdiffeq zuko.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from common import argument_parser, count_parameters, markdown_table, prepare
from torch import Tensor, nn

from nflib.continuous import Dopri5, FlowMatching, Heun, MLPVelocity, ODEFlow
from nflib.derivatives import jacobian

NUM_HELD_OUT, NUM_ALONE, NUM_FINE = 1000, 16, 200
BATCH_SIZE, LEARNING_RATE, EMA_DECAY = 256, 2e-3, 0.99
Sample = Callable[[int, torch.Generator], Tensor]
Loss = Callable[[Tensor, torch.Generator], Tensor]


@dataclass(frozen=True)
class Density:
    """How to draw from it, ``(N, 2)``, and its log-density ``(N,)``, where it has one in closed form."""

    sample: Sample
    log_prob: Callable[[Tensor], Tensor] | None = None


def eight_gaussians() -> Density:
    """Equal normals of width 0.2 on a circle of radius 2."""
    angles = torch.arange(8) * math.pi / 4
    centres = 2 * torch.stack([angles.cos(), angles.sin()], dim=1)

    def sample(number: int, generator: torch.Generator) -> Tensor:
        chosen = torch.randint(8, (number,), generator=generator)
        return centres[chosen] + 0.2 * torch.randn(number, 2, generator=generator)

    def log_prob(x: Tensor) -> Tensor:
        squares = ((x[:, None] - centres.to(x)) / 0.2).square().sum(-1)
        return (-0.5 * squares).logsumexp(1) - math.log(8 * 2 * math.pi * 0.2**2)

    return Density(sample, log_prob)


def checkerboard() -> Density:
    """Uniform on the eight dark squares of a board of 4 x 4 that covers -2 ... 2."""

    def sample(number: int, generator: torch.Generator) -> Tensor:
        row = torch.randint(4, (number,), generator=generator)
        column = 2 * torch.randint(2, (number,), generator=generator) + row % 2
        return torch.stack([column, row], dim=1) - 2 + torch.rand(number, 2, generator=generator)

    def log_prob(x: Tensor) -> Tensor:
        cells = (x + 2).floor()
        dark = ((cells >= 0) & (cells < 4)).all(1) & (cells.sum(1) % 2 == 0)
        return torch.where(dark, -math.log(8), -torch.inf)

    return Density(sample, log_prob)


def spirals() -> Density:
    """Two arms of one and a half turns, with normal noise of width 0.1."""

    def sample(number: int, generator: torch.Generator) -> Tensor:
        angle = 3 * math.pi * torch.rand(number, generator=generator).sqrt()
        arm = 2.0 * torch.randint(2, (number,), generator=generator) - 1
        x = (arm * angle / 4)[:, None] * torch.stack([-angle.cos(), angle.sin()], dim=1)
        return x + 0.1 * torch.randn(number, 2, generator=generator)

    return Density(sample)


DENSITIES = {"8 Gaussians": eight_gaussians, "checkerboard": checkerboard, "spirals": spirals}


class Model:
    """One package's way to fit a velocity, to evaluate log-densities and to draw.

    A subclass has the modules `packages` it needs, the module `network` that is trained, and these methods.
    """

    packages: tuple[str, ...] = ()
    network: Any

    def __init__(self, channels: int) -> None:
        raise NotImplementedError

    def loss(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Of a batch of data."""
        raise NotImplementedError

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-densities ``(N,)`` as the package gives them."""
        raise NotImplementedError

    def fine(self, x: Tensor) -> Tensor:
        """What they ought to be, in float64."""
        raise NotImplementedError

    def sample_and_log_prob(self, number: int) -> tuple[Tensor, Tensor]:
        """Draws and their log-densities, as they would be weighted."""
        raise NotImplementedError


class Ours(Model):
    """An `ODEFlow` by `FlowMatching`; the solver and its density may change after training."""

    def __init__(self, channels: int) -> None:
        self.flow = ODEFlow(MLPVelocity(2, channels=channels), (2,), solver=Heun(8))
        self.network = self.flow
        self.objective = FlowMatching()

    def loss(self, x: Tensor, generator: torch.Generator) -> Tensor:
        return self.objective(self.flow, {"inputs": x}, generator)[0]

    def log_prob(self, x: Tensor) -> Tensor:
        return self.flow.log_prob(x)

    def fine(self, x: Tensor) -> Tensor:
        return copy.deepcopy(self.flow).double().log_prob(x.double())

    def sample_and_log_prob(self, number: int) -> tuple[Tensor, Tensor]:
        return self.flow.sample_and_log_prob(number)


class OursTraced(Ours):
    """The same weights, the trace integrated by Dopri5."""

    def __init__(self, trained: Ours) -> None:
        self.flow = trained.flow.with_solver(Dopri5(1e-4, 1e-4), "trace")
        self.network = self.flow

    def fine(self, x: Tensor) -> Tensor:
        return fine_solve(self.flow._transform.velocity, x)


class TorchCFM(Model):
    """torchcfm's matcher with optimal-transport pairs; torchdiffeq's dopri5 along velocity and trace."""

    packages = ("torchcfm", "torchdiffeq")

    def __init__(self, channels: int) -> None:
        from torchcfm.conditional_flow_matching import ExactOptimalTransportConditionalFlowMatcher

        self.network = MLPVelocity(2, channels=channels)
        self.matcher = ExactOptimalTransportConditionalFlowMatcher(sigma=0.0)

    def loss(self, x: Tensor, generator: torch.Generator) -> Tensor:
        noise = torch.randn(x.shape, generator=generator)
        t, x_t, velocity = self.matcher.sample_location_and_conditional_flow(noise, x)
        return (self.network(x_t, t) - velocity).square().mean()

    def log_prob(self, x: Tensor) -> Tensor:
        noise, change = self._solve(x, 1.0, 0.0)
        return normal_log_prob(noise) + change

    def fine(self, x: Tensor) -> Tensor:
        return fine_solve(self.network, x)

    def sample_and_log_prob(self, number: int) -> tuple[Tensor, Tensor]:
        noise = torch.randn(number, 2)
        x, change = self._solve(noise, 0.0, 1.0)
        return x, normal_log_prob(noise) - change

    def _solve(self, x: Tensor, start: float, stop: float) -> tuple[Tensor, Tensor]:
        """Where x goes, and the integral of the trace."""
        from torchdiffeq import odeint

        def augmented(t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            velocity, matrix = jacobian(lambda x: self.network(x, t.expand(len(x))), state[0])
            return velocity, matrix.diagonal(dim1=1, dim2=2).sum(1)

        times = torch.tensor([start, stop])
        ends = odeint(augmented, (x, x.new_zeros(len(x))), times, atol=1e-4, rtol=1e-4, method="dopri5")
        return ends[0][-1], ends[1][-1]


class MetaFlowMatching(Model):
    """flow_matching's conditional optimal-transport path and its ODESolver."""

    packages = ("flow_matching", "torchdiffeq")

    def __init__(self, channels: int) -> None:
        from flow_matching.path import CondOTProbPath
        from flow_matching.solver import ODESolver

        self.network = MLPVelocity(2, channels=channels)
        self.path = CondOTProbPath()
        self.solver = ODESolver(velocity_model=lambda x, t: self.network(x, t.expand(len(x))))

    def loss(self, x: Tensor, generator: torch.Generator) -> Tensor:
        noise, t = torch.randn(x.shape, generator=generator), torch.rand(len(x), generator=generator)
        drawn = self.path.sample(x_0=noise, x_1=x, t=t)
        return (self.network(drawn.x_t, drawn.t) - drawn.dx_t).square().mean()

    def log_prob(self, x: Tensor) -> Tensor:
        _, log_prob = self.solver.compute_likelihood(
            x_1=x, log_p0=normal_log_prob, step_size=0.05, method="midpoint", exact_divergence=True
        )
        return log_prob

    def fine(self, x: Tensor) -> Tensor:
        return fine_solve(self.network, x)

    def sample_and_log_prob(self, number: int) -> tuple[Tensor, Tensor]:
        x = self.solver.sample(x_init=torch.randn(number, 2), step_size=0.05, method="midpoint")
        return x, self.log_prob(x)


class ZukoCNF(Model):
    """zuko's CNF by maximum likelihood."""

    packages = ("zuko",)

    def __init__(self, channels: int) -> None:
        import zuko

        self.network = zuko.flows.CNF(features=2, hidden_features=(channels, channels))

    def loss(self, x: Tensor, generator: torch.Generator) -> Tensor:
        return -self.network().log_prob(x).mean()

    def log_prob(self, x: Tensor) -> Tensor:
        return self.network().log_prob(x)

    def fine(self, x: Tensor) -> Tensor:
        network = copy.deepcopy(self.network).double()
        network.transform.atol = network.transform.rtol = 1e-9
        return network().log_prob(x.double())

    def sample_and_log_prob(self, number: int) -> tuple[Tensor, Tensor]:
        return self.network().rsample_and_log_prob((number,))


MODELS: dict[str, type[Model]] = {
    "nflib": Ours,
    "torchcfm": TorchCFM,
    "flow_matching": MetaFlowMatching,
    "zuko": ZukoCNF,
}
NAMES = {"nflib": "nflib, map of Heun-8", "torchcfm": "torchcfm OT-CFM", "zuko": "zuko CNF"}


def normal_log_prob(x: Tensor) -> Tensor:
    """Of the standard normal."""
    return -0.5 * x.square().sum(1) - 0.5 * x.shape[1] * math.log(2 * math.pi)


def fine_solve(velocity: nn.Module, x: Tensor) -> Tensor:
    """Log-densities of the flow along a velocity, in float64 at a tolerance of 1e-9."""
    flow = ODEFlow(copy.deepcopy(velocity), (2,), solver=Dopri5(1e-9, 1e-9), density="trace")
    return flow.double().log_prob(x.double())


def train(model: Model, density: Density, seconds: float, seed: int) -> int:
    """AdamW with cosine decay over the elapsed share of the processor time, and averaged weights; returns the steps."""
    network, steps = model.network.train(), 0
    averaged = [p.detach().clone() for p in network.parameters()]
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    generator = torch.Generator().manual_seed(seed)
    start = time.process_time()
    while (elapsed := time.process_time() - start) < seconds:
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * elapsed / seconds))
        optimizer.zero_grad(set_to_none=True)
        model.loss(density.sample(BATCH_SIZE, generator), generator).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()
        steps += 1
        with torch.no_grad():
            torch._foreach_lerp_(averaged, list(network.parameters()), 1 - min(EMA_DECAY, steps / (steps + 10)))
    with torch.no_grad():
        torch._foreach_copy_(list(network.parameters()), averaged)
    network.eval()
    return steps


@torch.no_grad()
def judged(model: Model, density: Density, number: int, seed: int) -> list[str]:
    """The figures of the table, of a trained model."""
    x = density.sample(NUM_HELD_OUT, torch.Generator().manual_seed(seed + 1))
    log_prob = model.log_prob(x)
    error = (log_prob[:NUM_FINE] - model.fine(x[:NUM_FINE])).abs().mean()
    alone = torch.cat([model.log_prob(row[None]) for row in x[:NUM_ALONE]])
    figures = [f"{log_prob.mean():.3f}", f"{error:.1e}", f"{(alone - log_prob[:NUM_ALONE]).abs().max():.0e}"]
    torch.manual_seed(seed)
    start = time.process_time()
    drawn, log_q = model.sample_and_log_prob(number)
    rate = number / (time.process_time() - start)
    if density.log_prob is None:
        return [*figures, "–", "–", f"{rate:.0f}"]
    weights = (density.log_prob(drawn).double() - log_q.double()).exp()
    ess = weights.sum().square() / weights.square().sum() / number
    mean = f"{weights.mean():.3f} ± {weights.std() / math.sqrt(number):.3f}"
    return [*figures, mean, f"{ess:.3f}", f"{rate:.0f}"]


def installed(names: Sequence[str]) -> list[str]:
    """Those models whose packages are installed; says which are left out."""
    found = []
    for name in names:
        missing = [p for p in MODELS[name].packages if importlib.util.find_spec(p) is None]
        if missing:
            print(f"{name} is left out: install it with pip install {' '.join(missing)}.")
        else:
            found.append(name)
    return found


def run(arguments: argparse.Namespace) -> list[list[Any]]:
    """The rows of the table."""
    rows: list[list[Any]] = []
    names = installed(arguments.models)
    for title in arguments.densities:
        density = DENSITIES[title]()
        if density.log_prob is not None:
            x = density.sample(NUM_HELD_OUT, torch.Generator().manual_seed(arguments.seed + 1))
            rows.append([title, "exact", "–", "–", f"{density.log_prob(x).mean():.3f}", *["–"] * 5])
        for name in names:
            torch.manual_seed(arguments.seed)
            model = MODELS[name](arguments.channels)
            steps = train(model, density, arguments.seconds, arguments.seed)
            entries = {NAMES.get(name, name): model}
            if isinstance(model, Ours):
                entries["nflib, trace of Dopri5"] = OursTraced(model)
            for entry, judge in entries.items():
                figures = judged(judge, density, arguments.samples, arguments.seed)
                rows.append([title, entry, count_parameters(judge.network), steps, *figures])
                print(*rows[-1], flush=True)
    return rows


def main() -> None:
    """Train every model on every density, and print the table."""
    parser = argument_parser(__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--densities", nargs="+", choices=DENSITIES, default=list(DENSITIES), help="which to fit")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), help="which packages")
    parser.add_argument("--seconds", type=float, default=6.0, help="processor time of each training")
    parser.add_argument("--samples", type=int, default=2000, help="draws of each model that are weighted")
    parser.add_argument("--channels", type=int, default=64, help="width of the velocity network")
    arguments = parser.parse_args()
    prepare(arguments)
    rows = run(arguments)
    print(f"\nTwo-dimensional densities, {arguments.seconds:g} s of processor time for each training")
    header = ["density", "model", "parameters", "steps", "log q", "error", "batch", "E[w]", "ESS", "samples/s"]
    print(markdown_table(header, rows))


if __name__ == "__main__":
    main()
