"""Markov chains at the target, from points that represent it already."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from nflib.dtypes import as_tensor
from nflib.errors import is_whole
from nflib.interfaces import stated
from nflib.montecarlo.adaptation import StepSizes, as_step_size, as_step_sizes, mean_acceptance
from nflib.montecarlo.densities import Target
from nflib.montecarlo.kernels import Kernel, Traits, as_kernel
from nflib.montecarlo.path import GeometricPath
from nflib.random import generator_of

__all__ = ["Chains", "run_chains"]


class Chains(NamedTuple):
    """Where Markov chains are after their steps.

    Attributes:
        x: positions, `(N, *event_shape)`.
        log_target: log p~(x), `(N,)`, float64; `-inf` where a chain could not start.
        acceptance: mean acceptance probability of the last step over the chains.
        step_size: the one that would come next, a length in units of x.
        num_evaluations: points at which the target was evaluated, with or without its gradient.
    """

    x: Tensor
    log_target: Tensor
    acceptance: float
    step_size: float
    num_evaluations: int


def run_chains(
    target: Target,
    x: Tensor,
    num_steps: int,
    *,
    kernel: Kernel | None = None,
    step_sizes: StepSizes | None = None,
    batch_size: int = 1024,
    generator: torch.Generator | None = None,
    seed: int | None = None,
) -> Chains:
    """Markov chain Monte Carlo at the target, a chain from each of the given points.

    Weighted points that represent the target, such as those of `smc`, still do so afterwards with the weights that
    they had.

    Args:
        target: has `log_prob(x)`; wrap an energy in kT as `BoltzmannDensity(energy)`.
        x: where the chains start, `(N, *event_shape)`.
        num_steps: kernel steps of each chain.
        kernel: `HMC()` (default), `MALA()`, or another one that leaves the target invariant without weights.
        step_sizes: a rule that chooses the kernel's step size; default `AcceptanceTarget()`.
        batch_size: how many points the target sees at once.
        generator: of the random numbers; neither this nor a seed means a seed from torch's global generator.
        seed: of a new generator, in place of one.

    Returns:
        Where the chains are after the last step.

    Raises:
        ValueError: numbers out of range, no points, generator and seed together, a kernel that weights its moves or
            draws from a proposal, and what `smc` refuses of a target.

    >>> import torch
    >>> from nflib.montecarlo import BoltzmannDensity
    >>> target = BoltzmannDensity(lambda x: 2.0 * (x - 3.0).square().sum(dim=-1))
    >>> chains = run_chains(target, torch.full((500, 2), 3.0), 50, seed=0)
    >>> 0.45 < chains.x.std() < 0.55
    tensor(True)
    """
    generator = generator_of(generator, seed)
    x = as_tensor(x)
    if not (is_whole(num_steps, 1) and is_whole(batch_size, 1) and len(x)):
        raise ValueError(
            f"run_chains: num_steps is {num_steps}, batch_size {batch_size}, and there are {len(x)} points; pass "
            "integers of 1 or more, and one point or more."
        )
    kernel = as_kernel(kernel)
    traits, name = stated(Traits, kernel), type(kernel).__name__
    weighted = f"run_chains: {name} weights its moves, and chains have no weights; use MALA or HMC."
    if traits.draws_proposal:
        raise ValueError(f"run_chains: {name} draws from a proposal, and there is none; use MALA or HMC.")
    if traits.weights_moves:
        raise ValueError(weighted)
    step_sizes = as_step_sizes(step_sizes)
    path = GeometricPath.of_target(target, batch_size)
    particles = kernel.init(path.evaluate(x, gradient=traits.needs_gradient), path)
    step_size = as_step_size(step_sizes.first(kernel, particles, path, 1.0, generator), kernel)
    acceptance = float("nan")
    for number in range(1, num_steps + 1):
        particles, move = kernel.step(particles, path, 1.0, step_size, generator)
        if move.log_weights is not None:
            raise ValueError(weighted)
        acceptance = mean_acceptance(move.acceptance)
        step_size = as_step_size(step_sizes.next(step_size, acceptance, kernel, number), kernel)
    return Chains(particles.x, particles.log_target, acceptance, step_size, path.num_evaluations)
