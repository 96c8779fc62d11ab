"""A run of sequential Monte Carlo: what stays the same, and what happens from one temperature to the next."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nflib.distributions import is_estimate
from nflib.errors import as_number
from nflib.interfaces import stated
from nflib.montecarlo.adaptation import StepSizes, as_step_size, mean_acceptance
from nflib.montecarlo.diagnostics import effective_sample_size, log_mean_weight, normalized_weights
from nflib.montecarlo.genealogy import NONE, Resamplings
from nflib.montecarlo.history import History
from nflib.montecarlo.kernels import Kernel, Traits
from nflib.montecarlo.path import GeometricPath, Particles
from nflib.montecarlo.resampling import resample
from nflib.montecarlo.temperatures import Temperatures, conditional_ess_fraction, keeping
from nflib.montecarlo.weighted_samples import WeightedSamples

__all__ = ["Run", "RunState"]


@dataclass
class RunState:
    """A run between two temperatures.

    The mean of `exp(log_weights)` is the normaliser so far. `step_size` is that of the next move, None before the
    first; `resamplings` are what the standard error needs of them; `num_rejected` counts the particles that were given
    weight zero for a position or density that was not finite; `num_evaluations` and `num_gradients` those of the
    target, in all processes that the run has had.
    """

    particles: Particles
    log_weights: Tensor
    ancestors: Tensor
    history: History
    inverse_temperature: float = 0.0
    step_size: float | None = None
    resamplings: Resamplings = NONE
    num_rejected: int = 0
    num_evaluations: int = 0
    num_gradients: int = 0


@dataclass(frozen=True)
class Run:
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
        gradient = everyone_moves and stated(Traits, self.kernel).needs_gradient
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

    def resume(self, state: RunState, path: Path) -> None:
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
        # Energies of 1e4 kT are a few tenths apart in float32, by the order in which parts of them are added.
        pairs = {"target": (some.log_target, again.log_target)}
        if self.path.is_geometric and not is_estimate(self.path.proposal):
            pairs["proposal"] = (some.log_proposal, again.log_proposal)
        return next((name for name, pair in pairs.items() if not torch.allclose(*pair, rtol=1e-4, atol=1e-2)), None)

    def advance(self, state: RunState) -> RunState:
        """The state at the next inverse temperature."""
        particles, log_weights, ancestors = state.particles, state.log_weights, state.ancestors
        log_ratio = particles.log_ratio
        count = len(log_weights)
        temperatures = keeping(self.temperatures, self.num_samples / count)
        chosen = temperatures.next(state.inverse_temperature, log_weights, log_ratio)
        inverse_temperature = as_number(chosen)
        if not state.inverse_temperature < inverse_temperature <= 1.0:
            raise ValueError(
                f"smc: the rule {type(temperatures).__name__} gave {chosen!r} as the inverse temperature after "
                f"{state.inverse_temperature}; it must give a number above that, up to 1."
            )
        increments = (inverse_temperature - state.inverse_temperature) * log_ratio
        conditional = conditional_ess_fraction(log_weights, increments)
        before = log_mean_weight(log_weights)
        log_weights = log_weights + increments
        ess = effective_sample_size(log_weights)

        resamplings = state.resamplings
        too_many = count > self.num_samples
        wanted = ess < self.resampling_threshold * count or self.resampling_threshold == 1.0 or too_many
        resampled = wanted and ess > 0.0
        if resampled:
            weights = normalized_weights(log_weights)
            parents = resample(weights, self.num_samples, self.generator, self.resampling)
            resamplings = resamplings.after(log_weights, self.resampling, self.num_samples)
            particles, ancestors = particles.select(parents), ancestors[parents]
            log_weights = torch.full_like(log_weights[parents], log_mean_weight(log_weights))
        elif too_many:  # every weight is zero: which are kept makes no difference
            kept = torch.arange(self.num_samples, device=ancestors.device)
            particles, ancestors, log_weights = particles.select(kept), ancestors[kept], log_weights[kept]
        if too_many or not self.path.is_geometric:
            particles = self.kernel.init(particles, self.path)

        step_size = state.step_size
        if step_size is None:
            chosen = self.step_sizes.first(self.kernel, particles, self.path, inverse_temperature, self.generator)
            step_size = as_step_size(chosen, self.kernel)
        reweighted = replace(
            state,
            particles=particles,
            log_weights=log_weights,
            ancestors=ancestors,
            inverse_temperature=inverse_temperature,
            step_size=step_size,
            resamplings=resamplings,
        )
        return self._moved(
            reweighted,
            self.path,
            self.moves,
            before,
            conditional_ess_fraction=conditional,
            effective_sample_size=ess,
            num_particles=count,
            resampled=resampled,
            num_ancestors=len(torch.unique(ancestors[log_weights > -torch.inf])),
            parents=[parents.to("cpu", torch.int32)] if resampled else [],
        )

    def is_done(self, state: RunState) -> bool:
        """Whether the particles have arrived at the target, and made their last moves there."""
        at_target = state.history.inverse_temperatures.count(1.0)
        return at_target == (2 if self.final_moves else 1)

    def finish(self, state: RunState) -> RunState:
        """The state after `final_moves`: in the history, a second entry of the inverse temperature 1."""
        moved = self._moved(
            state,
            self.path.at_target(),
            self.final_moves,
            log_mean_weight(state.log_weights),
            conditional_ess_fraction=1.0,
            effective_sample_size=effective_sample_size(state.log_weights),
            num_particles=len(state.log_weights),
            resampled=False,
            num_ancestors=state.history.num_ancestors[-1],
        )
        particles = self.path.with_proposal(moved.particles)
        if outside := int((particles.alive & ~torch.isfinite(particles.log_proposal)).sum()):
            raise ValueError(
                f"smc: the final moves led {outside} of {len(particles.x)} particles to where the proposal has no "
                "density, so weights are wrong; use moves in place of final_moves."
            )
        return replace(moved, particles=particles)

    def _moved(self, state: RunState, path: GeometricPath, moves: int, before: float, **entries: Any) -> RunState:
        """The state after kernel steps at its temperature, of which the history is told, with what it is to be told
        besides; before: the log-normaliser at the last one."""
        particles, log_weights, step_size = state.particles, state.log_weights, state.step_size
        assert step_size is not None  # `advance` chooses it before the first move
        step_sizes, acceptances, num_nonfinite = [], [], 0
        for _ in range(moves):
            particles, move = self.kernel.step(particles, path, state.inverse_temperature, step_size, self.generator)
            if move.log_weights is not None:
                log_weights = log_weights + move.log_weights
            num_nonfinite += move.num_nonfinite
            step_sizes.append(step_size)
            acceptances.append(mean_acceptance(move.acceptance))
            done = len(state.history.step_sizes) + len(step_sizes)
            chosen = self.step_sizes.next(step_size, acceptances[-1], self.kernel, done)
            step_size = as_step_size(chosen, self.kernel)
        after = log_mean_weight(log_weights)
        counts: dict[str, Any] = {"num_evaluations": path.num_evaluations, "num_gradients": path.num_gradients}
        state.history.add(
            inverse_temperatures=state.inverse_temperature,
            log_normalizer_increments=after - before if after > -math.inf else -math.inf,
            acceptance=sum(acceptances) / len(acceptances),
            step_sizes=step_sizes,
            num_nonfinite=num_nonfinite,
            **counts,
            **entries,
        )
        return replace(state, particles=particles, log_weights=log_weights, step_size=step_size, **counts)
