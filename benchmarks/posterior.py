"""Neural posterior estimation on two simulators: TARFlow with a vector context beside zuko's NSF, at equal time.

    OMP_NUM_THREADS=1 python benchmarks/posterior.py --threads 1 --seconds 100

Two moons (Greenberg et al. 2019, arXiv 1905.07488) has two parameters and two crescents; SLCP, "simple likelihood,
complex posterior" (Papamakarios et al. 2019, arXiv 1805.07226), has five parameters and four modes, seen through four
points of a Gaussian; both as in Lueckmann et al. 2021 (arXiv 2101.04653). Parameters are uniform in a box. All models
see the normal quantiles of the parameters under that prior, whose log-determinant is in the figures, so that none puts
mass outside the box; data are standardised. Of 10,000 simulations a tenth is for validation. All are trained by the
same loop (`nflib.training.fit`), on the same clock: the processor time of this process, which other work on the machine
hardly touches. Size, learning rate, weight decay, dropout and batch size were searched for each alike.

log q: mean log q(theta | x), in nats, of fresh simulations, beside that of the exact posterior. C2ST: cross-validated
accuracy of a classifier between draws of the model and of the exact posterior (0.5: it cannot tell), the mean over
observations. Both exact posteriors are drawn independently, by rejection. Trainings may be divided among processes:
`--problems` and `--runs` choose, and each run prints a line.
"""

from __future__ import annotations

import math
import statistics
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
import zuko
from common import argument_parser, count_parameters, markdown_table, median_and_range, prepare, trained
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import KFold, cross_val_score
from sklearn.neural_network import MLPClassifier
from torch import Tensor, nn

from nflib.flows import TARFlow
from nflib.training import TrainingResult

NUM_SIMULATIONS, NUM_HELD_OUT = 10_000, 2_000
CHECKS = 60
# Makes a model from the numbers of parameters and of data.
Build = Callable[[int, int], nn.Module]


class Problem(Protocol):
    """A simulator with a uniform prior on ``[-bound, bound]^dim``, and its exact posterior; all in float64."""

    bound: float
    dim: int
    data_dim: int

    def simulate(self, theta: Tensor, generator: torch.Generator) -> Tensor:
        """Data ``(N, data_dim)`` of parameters ``(N, dim)``."""
        ...

    def log_posterior(self, theta: Tensor, x: Tensor) -> Tensor:
        """Exact log p(theta | x) of pairs, ``(N,)``, normalised over the box."""
        ...

    def posterior(self, x: Tensor, num_samples: int, generator: torch.Generator) -> Tensor:
        """Independent draws ``(num_samples, dim)`` of the exact posterior of one x ``(data_dim,)``."""
        ...


class TwoMoons:
    """x = p + (-|theta_1 + theta_2|, theta_2 - theta_1) / √2, with p on a noisy half circle.

    ``p = (r cos a + 1/4, r sin a)``, a uniform in ±pi/2, r ~ N(0.1, 0.01²). Given x, p gives theta up to a reflection:
    the posterior draws p, and keeps what lies in the box.
    """

    bound, dim, data_dim = 1.0, 2, 2
    radius, width, offset = 0.1, 0.01, 0.25

    def simulate(self, theta: Tensor, generator: torch.Generator) -> Tensor:
        angle = math.pi * (torch.rand(len(theta), generator=generator, dtype=theta.dtype) - 0.5)
        radius = self.radius + self.width * torch.randn(len(theta), generator=generator, dtype=theta.dtype)
        across, along = self._turned(theta)
        return self._circle(angle, radius) + torch.stack([-across.abs(), along], dim=-1)

    def log_posterior(self, theta: Tensor, x: Tensor) -> Tensor:
        across, along = self._turned(theta)
        u, v = x[:, 0] + across.abs() - self.offset, x[:, 1] - along
        radius = torch.hypot(u, v)
        log_normal = -0.5 * ((radius - self.radius) / self.width).square() - math.log(
            self.width * math.sqrt(2 * math.pi)
        )
        log_likelihood = torch.where(u > 0, log_normal - (math.pi * radius).log(), -torch.inf)
        # The evidence is the share of all p, and of both reflections, that a theta in the box belongs to.
        angle = math.pi * ((torch.arange(200, dtype=x.dtype) + 0.5) / 200 - 0.5)
        quantile = torch.special.ndtri((torch.arange(20, dtype=x.dtype) + 0.5) / 20)
        points = self._circle(angle[:, None], self.radius + self.width * quantile).flatten(0, 1)
        shares = [self._solved(points, row, sign)[1].double().mean() for row in x for sign in (-1.0, 1.0)]
        return log_likelihood - torch.stack(shares).view(-1, 2).sum(-1).log()

    def posterior(self, x: Tensor, num_samples: int, generator: torch.Generator) -> Tensor:
        def propose(number: int) -> Tensor:
            points = self.simulate(x.new_zeros(number, 2), generator)
            sign = 1 - 2 * torch.randint(2, (number,), generator=generator)
            theta, is_inside = self._solved(points, x, sign)
            return theta[is_inside]

        return _collect(propose, num_samples)

    def _circle(self, angle: Tensor, radius: Tensor) -> Tensor:
        return torch.stack([radius * angle.cos() + self.offset, radius * angle.sin()], dim=-1)

    def _turned(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        return (theta[:, 0] + theta[:, 1]) / math.sqrt(2), (theta[:, 1] - theta[:, 0]) / math.sqrt(2)

    def _solved(self, points: Tensor, x: Tensor, sign: Tensor | float) -> tuple[Tensor, Tensor]:
        """The theta that x and these p belong to, and whether there is one in the box."""
        distance, along = points[:, 0] - x[0], x[1] - points[:, 1]
        across = sign * distance
        theta = torch.stack([across - along, across + along], dim=-1) / math.sqrt(2)
        return theta, (distance >= 0) & (theta.abs() <= self.bound).all(-1)


class SLCP:
    """Four points of N(m, S): m = (theta_1, theta_2), deviations theta_3² and theta_4², correlation tanh theta_5.

    The posterior is drawn by rejection. Without the box, m is normal given S, and p(S | x) is ``|S|^(-5/2) (S_11
    S_22)^(-1/4) exp(-tr(A S⁻¹) / 2)`` with the scatter A of the four points: an inverse Wishart of 2 degrees of freedom
    and scale A/2 times a weight ``(S_11 S_22)^(-1/4) exp(-tr(A S⁻¹) / 4)``, which is bounded since ``tr(A S⁻¹) ≥ A_ii /
    S_ii``. Signs of theta_3 and theta_4 are free.
    """

    bound, dim, data_dim = 3.0, 5, 8

    def simulate(self, theta: Tensor, generator: torch.Generator) -> Tensor:
        noise = torch.randn(len(theta), 4, 2, generator=generator, dtype=theta.dtype)
        return (theta[:, None, :2] + noise @ self._cholesky(theta).mT).flatten(1)

    def log_posterior(self, theta: Tensor, x: Tensor) -> Tensor:
        cholesky = self._cholesky(theta)
        residual = torch.linalg.solve_triangular(cholesky, (x.view(-1, 4, 2) - theta[:, None, :2]).mT, upper=False)
        log_det = 2 * cholesky.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        log_likelihood = -0.5 * residual.square().sum((1, 2)) - 2 * log_det - 4 * math.log(2 * math.pi)
        generator = torch.Generator().manual_seed(0)
        log_weights = torch.stack([self._log_mean_weight(row, generator) for row in x])
        _, scatter = self._statistics(x)
        # ∫ dm, the Jacobian of S by theta and its four signs, and the inverse Wishart's normaliser, of scale A/2.
        constant = -3 * math.log(2 * math.pi) - math.log(16) + math.log(4 * math.pi) - (scatter / 2).logdet()
        return log_likelihood - constant - log_weights

    def _log_mean_weight(self, x: Tensor, generator: torch.Generator, enough: int = 200) -> Tensor:
        """Logarithm of the mean weight of proposals, zero outside the box, from so many inside, of 200,000 at most."""
        pieces: list[Tensor] = []
        number = found = 0
        while found < enough and not (found and number >= 200_000):
            _, log_weight, is_inside = self._propose(x, 5 * enough, generator)
            pieces.append(log_weight[is_inside])
            number, found = number + len(log_weight), found + len(pieces[-1])
        return torch.cat(pieces).logsumexp(0) - math.log(number)

    def posterior(self, x: Tensor, num_samples: int, generator: torch.Generator) -> Tensor:
        _, scatter = self._statistics(x[None])
        bound = -0.25 * ((scatter[0].diagonal() / 2).log() + 1).sum()

        def propose(number: int) -> Tensor:
            theta, log_weight, is_inside = self._propose(x, number, generator)
            uniform = torch.rand(number, generator=generator, dtype=x.dtype)
            return theta[is_inside & (uniform.log() < log_weight - bound)]

        return _collect(propose, num_samples)

    def _propose(self, x: Tensor, number: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Parameters, the log-weight of each, and whether it lies in the box."""

        def normal(*shape: int) -> Tensor:
            return torch.randn(number, *shape, generator=generator, dtype=x.dtype)

        mean, scatter = self._statistics(x[None])
        wishart_factor = torch.linalg.cholesky(torch.linalg.inv(scatter[0] / 2)) @ normal(2, 2)
        factor = torch.linalg.inv(wishart_factor).mT  # S is it times its transpose
        covariance = factor @ factor.mT
        variances = covariance.diagonal(dim1=-2, dim2=-1)
        trace = (wishart_factor @ wishart_factor.mT * scatter).sum((1, 2))
        log_weight = -0.25 * variances.log().sum(-1) - 0.25 * trace
        signs = 1.0 - 2.0 * torch.randint(2, (number, 2), generator=generator)
        correlation = covariance[:, 0, 1] / variances.prod(-1).sqrt()
        centre = mean + 0.5 * (factor @ normal(2, 1))[..., 0]
        theta = torch.cat([centre, signs * variances**0.25, correlation.atanh()[:, None]], dim=-1)
        return theta, log_weight, (theta.abs() <= self.bound).all(-1)

    def _cholesky(self, theta: Tensor) -> Tensor:
        first, second = theta[:, 2].square(), theta[:, 3].square()
        correlation = theta[:, 4].tanh()
        rows = [first, torch.zeros_like(first), correlation * second, second / theta[:, 4].cosh()]
        return torch.stack(rows, dim=-1).unflatten(-1, (2, 2))

    def _statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean ``(N, 2)`` and scatter ``(N, 2, 2)`` of the four points."""
        points = x.view(-1, 4, 2)
        centred = points - points.mean(1, keepdim=True)
        return points.mean(1), centred.mT @ centred


def _collect(propose: Callable[[int], Tensor], num_samples: int) -> Tensor:
    """So many accepted draws."""
    pieces: list[Tensor] = []
    while sum(map(len, pieces)) < num_samples:
        pieces.append(propose(4 * num_samples))
    return torch.cat(pieces)[:num_samples]


PROBLEMS: dict[str, Problem] = {"two moons": TwoMoons(), "SLCP": SLCP()}


class Prior:
    """Uniform in the box of a problem; its normal quantiles are what the models see."""

    def __init__(self, problem: Problem):
        self.bound, self.dim = problem.bound, problem.dim

    def sample(self, number: int, generator: torch.Generator) -> Tensor:
        return self.bound * (2 * torch.rand(number, self.dim, generator=generator, dtype=torch.float64) - 1)

    def to_normal(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        z = torch.special.ndtri((theta / self.bound + 1) / 2)
        logabsdet = 0.5 * (z.square() + math.log(2 * math.pi)) - math.log(2 * self.bound)
        return z.float(), logabsdet.sum(-1)

    def from_normal(self, z: Tensor) -> Tensor:
        return self.bound * (2 * torch.special.ndtr(z.double()) - 1)


@dataclass(frozen=True)
class Simulations:
    """Normal quantiles of parameters ``(N, dim)``, standardised data ``(N, data_dim)``, log-determinants ``(N,)``."""

    z: Tensor
    x: Tensor
    logabsdet: Tensor

    def __getitem__(self, rows: slice | Tensor) -> Simulations:
        return Simulations(self.z[rows], self.x[rows], self.logabsdet[rows])

    def tensors(self) -> dict[str, Tensor]:
        """As training takes them."""
        return {"inputs": self.z, "context": self.x, "logabsdet": self.logabsdet}


class Task:
    """Simulations of a problem for training, validation and judgement, and draws of exact posteriors."""

    def __init__(self, problem: Problem, num_observations: int, num_samples: int, seed: int):
        self.problem, self.prior = problem, Prior(problem)
        generator = torch.Generator().manual_seed(seed)
        theta = self.prior.sample(NUM_SIMULATIONS + NUM_HELD_OUT + num_observations, generator)
        x = problem.simulate(theta, generator)
        self.mean, self.std = x[:NUM_SIMULATIONS].mean(0), x[:NUM_SIMULATIONS].std(0)
        z, logabsdet = self.prior.to_normal(theta)
        simulations = Simulations(z, self.standardise(x), logabsdet)
        train = NUM_SIMULATIONS * 9 // 10
        self.train, self.validation = simulations[:train], simulations[train:NUM_SIMULATIONS]
        held_out = slice(NUM_SIMULATIONS, NUM_SIMULATIONS + NUM_HELD_OUT)
        self.test, self._held_out = simulations[held_out], (theta[held_out], x[held_out])
        self.observations = x[NUM_SIMULATIONS + NUM_HELD_OUT :]
        self.references = [problem.posterior(row, num_samples, generator) for row in self.observations]
        self.others = [problem.posterior(row, num_samples, generator) for row in self.observations]

    def standardise(self, x: Tensor) -> Tensor:
        return ((x - self.mean) / self.std).float()

    def exact_log_density(self) -> float:
        """Mean log p(theta | x) of the held-out simulations: what no model exceeds, but by chance."""
        return self.problem.log_posterior(*self._held_out).mean().item()

    def discrepancies(self, draws: Sequence[Tensor], seed: int) -> list[float]:
        """The two-sample test of draws of each observation's posterior against exact ones."""
        return [two_sample_test(exact, own, seed) for exact, own in zip(self.references, draws, strict=True)]


def two_sample_test(exact: Tensor, own: Tensor, seed: int) -> float:
    """Accuracy, over five folds, of a network of two layers of ten units a dimension on standardised samples."""
    mean, std = exact.mean(0), exact.std(0)
    samples = ((torch.cat([exact, own]) - mean) / std).numpy()
    labels = np.repeat([0, 1], [len(exact), len(own)])
    units = 10 * samples.shape[1]
    classifier = MLPClassifier((units, units), max_iter=1000, random_state=seed)
    folds = KFold(5, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return float(cross_val_score(classifier, samples, labels, cv=folds).mean())


def log_density(model: nn.Module, batch: Simulations) -> Tensor:
    """log q of the parameters themselves, ``(B,)``: of a flow of ours, or of zuko's, called for a distribution."""
    density = model.log_prob(batch.z, batch.x) if isinstance(model, TARFlow) else model(batch.x).log_prob(batch.z)
    return density + batch.logabsdet


def objective(model: nn.Module, batch: dict[str, Tensor], generator: torch.Generator) -> tuple[Tensor, dict[str, Any]]:
    """Minus the mean of `log_density`."""
    return -log_density(model, Simulations(batch["inputs"], batch["context"], batch["logabsdet"])).mean(), {}


@torch.no_grad()
def draw(model: nn.Module, task: Task, number: int, seed: int) -> list[Tensor]:
    """Draws of the model's posterior of each observation."""
    torch.manual_seed(seed)
    contexts = task.standardise(task.observations)
    given = [model.given(x) if isinstance(model, TARFlow) else model(x) for x in contexts]
    return [task.prior.from_normal(density.sample((number,))) for density in given]


def train(build: Build, task: Task, seconds: float, seed: int) -> tuple[nn.Module, TrainingResult]:
    """The model of the averaged weights that are best in validation, and what became of its training."""
    torch.manual_seed(seed)
    model = build(task.problem.dim, task.problem.data_dim)
    result = trained(
        model,
        task.train.tensors(),
        seconds,
        seed,
        objective,
        validation=task.validation.tensors(),
        batch_size=128,
        learning_rate=5e-3,
        weight_decay=0.0,
        gradient_clip=5.0,
        ema_decay=0.99,
        validation_interval=None,
        validation_seconds=seconds / CHECKS,
        validation_batch_size=len(task.validation.z),
    )
    return model, result


def tarflow(dim: int, data_dim: int) -> TARFlow:
    """One token holds all parameters: splines, each given the numbers before it, in alternating order."""
    return TARFlow((dim,), dim, 32, 3, 1, head_dim=32, conditional="spline", context_shape=(data_dim,))


def nsf(dim: int, data_dim: int, hidden: int) -> nn.Module:
    """zuko's autoregressive splines, so wide."""
    return zuko.flows.NSF(dim, data_dim, transforms=3, hidden_features=(hidden, hidden))


ENTRANTS: dict[str, dict[str, Build]] = {
    "two moons": {"nflib TARFlow": tarflow, "zuko NSF": partial(nsf, hidden=128)},
    "SLCP": {"nflib TARFlow": tarflow, "zuko NSF": partial(nsf, hidden=64)},
}


def main() -> None:
    """Train every entrant on every problem, and print the table."""
    parser = argument_parser(__doc__)
    parser.add_argument("--problems", nargs="+", choices=PROBLEMS, default=list(PROBLEMS), help="which to run")
    parser.add_argument("--seconds", type=float, default=100.0, help="processor time of each training")
    parser.add_argument("--runs", type=int, nargs="+", default=[0, 1, 2], help="seeds of trainings, one of each model")
    parser.add_argument("--observations", type=int, default=5, help="exact posteriors to compare with")
    parser.add_argument("--samples", type=int, default=500, help="draws of each posterior")
    arguments = parser.parse_args()
    prepare(arguments)
    rows: list[list[object]] = []
    for name in arguments.problems:
        task = Task(PROBLEMS[name], arguments.observations, arguments.samples, arguments.seed)
        exact = task.discrepancies(task.others, arguments.seed)
        rows.append([name, "exact posterior", "–", "–", f"{task.exact_log_density():.3f}", f"{np.mean(exact):.3f}"])
        print(*rows[-1], flush=True)
        # In turns, so that what else the machine does meets all alike.
        results: dict[str, list[tuple[int, int, float, float]]] = {entry: [] for entry in ENTRANTS[name]}
        for seed in arguments.runs:
            for entry, build in ENTRANTS[name].items():
                model, result = train(build, task, arguments.seconds, seed)
                with torch.no_grad():
                    validation, test = (log_density(model, part).mean().item() for part in (task.validation, task.test))
                accuracies = task.discrepancies(draw(model, task, arguments.samples, seed), seed)
                results[entry].append((count_parameters(model), result.steps, test, float(np.mean(accuracies))))
                print(
                    f"{name}, {entry}, seed {seed}: {result.steps} steps, best {result.best_step}, validation "
                    f"{validation:.3f}, test {test:.3f}, C2ST {np.round(accuracies, 3)}",
                    flush=True,
                )
        for entry, runs in results.items():
            parameters, steps, test_figures, c2st = zip(*runs, strict=True)
            figures = [median_and_range(test_figures), median_and_range(c2st)]
            rows.append([name, entry, parameters[0], int(statistics.median(steps)), *figures])
    print(f"\nPosteriors, {arguments.seconds:g} s of processor time for each training")
    print(markdown_table(["problem", "model", "parameters", "steps", "log q", "C2ST"], rows))


if __name__ == "__main__":
    main()
