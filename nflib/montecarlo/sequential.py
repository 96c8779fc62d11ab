"""Sequential Monte Carlo along the geometric path from a proposal to a target (Del Moral, Doucet & Jasra 2006)."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from nflib.errors import is_whole
from nflib.interfaces import stated
from nflib.io.arrays import within
from nflib.montecarlo.adaptation import StepSizes, as_step_sizes
from nflib.montecarlo.checkpoint import load_state, save_state
from nflib.montecarlo.densities import Proposal, Target
from nflib.montecarlo.diagnostics import log_mean_weight
from nflib.montecarlo.history import History
from nflib.montecarlo.kernels import Kernel, Traits, as_kernel
from nflib.montecarlo.path import GeometricPath
from nflib.montecarlo.resampling import SCHEMES
from nflib.montecarlo.run import Run, RunState
from nflib.montecarlo.temperatures import Temperatures, as_rule
from nflib.montecarlo.weighted_samples import WeightedSamples
from nflib.random import generator_of

__all__ = ["SMCSamples", "check_smc_options", "smc"]


@dataclass(frozen=True, eq=False, repr=False)
class SMCSamples(WeightedSamples):
    """Weighted particles of `smc`, with the history of the run.

    Attributes:
        history: what happened at each temperature, a `History`.

    All others are those of `WeightedSamples`; `num_rejected` counts the draws of the proposal that were given weight
    zero for a position or a density that was not finite. Resampling since has put other particles in their place.
    """

    history: History = field(default_factory=History)

    def _arrays(self) -> dict[str, Any]:
        return super()._arrays() | {f"history.{name}": value for name, value in self.history.arrays().items()}

    @classmethod
    def _further(cls, arrays: Mapping[str, Any]) -> dict[str, Any]:
        history = within("history", arrays)  # which files of earlier versions do not have
        return {"history": History.from_arrays(history)} if history else {}


def smc(
    proposal: Proposal | torch.distributions.Distribution,
    target: Target | torch.distributions.Distribution,
    num_samples: int,
    *,
    kernel: Kernel | None = None,
    temperatures: Temperatures | Iterable[float] | None = None,
    moves: int = 1,
    final_moves: int = 0,
    num_draws: int | None = None,
    draws: WeightedSamples | None = None,
    step_sizes: StepSizes | None = None,
    resampling: str = "systematic",
    resampling_threshold: float = 0.5,
    batch_size: int = 1024,
    generator: torch.Generator | None = None,
    seed: int | None = None,
    allow_stochastic: bool = False,
    checkpoint: str | Path | None = None,
    labels: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> SMCSamples:
    """Weighted samples of a target p~ by sequential Monte Carlo that starts from draws of a proposal q.

    The particles pass through the densities `q^(1-b) p~^b` from b = 0 to b = 1, the target itself. At each inverse
    temperature b' after b they are weighted by `(p~/q)^(b'-b)` where they stand, resampled if their effective sample
    size is low, and moved by a kernel that leaves the density at b' invariant, or weights its moves (ULA). The mean
    weight estimates the normaliser of p~; its standard error comes from the particles' genealogy. Particles without a
    finite density have weight zero and are counted, and moves to such points are rejected.

    Args:
        proposal: what `as_proposal` takes: a flow, a torch or nflows distribution, or an object with
            `sample_and_log_prob(num_samples, generator=...)` and `log_prob(x)`. One without `log_prob`, such as
            `DiffusionProposal`, has no densities between q and p~: its draws are weighted to the target at once,
            resampled if need be, and moved at the target.
        target: has `log_prob(x)`; wrap an energy in kT as `BoltzmannDensity(energy)`. Kernels that need a gradient
            get it from autograd.
        num_samples: how many weighted particles there are at the end, two or more.
        kernel: `HMC()` (default), `MALA()`, `ULA()`, `IndependentMetropolis()`, or an object with `init` and `step`.
        temperatures: rising inverse temperatures that end in 1, any iterable of numbers, or a rule that chooses them;
            default `AdaptiveTemperatures()`.
        moves: kernel steps at each temperature.
        final_moves: further steps at the target, which do not evaluate the proposal: cheap where it is a large flow.
            They need a proposal with density wherever the target has any.
        num_draws: how many to draw from the proposal; default num_samples. Of more, num_samples are resampled at the
            first temperature, which for `AdaptiveTemperatures` is where the draws are worth that many: most draws of a
            poor proposal then go before a move is paid for.
        draws: samples that `importance_sample` drew from this proposal and weighted to this target, to begin with
            instead of drawing anew; in place of num_draws. Give another seed than theirs.
        step_sizes: a rule that chooses the kernel's step size; default `AcceptanceTarget()`. `FixedStepSizes` keeps or
            replays step sizes.
        resampling: "multinomial", "stratified", "systematic" or "residual"; see `resample`.
        resampling_threshold: resample below this fraction of effective samples; 0 never does (annealed importance
            sampling, Neal 2001), 1 always.
        batch_size: how many points a density sees at once. It belongs to the seed: another one gives other draws.
        generator: of the random numbers; neither this nor a seed means a seed from torch's global generator.
        seed: of a new generator, in place of one.
        allow_stochastic: also take a proposal whose log-densities are estimates, which is wrong in expectation.
        checkpoint: an .npz file, replaced after the draws and every temperature; a run that finds it goes on where it
            was stopped, and ends with the same numbers.
        labels: of the run, such as a temperature: what JSON takes, by name. A checkpoint of another label is refused,
            however alike the densities are.
        progress: show a progress bar.

    Returns:
        num_samples particles at the target, on the CPU, with their weights, both log-densities (`log_prob` is None for
        a proposal without `log_prob`) and the history of the run.

    Raises:
        ValueError: numbers out of range; generator and seed, or draws and num_draws, together; an object that is no
            kernel or rule; draws without their densities, or of another proposal or target; an unknown scheme; a
            proposal or target that `as_proposal` or `as_target` refuses; temperatures, or a kernel that draws from the
            proposal, for a proposal without `log_prob`; a log-density that is not one number a sample or has no
            gradient; final moves to where the proposal has no density; a rule that gives no inverse temperature above
            the present one, or no step size; or a checkpoint of another run.

    >>> import torch
    >>> from nflows.distributions import StandardNormal
    >>> from nflib.montecarlo import BoltzmannDensity
    >>> target = BoltzmannDensity(lambda x: 2.0 * (x - 3.0).square().sum(dim=-1))
    >>> samples = smc(StandardNormal([2]), target, 1000, seed=0)
    >>> abs(samples.log_normalizer - 0.4516) < 4 * samples.log_normalizer_standard_error  # log(pi / 2)
    True
    """
    generator = generator_of(generator, seed)
    if draws is not None:
        if num_draws is not None:
            raise ValueError("smc: both draws and num_draws are given; the first say how many there are.")
        if draws.log_prob is None or draws.log_target is None or draws.ancestors is not None or draws.clipped:
            raise ValueError("smc: draws must be as importance_sample gives them, with both densities and not clipped.")
        num_draws = len(draws)
    num_draws = num_samples if num_draws is None else num_draws
    check_smc_options(num_samples, num_draws, kernel=kernel, moves=moves, final_moves=final_moves)
    # Numbers of numpy are no numbers of JSON, in which the checkpoint keeps them.
    counts = (num_samples, num_draws, moves, final_moves)
    num_samples, num_draws, moves, final_moves = (operator.index(number) for number in counts)
    if not is_whole(batch_size, 1):
        raise ValueError(f"smc: batch_size is {batch_size}; pass an integer of 1 or more.")
    if resampling not in SCHEMES:
        raise ValueError(f"smc: unknown resampling scheme {resampling!r}; choose one of {', '.join(SCHEMES)}.")
    if not 0.0 <= resampling_threshold <= 1.0:
        raise ValueError(f"smc: resampling_threshold is {resampling_threshold}; pass a fraction from 0 to 1.")
    geometric_path = GeometricPath(proposal, target, batch_size, allow_stochastic=allow_stochastic)
    if not geometric_path.is_geometric:
        if temperatures is not None or stated(Traits, kernel).draws_proposal:
            raise ValueError(
                f"smc: the proposal ({type(proposal).__name__}) has no log_prob(x), so there are no temperatures "
                "between it and the target, nor a kernel that draws from it; leave them out."
            )
        temperatures = (1.0,)
    run = Run(
        num_samples,
        num_draws,
        geometric_path,
        as_kernel(kernel),
        as_rule(temperatures),
        as_step_sizes(step_sizes),
        moves,
        final_moves,
        resampling,
        float(resampling_threshold),
        generator,
    )
    settings = {**(labels or {}), **run.settings(), "seed": None if seed is None else int(seed)}
    path = None if checkpoint is None else Path(checkpoint)
    if path is not None and path.exists():
        state = load_state(path, generator, settings, run.path.device())
        run.resume(state, path)
    else:
        state = run.start(draws)
        if path is not None:
            save_state(path, state, generator, settings)
    with _bar(progress) as show:
        while not run.is_done(state):
            show(state)
            state = run.advance(state) if state.inverse_temperature < 1.0 else run.finish(state)
            if path is not None:
                save_state(path, state, generator, settings)
        show(state)
    return _result(state, geometric_path.is_geometric)


def check_smc_options(
    num_samples: int,
    num_draws: int | None = None,
    *,
    kernel: Kernel | None = None,
    moves: int = 1,
    final_moves: int = 0,
) -> None:
    """Check options of `smc` before it runs, for programs that have long work to do first.

    Args:
        num_samples: of `smc`, two or more.
        num_draws: of `smc`, num_samples or more; None for as many.
        kernel: of `smc`; None for the default one.
        moves: of `smc`, one or more.
        final_moves: of `smc`, zero or more.

    Raises:
        ValueError: numbers out of range, an object that is no kernel, final moves of a kernel that draws from the
            proposal.
    """
    kernel = as_kernel(kernel)
    num_draws = num_samples if num_draws is None else num_draws
    if not (is_whole(num_samples, 2) and is_whole(moves, 1) and is_whole(final_moves, 0)):
        raise ValueError(
            f"smc: num_samples is {num_samples}, moves {moves}, final_moves {final_moves}; pass integers, 2, 1 and 0 "
            "or more."
        )
    if not is_whole(num_draws, 0):
        raise ValueError(f"smc: num_draws is {num_draws}; pass an integer.")
    if num_draws < num_samples:
        raise ValueError(f"smc: num_draws is {num_draws}, fewer than the {num_samples} samples; draw as many or more.")
    if final_moves and stated(Traits, kernel).draws_proposal:
        raise ValueError(
            f"smc: final_moves ask the proposal nothing, but {type(kernel).__name__} draws from it; use moves."
        )


def _result(state: RunState, is_geometric: bool) -> SMCSamples:
    particles = state.particles
    return SMCSamples(
        x=particles.x.cpu(),
        log_weights=state.log_weights.cpu(),
        log_prob=particles.log_proposal.cpu() if is_geometric else None,
        log_target=particles.log_target.cpu(),
        num_rejected=state.num_rejected,
        ancestors=state.ancestors.cpu(),
        resamplings=state.resamplings,
        history=state.history,
    )


@contextmanager
def _bar(show: bool) -> Iterator[Any]:
    """A function that takes the state after each temperature."""
    if not show:
        yield lambda state: None
        return
    from tqdm.auto import tqdm

    with tqdm(total=1.0, desc="smc", unit="", bar_format="{desc} {percentage:3.0f}% |{bar}| {elapsed}{postfix}") as bar:

        def update(state: RunState) -> None:
            bar.n = state.inverse_temperature
            if state.history:
                bar.set_postfix(
                    ESS=f"{state.history.effective_sample_size[-1]:.0f}",
                    acceptance=f"{state.history.acceptance[-1]:.2f}",
                    log_Z=f"{log_mean_weight(state.log_weights):.2f}",
                )
            bar.refresh()

        yield update
