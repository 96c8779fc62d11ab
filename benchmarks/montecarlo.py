"""Sequential Monte Carlo: error of the log-normaliser against cost, for us, `blackjax` and `particles`, in one run.

    python benchmarks/montecarlo.py --runs 10

Each sampler goes from the same normal proposal along the geometric path to the same targets, of known normaliser, with
adaptive temperatures: ours and blackjax with Hamiltonian Monte Carlo (blackjax does not adapt the step: it is given
the one that ours ends with), ours with MALA as well, particles with its random walk, calibrated on the particles. Two
samplers meet at equal error, not at equal particle number: compare `evaluations × error²` and `seconds × error²`.
A peer that is not installed is left out, and said so: into a scratch environment, `pip install blackjax particles`,
then `pip install --no-deps particles==0.4`, for beside numpy 2 pip chooses 0.3, which does not run there.
"""

import importlib.util
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from common import argument_parser, markdown_table, prepare
from scipy.integrate import quad

from nflib.montecarlo import HMC, MALA, AdaptiveTemperatures, BoltzmannDensity, smc

ESS = 0.8
LEAPFROG = 8
MOVES = 2


@dataclass(frozen=True)
class Problem:
    """A target: its energy written once, for the functions of torch, jax.numpy or numpy, and its log-normaliser."""

    dim: int
    scale: float
    energy: Callable[[Any, Any], Any]
    log_normalizer: float


class Outcome(NamedTuple):
    log_normalizer: float
    evaluations: int
    seconds: float
    step_size: float = math.nan


class Normal:
    """The proposal: isotropic normal, in float64."""

    def __init__(self, dim: int, scale: float) -> None:
        self.dim, self.scale = dim, scale

    def log_prob(self, x: torch.Tensor) -> torch.Tensor:
        return -0.5 * (x / self.scale).square().sum(-1) - self.dim * math.log(self.scale * math.sqrt(2 * math.pi))

    def sample_and_log_prob(
        self, num_samples: int, *, generator: torch.Generator | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.scale * torch.randn(num_samples, self.dim, generator=generator, dtype=torch.float64)
        return x, self.log_prob(x)


def problems() -> dict[str, Problem]:
    """A correlated Gaussian off its place, ten modes, and a double well; `m` is torch, jax.numpy or numpy."""
    dim, shift = 30, 1.5
    index = np.arange(dim)
    covariance = 0.5 * 0.8 ** np.abs(index[:, None] - index)
    precision = np.linalg.inv(covariance)
    means = 16 * (np.random.default_rng(3).random((10, 2)) - 0.5)

    def array(m: Any, values: np.ndarray) -> Any:
        return torch.from_numpy(values) if m is torch else m.asarray(values)

    def gaussian(x: Any, m: Any) -> Any:
        return 0.5 * (((x - shift) @ array(m, precision)) * (x - shift)).sum(-1)

    def modes(x: Any, m: Any) -> Any:
        exponents = -2.0 * ((x[..., None, :] - array(m, means)) ** 2).sum(-1)
        top = m.amax(exponents, -1)
        return -top - m.log(m.exp(exponents - top[..., None]).sum(-1))

    def well(x: Any, m: Any) -> Any:
        first = x[..., 0]
        return first**4 - 6 * first**2 + first + 2 * (x[..., 1:] ** 2).sum(-1)

    integral, _ = quad(lambda x: math.exp(-(x**4) + 6 * x**2 - x - 10), -6, 6, epsabs=1e-13)
    return {
        "Gaussian, 30 d": Problem(
            dim, 1.0, gaussian, 0.5 * dim * math.log(2 * math.pi) + 0.5 * np.linalg.slogdet(covariance)[1]
        ),
        "ten modes, 2 d": Problem(2, 4.0, modes, math.log(5 * math.pi)),
        "double well, 8 d": Problem(8, 1.5, well, math.log(integral) + 10 + 3.5 * math.log(math.pi / 2)),
    }


def run_ours(problem: Problem, count: int, seed: int, kernel: Any, moves: int) -> Outcome:
    """nflib."""
    start = time.perf_counter()
    samples = smc(
        Normal(problem.dim, problem.scale),
        BoltzmannDensity(lambda x: problem.energy(x, torch)),
        count,
        kernel=kernel,
        moves=moves,
        temperatures=AdaptiveTemperatures(ESS),
        batch_size=count,
        seed=seed,
    )
    seconds = time.perf_counter() - start
    history = samples.history
    return Outcome(
        samples.log_normalizer, history.num_evaluations[-1], seconds, float(np.mean(history.step_sizes[-4:]))
    )


def blackjax_runner(problem: Problem, count: int, step_size: float) -> Callable[[int], Outcome]:
    """blackjax's adaptive tempered SMC; its step is compiled once, outside of the time that is measured."""
    import blackjax
    import blackjax.smc.resampling as resampling
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_enable_x64", True)

    def log_prior(x: Any) -> Any:
        return -0.5 * ((x / problem.scale) ** 2).sum(-1) - problem.dim * math.log(
            problem.scale * math.sqrt(2 * math.pi)
        )

    algorithm = blackjax.adaptive_tempered_smc(
        log_prior,
        lambda x: -problem.energy(x, jnp) - log_prior(x),
        blackjax.hmc.build_kernel(),
        blackjax.hmc.init,
        {
            "step_size": jnp.array([step_size]),
            "inverse_mass_matrix": jnp.ones((1, problem.dim)),
            "num_integration_steps": jnp.array([LEAPFROG]),
        },
        resampling.systematic,
        ESS,
        num_mcmc_steps=MOVES,
    )
    step = jax.jit(algorithm.step)

    def run(seed: int) -> Outcome:
        key, draw_key = jax.random.split(jax.random.key(seed))
        start = time.perf_counter()
        state = algorithm.init(problem.scale * jax.random.normal(draw_key, (count, problem.dim)))
        log_normalizer, temperatures = 0.0, 0
        while float(state.tempering_param) < 1.0:
            key, step_key = jax.random.split(key)
            state, info = step(step_key, state)
            log_normalizer += float(info.log_likelihood_increment)
            temperatures += 1
        seconds = time.perf_counter() - start
        return Outcome(log_normalizer, count * (1 + temperatures * (1 + MOVES * LEAPFROG)), seconds)

    run(0)
    return run


def particles_runner(problem: Problem, count: int, length: int) -> Callable[[int], Outcome]:
    """particles' adaptive tempering with a random walk of `length` - 1 steps, not waste-free (same particle number)."""
    import particles
    from particles import distributions
    from particles.smc_samplers import AdaptiveTempering, TemperingBridge

    class Bridge(TemperingBridge):
        evaluations = 0

        def logtarget(self, theta: np.ndarray) -> np.ndarray:
            Bridge.evaluations += len(theta)
            return -problem.energy(theta, np)

    base = distributions.MvNormal(loc=np.zeros(problem.dim), scale=problem.scale, cov=np.eye(problem.dim))

    def run(seed: int) -> Outcome:
        np.random.seed(seed)  # noqa: NPY002 (particles knows no other generator)
        Bridge.evaluations = 0
        model = AdaptiveTempering(Bridge(base_dist=base), wastefree=False, len_chain=length, ESSrmin=ESS)
        sampler = particles.SMC(fk=model, N=count, ESSrmin=1.0, verbose=False)
        start = time.perf_counter()
        sampler.run()
        return Outcome(sampler.logLt, Bridge.evaluations, time.perf_counter() - start)

    run(0)
    return run


def summarize(name: str, problem: Problem, outcomes: list[Outcome]) -> list[str]:
    """A row of the table."""
    errors = np.array([outcome.log_normalizer for outcome in outcomes]) - problem.log_normalizer
    mean_square = float(np.mean(errors**2))
    evaluations = float(np.mean([outcome.evaluations for outcome in outcomes]))
    seconds = float(np.median([outcome.seconds for outcome in outcomes]))
    return [
        name,
        f"{math.sqrt(mean_square):.3f}",
        f"{errors.mean():+.3f}",
        f"{evaluations:.3g}",
        f"{seconds:.3f}",
        f"{evaluations * mean_square:.3g}",
        f"{seconds * mean_square:.2g}",
    ]


def main() -> None:
    """Print the table."""
    parser = argument_parser(__doc__)
    parser.add_argument("--runs", type=int, default=10, help="runs of each sampler")
    parser.add_argument("--num_samples", type=int, default=1000, help="particles")
    arguments = parser.parse_args()
    prepare(arguments)
    installed = {name: importlib.util.find_spec(name) is not None for name in ("blackjax", "particles")}
    for name, found in installed.items():
        if not found:
            print(f"{name} is not installed: left out.")
    header = [
        "target",
        "sampler",
        "RMS error / nats",
        "mean error",
        "evaluations",
        "seconds",
        "eval × err²",
        "s × err²",
    ]
    rows = []
    for title, problem in problems().items():
        count, seeds = arguments.num_samples, range(arguments.seed + 1, arguments.seed + 1 + arguments.runs)
        # The first run of ours pays for torch's warm-up, and tells blackjax its step.
        step_size = run_ours(problem, count, 0, HMC(num_leapfrog=LEAPFROG), MOVES).step_size
        runners: dict[str, Callable[[int], Outcome]] = {
            "nflib, HMC": partial(run_ours, problem, count, kernel=HMC(num_leapfrog=LEAPFROG), moves=MOVES),
            "nflib, MALA": partial(run_ours, problem, count, kernel=MALA(), moves=MOVES * LEAPFROG),
        }
        if installed["blackjax"]:
            runners["blackjax, HMC"] = blackjax_runner(problem, count, step_size)
        if installed["particles"]:
            runners["particles, random walk"] = particles_runner(problem, count, MOVES * LEAPFROG + 1)
        outcomes: dict[str, list[Outcome]] = {name: [] for name in runners}
        for seed in seeds:
            for name, run in runners.items():
                outcomes[name].append(run(seed))
        rows += [[title, *summarize(name, problem, results)] for name, results in outcomes.items()]
    print(f"{arguments.num_samples} particles, {arguments.runs} runs; an evaluation is one energy, with its gradient")
    print("for HMC and MALA; times of blackjax and particles without compilation")
    print(markdown_table(header, rows))


if __name__ == "__main__":
    main()
