"""How the step size of a kernel follows an acceptance target along the path."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from nflib.errors import as_number, check_object, is_whole
from nflib.interfaces import stated
from nflib.montecarlo.kernels.interface import Kernel, Traits
from nflib.montecarlo.path import GeometricPath, Particles

__all__ = ["AcceptanceTarget", "FixedStepSizes", "StepSizes", "as_step_size", "as_step_sizes"]

PILOT_PARTICLES = 256


class StepSizes(Protocol):
    """A rule that chooses step sizes, each before the moves that it is used for and from nothing that they produce."""

    def first(
        self,
        kernel: Kernel,
        particles: Particles,
        path: GeometricPath,
        inverse_temperature: float,
        generator: torch.Generator,
    ) -> float:
        """The step size of the first move of a run.

        Args:
            kernel: that will move.
            particles: as they are before the first move; they are not to be changed.
            path: the densities from proposal to target.
            inverse_temperature: at which the first move will be.
            generator: of random numbers, such as for pilot moves.

        Returns:
            A length in units of x; of no effect for a kernel without a step size.
        """
        ...

    def next(self, step_size: float, acceptance: float, kernel: Kernel, num_moves: int) -> float:
        """The step size of the next move.

        Args:
            step_size: of the last move.
            acceptance: mean acceptance probability of that move; NaN if no particle was moved.
            kernel: that moves.
            num_moves: how many moves there have been in all.
        """
        ...


@dataclass(frozen=True)
class AcceptanceTarget:
    """Step sizes that adapt to a target acceptance probability.

    After each move the step size is multiplied by `exp(gain (acceptance - target) / (1 - target))`. It is chosen
    from earlier moves alone, so every kernel leaves its density invariant. (The particles of those moves are still
    among the present ones: the normaliser keeps a bias of order 1/N, as it does with adaptive temperatures; a second
    run with `FixedStepSizes(history.step_sizes)` has none.) The first step size comes from pilot moves of a few
    particles, which are thrown away.

    Args:
        target: mean acceptance probability to aim at; default: the kernel's `target_acceptance`.
        gain: how strongly the step size follows; 0 keeps it.
        pilot_moves: at most so many before the first move; 0 starts from the kernel's own step size.

    Raises:
        ValueError: a target outside (0, 1), a gain that is negative or not finite, pilot_moves that are no integer of 0
            or more; in a run, no target for a kernel that has a step size and no `target_acceptance`.
    """

    target: float | None = None
    gain: float = 0.3
    pilot_moves: int = 20

    def first(
        self,
        kernel: Kernel,
        particles: Particles,
        path: GeometricPath,
        inverse_temperature: float,
        generator: torch.Generator,
    ) -> float:
        step_size = stated(Traits, kernel).step_size
        if step_size is None:
            return math.nan
        usable = particles.alive.nonzero().flatten()[:PILOT_PARTICLES]
        if len(usable) == 0:
            return step_size
        pilot = particles.select(usable)
        target = self._target(kernel)
        gain, was_above = 3.0 * self.gain, None
        for _ in range(self.pilot_moves):
            _, move = kernel.step(pilot, path, inverse_temperature, step_size, generator)
            acceptance = mean_acceptance(move.acceptance)
            if abs(acceptance - target) < 0.25 * (1.0 - target):
                break
            # In many dimensions acceptance falls so steeply with the step that it would leap over the target for ever.
            if was_above is not None and was_above != (acceptance > target):
                gain /= 2.0
            was_above = acceptance > target
            step_size *= _factor(acceptance, target, gain)
        return step_size

    def next(self, step_size: float, acceptance: float, kernel: Kernel, num_moves: int) -> float:
        if math.isnan(acceptance) or stated(Traits, kernel).step_size is None:
            return step_size
        return step_size * _factor(acceptance, self._target(kernel), self.gain)

    def __post_init__(self) -> None:
        if self.target is not None and not 0.0 < self.target < 1.0:
            raise ValueError(f"AcceptanceTarget: the target is {self.target}; pass a probability between 0 and 1.")
        if not 0.0 <= self.gain < math.inf or not is_whole(self.pilot_moves, 0):
            raise ValueError(
                f"AcceptanceTarget: gain is {self.gain} and pilot_moves {self.pilot_moves}; pass a finite number and "
                "an integer, 0 or more."
            )

    def _target(self, kernel: Kernel) -> float:
        target = stated(Traits, kernel).target_acceptance if self.target is None else self.target
        if target is None:
            raise ValueError(
                f"AcceptanceTarget: the kernel {type(kernel).__name__} has no target_acceptance; give it one, or pass "
                "AcceptanceTarget(target)."
            )
        return float(target)


@dataclass(frozen=True)
class FixedStepSizes:
    """Step sizes that are given beforehand, one for each move in order; the last one is used from there on.

    Args:
        step_sizes: lengths in units of x, such as `History.step_sizes` of another run.

    Raises:
        ValueError: none, or numbers that are not positive and finite.
    """

    step_sizes: tuple[float, ...]

    def __init__(self, step_sizes: Iterable[float]) -> None:
        values = tuple(float(step) for step in step_sizes)
        if not values or not all(0.0 < step < math.inf for step in values):
            raise ValueError(f"FixedStepSizes: step sizes must be positive, finite numbers; got {list(values)}.")
        object.__setattr__(self, "step_sizes", values)

    def first(
        self,
        kernel: Kernel,
        particles: Particles,
        path: GeometricPath,
        inverse_temperature: float,
        generator: torch.Generator,
    ) -> float:
        return self.step_sizes[0]

    def next(self, step_size: float, acceptance: float, kernel: Kernel, num_moves: int) -> float:
        return self.step_sizes[min(num_moves, len(self.step_sizes) - 1)]


def as_step_sizes(step_sizes: Any) -> StepSizes:
    """The rule of step sizes, `AcceptanceTarget()` by default. Raises ValueError for what is none, such as a number."""
    step_sizes = AcceptanceTarget() if step_sizes is None else step_sizes
    check_object("step_sizes", step_sizes, "AcceptanceTarget() or FixedStepSizes([s])", "first", "next")
    return step_sizes  # type: ignore[no-any-return]


def as_step_size(chosen: Any, kernel: Kernel) -> float:
    """What a rule chose as a number. Raises ValueError for what is no length, unless the kernel has no step size."""
    step_size = as_number(chosen)
    if not 0.0 < step_size < math.inf and stated(Traits, kernel).step_size is not None:
        raise ValueError(f"the rule of step sizes gave {chosen!r}; it must give a positive, finite number.")
    return step_size


def _factor(acceptance: float, target: float, gain: float) -> float:
    # Near a target close to one the acceptance hardly moves, far below it says only that the step is too long.
    return math.exp(min(max(gain * (acceptance - target) / (1.0 - target), -1.5), 1.5))


def mean_acceptance(acceptance: torch.Tensor) -> float:
    """Mean over the particles that were moved; NaN if none was."""
    return acceptance[~acceptance.isnan()].mean().item()
