"""Sequential Monte Carlo along the geometric path from a proposal to a target (Del Moral, Doucet & Jasra 2006)."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from nflib.distributions import is_estimate
from nflib.errors import as_number, is_whole
from nflib.io.arrays import within
from nflib.montecarlo.adaptation import StepSizes, as_step_size, as_step_sizes, mean_acceptance
from nflib.montecarlo.checkpoint import RunState, load_state, save_state
from nflib.montecarlo.densities import Proposal, Target
from nflib.montecarlo.diagnostics import effective_sample_size, log_mean_weight, normalized_weights
from nflib.montecarlo.genealogy import Resamplings
from nflib.montecarlo.history import History
from nflib.montecarlo.kernels import Kernel, as_kernel
from nflib.montecarlo.path import GeometricPath, Particles
from nflib.montecarlo.resampling import SCHEMES, resample
from nflib.montecarlo.temperatures import Temperatures, as_rule, conditional_ess_fraction
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
        if temperatures is not None or getattr(kernel, "draws_proposal", False):
            raise ValueError(
                f"smc: the proposal ({type(proposal).__name__}) has no log_prob(x), so there are no temperatures "
                "between it and the target, nor a kernel that draws from it; leave them out."
            )
        temperatures = (1.0,)
    run = _Run(
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
    settings = run.settings() | {"seed": None if seed is None else int(seed)}
    path = None if checkpoint is None else Path(checkpoint)
    state = None
    if path is not None and path.exists():
        state = load_state(path, generator, settings, run.path.device())
    if state is None:
        state = run.start(draws)
        if path is not None:
            save_state(path, state, generator, settings)
    else:
        run.resume(state, path)
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
    if final_moves and getattr(kernel, "draws_proposal", False):
        raise ValueError(
            f"smc: final_moves ask the proposal nothing, but {type(kernel).__name__} draws from it; use moves."
        )


@dataclass(frozen=True)
class _Run:
    """What stays the same from one temperature to the next."""

    num_samples: int
    num_draws: int
    path: GeometricPath
    kernel: Kernel
    temperatures: Temperatures
    step_sizes: StepSizes
    moves: int
    final_moves: int
    resampling: str
    resampling_threshold: float
    generator: torch.Generator

    def settings(self) -> dict[str, Any]:
        """What a checkpoint must agree on."""
        plugs = {name: getattr(self, name) for name in ("kernel", "temperatures", "step_sizes")}
        # Only dataclasses have a repr that says the same in another process.
        described = {
            name: repr(plug) if hasattr(plug, "__dataclass_fields__") else type(plug).__name__
            for name, plug in plugs.items()
        }
        numbers = ("num_samples", "num_draws", "moves", "final_moves", "resampling", "resampling_threshold")
        return described | {name: getattr(self, name) for name in numbers}

    def start(self, draws: WeightedSamples | None) -> RunState:
        everyone_moves = self.num_draws == self.num_samples and self.path.is_geometric
        gradient = everyone_moves and getattr(self.kernel, "needs_gradient", False)
        if draws is None:
            particles = self.path.draw(self.num_draws, self.generator, gradient=gradient)
        else:
            particles = self.path.particles_of(draws)
            if other := self._changed_density(particles):
                raise ValueError(f"smc: the draws are of another {other}; draw and weight them with those given here.")
        if everyone_moves:
            particles = self.kernel.init(particles, self.path)
        log_weights = torch.where(particles.alive, 0.0, -torch.inf).to(torch.float64)
        return RunState(
            particles,
            log_weights,
            torch.arange(self.num_draws, device=particles.x.device),
            History(),
            resamplings=Resamplings(num_draws=self.num_draws),
            num_rejected=int((~particles.alive).sum()),
            num_evaluations=self.path.num_evaluations,
            num_gradients=self.path.num_gradients,
        )

    def resume(self, state: RunState, path: Path | None) -> None:
        """Take up the counts; raises ValueError where the densities are not those that the checkpoint was made with."""
        if other := self._changed_density(state.particles):
            raise ValueError(f"{path} belongs to a run with another {other}; name another file.")
        self.path.num_evaluations, self.path.num_gradients = state.num_evaluations, state.num_gradients

    def _changed_density(self, particles: Particles) -> str | None:
        """Which density, "target" or "proposal", is another than that which a few particles have; None where both are
        the same. What is asked for this is not counted."""
        some = particles.select(particles.alive.nonzero().flatten()[:4])
        if len(some.x) == 0:
            return None
        counted = self.path.num_evaluations
        again = self.path.evaluate(some.x)
        self.path.num_evaluations = counted
        pairs = {"target": (some.log_target, again.log_target)}
        if self.path.is_geometric and not is_estimate(self.path.proposal):
            pairs["proposal"] = (some.log_proposal, again.log_proposal)
        return next((name for name, pair in pairs.items() if not torch.allclose(*pair, rtol=1e-2, atol=1e-1)), None)

    def advance(self, state: RunState) -> RunState:
        """The state at the next inverse temperature."""
        particles, log_weights, ancestors = state.particles, state.log_weights, state.ancestors
        history = state.history
        log_ratio = particles.log_ratio
        count = len(log_weights)
        temperatures: Any = self.temperatures
        if count > self.num_samples and hasattr(temperatures, "keeping"):
            temperatures = temperatures.keeping(self.num_samples / count)
        chosen = temperatures.next(state.inverse_temperature, log_weights, log_ratio)
        inverse_temperature = as_number(chosen)
        if not state.inverse_temperature < inverse_temperature <= 1.0:
            raise ValueError(
                f"smc: the rule {type(temperatures).__name__} gave {chosen!r} as the inverse temperature after "
                f"{state.inverse_temperature}; it must give a number above that, up to 1."
            )
        increments = (inverse_temperature - state.inverse_temperature) * log_ratio
        history.conditional_ess_fraction.append(conditional_ess_fraction(log_weights, increments))
        before = log_mean_weight(log_weights)
        log_weights = log_weights + increments
        ess = effective_sample_size(log_weights)
        history.effective_sample_size.append(ess)
        history.num_particles.append(count)

        resamplings = state.resamplings
        too_many = count > self.num_samples
        wanted = ess < self.resampling_threshold * count or self.resampling_threshold == 1.0 or too_many
        resampled = wanted and ess > 0.0
        if resampled:
            weights = normalized_weights(log_weights)
            parents = resample(weights, self.num_samples, self.generator, self.resampling)
            resamplings = resamplings.after(log_weights, self.resampling, self.num_samples)
            history.parents.append(parents.to("cpu", torch.int32))
            particles, ancestors = particles.select(parents), ancestors[parents]
            log_weights = torch.full_like(log_weights[parents], log_mean_weight(log_weights))
        elif too_many:  # every weight is zero: which are kept makes no difference
            kept = torch.arange(self.num_samples, device=ancestors.device)
            particles, ancestors, log_weights = particles.select(kept), ancestors[kept], log_weights[kept]
        if too_many or not self.path.is_geometric:
            particles = self.kernel.init(particles, self.path)
        history.resampled.append(resampled)
        history.num_ancestors.append(len(torch.unique(ancestors[log_weights > -torch.inf])))

        step_size = state.step_size
        if step_size is None:
            chosen = self.step_sizes.first(self.kernel, particles, self.path, inverse_temperature, self.generator)
            step_size = as_step_size(chosen, self.kernel)
        moved = replace(state, particles=particles, log_weights=log_weights, step_size=step_size)
        return replace(
            self._moved(moved, self.path, inverse_temperature, self.moves, before),
            ancestors=ancestors,
            inverse_temperature=inverse_temperature,
            resamplings=resamplings,
        )

    def is_done(self, state: RunState) -> bool:
        """Whether the particles have arrived at the target, and made their last moves there."""
        at_target = state.history.inverse_temperatures.count(1.0)
        return at_target == (2 if self.final_moves else 1)

    def finish(self, state: RunState) -> RunState:
        """The state after `final_moves`: in the history, a second entry of the inverse temperature 1."""
        history = state.history
        history.conditional_ess_fraction.append(1.0)
        history.effective_sample_size.append(effective_sample_size(state.log_weights))
        history.num_particles.append(len(state.log_weights))
        history.resampled.append(False)
        history.num_ancestors.append(history.num_ancestors[-1])
        before = log_mean_weight(state.log_weights)
        moved = self._moved(state, self.path.at_target(), 1.0, self.final_moves, before)
        particles = self.path.with_proposal(moved.particles)
        if outside := int((particles.alive & ~torch.isfinite(particles.log_proposal)).sum()):
            raise ValueError(
                f"smc: the final moves led {outside} of {len(particles.x)} particles to where the proposal has no "
                "density, so weights are wrong; use moves in place of final_moves."
            )
        return replace(moved, particles=particles)

    def _moved(
        self, state: RunState, path: GeometricPath, inverse_temperature: float, moves: int, before: float
    ) -> RunState:
        """The state after kernel steps at one temperature, of which the history is told; before: the log-normaliser at
        the last one."""
        particles, log_weights, step_size = state.particles, state.log_weights, state.step_size
        history = state.history
        assert step_size is not None  # `advance` chooses it before the first move
        acceptances, num_nonfinite = [], 0
        for _ in range(moves):
            particles, move = self.kernel.step(particles, path, inverse_temperature, step_size, self.generator)
            if move.log_weights is not None:
                log_weights = log_weights + move.log_weights
            num_nonfinite += move.num_nonfinite
            history.step_sizes.append(step_size)
            acceptances.append(mean_acceptance(move.acceptance))
            chosen = self.step_sizes.next(step_size, acceptances[-1], self.kernel, len(history.step_sizes))
            step_size = as_step_size(chosen, self.kernel)
        history.acceptance.append(sum(acceptances) / len(acceptances))
        history.num_nonfinite.append(num_nonfinite)
        history.num_evaluations.append(path.num_evaluations)
        history.num_gradients.append(path.num_gradients)
        history.inverse_temperatures.append(inverse_temperature)
        after = log_mean_weight(log_weights)
        history.log_normalizer_increments.append(after - before if after > -math.inf else -math.inf)
        return replace(
            state,
            particles=particles,
            log_weights=log_weights,
            step_size=step_size,
            num_evaluations=path.num_evaluations,
            num_gradients=path.num_gradients,
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
