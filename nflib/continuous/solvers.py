"""Solvers of ``dx/dt = v(x, t)`` that treat each sample by itself, so that none depends on its neighbours."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from nflib.contexts import map_context
from nflib.errors import is_whole
from nflib.events import flattened, per_row
from nflib.io.arguments import keep_arguments

__all__ = ["RK4", "Dopri5", "Euler", "FixedStep", "Heun", "PseudoCorrector", "Solution", "Solver"]

Field = Callable[[Tensor, Tensor, Any], Tensor]
"""The velocity ``v(x, t, context)`` of states ``(B, *event_shape)`` at times ``(B,)``; a context has a row for each."""


class Solution(NamedTuple):
    """Where a solver has taken each sample, and at what cost.

    Attributes:
        state: ``(B, *event_shape)``.
        evaluations: of the field for each sample, ``(B,)``.
    """

    state: Tensor
    evaluations: Tensor


class Solver:
    """A solver of ``dx/dt = v(x, t)``: takes states along a field from one time to another, forwards or back.

    The base of all solvers; a subclass writes `advance`. Its attribute `is_map` says whether what it computes is one
    smooth map of x, with the same steps for all x, so that it has a log-determinant of its own.
    """

    is_map: ClassVar[bool] = False

    def advance(self, field: Field, x: Tensor, start: float, stop: float, context: Any = None) -> Solution:
        """Take states along one piece of the way, as `pieces` cuts it.

        Args:
            field: the velocity ``v(x, t, context)`` of states at times ``(B,)``.
            x: states at start, ``(B, *event_shape)``.
            start: time at which the piece begins.
            stop: time at which it ends, later or earlier.
            context: a row for each state, or None.

        Returns:
            The states at stop, and the evaluations they took.
        """
        raise NotImplementedError

    def pieces(self, start: float, stop: float, edges: Iterable[float] = ()) -> list[tuple[float, float]]:
        """The way from start to stop in pieces, each one call of `advance`.

        Args:
            start: time at which the way begins.
            stop: time at which it ends, later or earlier.
            edges: times at which the field is not smooth; those between start and stop are ends of pieces.

        >>> Euler(2).pieces(0.0, 1.0, [0.25])
        [(0.0, 0.25), (0.25, 0.5), (0.5, 1.0)]
        """
        low, high = min(start, stop), max(start, stop)
        times = sorted({*self._times(low, high), *(t for t in edges if low < t < high)})
        forwards = list(pairwise(times))
        return forwards if start <= stop else [(last, first) for first, last in reversed(forwards)]

    def solve(self, field: Field, x: Tensor, start: float, stop: float, context: Any = None) -> Solution:
        """Take states the whole way from start to stop along a smooth field.

        Args:
            field: the velocity ``v(x, t, context)`` of states at times ``(B,)``.
            x: states at start, ``(B, *event_shape)``.
            start: time at which the way begins.
            stop: time at which it ends, later or earlier.
            context: a row for each state, or None.

        Returns:
            The states at stop, and the evaluations they took.

        >>> import torch
        >>> state, evaluations = RK4(10).solve(lambda x, t, context: -x, torch.ones(1, 1), 0.0, 1.0)
        >>> state, evaluations  # exp(-1), of four evaluations a step
        (tensor([[0.3679]]), tensor([40]))
        """
        evaluations = torch.zeros(len(x), dtype=torch.long, device=x.device)
        for first, last in self.pieces(start, stop):
            x, number = self.advance(field, x, first, last, context)
            evaluations = evaluations + number
        return Solution(x, evaluations)

    def _times(self, low: float, high: float) -> list[float]:
        return [low, high]


@keep_arguments
@dataclass(frozen=True)
class FixedStep(Solver):
    """An explicit Runge-Kutta method with equal steps, the base of `Euler`, `Heun`, `RK4` and `PseudoCorrector`.

    Args:
        num_steps: equal steps on the way from start to stop.

    Raises:
        ValueError: a num_steps that is not a positive integer.
    """

    num_steps: int

    is_map = True
    # Of the tableau: rows of a, the weights b; the nodes c are the row sums.
    stages: ClassVar[tuple[tuple[float, ...], ...]] = ()
    weights: ClassVar[tuple[float, ...]] = (1.0,)

    def __post_init__(self) -> None:
        if not is_whole(self.num_steps, 1):
            raise ValueError(f"{type(self).__name__} takes a positive number of steps, got {self.num_steps!r}.")

    def advance(self, field: Field, x: Tensor, start: float, stop: float, context: Any = None) -> Solution:
        """One step."""
        h = stop - start
        slopes = [field(x, _constant(x, start), context)]
        for row in self.stages:
            t = start + sum(row) * h if sum(row) < 1 else stop
            slopes.append(field(x + h * _combined(row, slopes), _constant(x, t), context))
        evaluations = torch.full((len(x),), len(slopes), device=x.device)
        return Solution(x + h * _combined(self.weights, slopes), evaluations)

    def _times(self, low: float, high: float) -> list[float]:
        return [low + (high - low) * k / self.num_steps for k in range(self.num_steps)] + [high]


class Euler(FixedStep):
    """Euler's method: of first order, one evaluation a step.

    Args:
        num_steps: equal steps on the way from start to stop.
    """


class Heun(FixedStep):
    """Heun's method, the explicit trapezoidal rule: of second order, two evaluations a step.

    Args:
        num_steps: equal steps on the way from start to stop.
    """

    stages = ((1.0,),)
    weights = (0.5, 0.5)


class RK4(FixedStep):
    """The classical Runge-Kutta method: of fourth order, four evaluations a step.

    Args:
        num_steps: equal steps on the way from start to stop.
    """

    stages = ((0.5,), (0.0, 0.5), (0.0, 0.0, 1.0))
    weights = (1 / 6, 1 / 3, 1 / 3, 1 / 6)


class PseudoCorrector(FixedStep):
    """Heun's method with the second slope of a step reused as the first of the next: one evaluation a step, plus one.

    Of second order as well (FlowTurbo, Zhao et al. 2024, arXiv:2409.18128). A step depends on the one before, so that
    the whole way is one map, with one Jacobian; its inverse is sought from the whole way back. At the edges of a field
    it starts afresh.

    Args:
        num_steps: equal steps from 0 to 1; a shorter piece of time has fewer, of at most the same length.
    """

    def advance(self, field: Field, x: Tensor, start: float, stop: float, context: Any = None) -> Solution:
        """All the steps from start to stop."""
        number = max(1, math.ceil(self.num_steps * abs(stop - start) - 1e-9))
        h = (stop - start) / number
        slope = field(x, _constant(x, start), context)
        for k in range(1, number + 1):
            ahead = field(x + h * slope, _constant(x, stop if k == number else start + k * h), context)
            x = x + 0.5 * h * (slope + ahead)
            slope = ahead
        return Solution(x, torch.full((len(x),), number + 1, device=x.device))

    def _times(self, low: float, high: float) -> list[float]:
        return [low, high]


# Dormand & Prince 1980: the fifth-order method, and the difference from the fourth-order one embedded in it.
_STAGES = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
_ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)


@keep_arguments
@dataclass(frozen=True)
class Dopri5(Solver):
    """Dormand and Prince's adaptive method of fifth order, with step sizes of its own for every sample.

    Args:
        atol: absolute tolerance. A step is taken where its error, estimated number by number and divided by ``atol +
            rtol |x|``, has a root mean square of at most 1 over the event.
        rtol: relative tolerance.
        max_steps: the most of any sample, rejected ones included.

    Raises:
        ValueError: a tolerance that is not positive; on solving, a field so stiff that a sample needs more steps, or
            steps below the resolution of t, or that is not finite, told with the time at which it happened. Where only
            a trial step meets a velocity that is not finite, it is tried again at a shorter length.
    """

    atol: float = 1e-5
    rtol: float = 1e-5
    max_steps: int = 1000

    def __post_init__(self) -> None:
        if not (self.atol > 0 and self.rtol >= 0 and self.max_steps >= 1):
            raise ValueError(f"Dopri5 needs atol > 0, rtol >= 0 and max_steps >= 1, got {self}.")

    def advance(self, field: Field, x: Tensor, start: float, stop: float, context: Any = None) -> Solution:
        direction = 1.0 if stop >= start else -1.0
        length = abs(stop - start)
        done = torch.zeros(len(x), dtype=torch.float64, device=x.device)
        evaluations = torch.ones(len(x), dtype=torch.long, device=x.device)
        if length == 0 or len(x) == 0:
            return Solution(x, evaluations)
        step = torch.full_like(done, min(0.05, length))
        smallest = 16 * torch.finfo(x.dtype).eps * max(abs(start), abs(stop))
        active = torch.arange(len(x), device=x.device)
        state = x
        times = torch.full((len(x),), start, dtype=x.dtype, device=x.device)
        slope = checked_finite(field(x, times, context), times)
        for number in range(self.max_steps):
            h = torch.minimum(step[active], length - done[active])
            now = state[active]
            rows = map_context(lambda part: part[active], context)  # noqa: B023, called at once
            t, before = start + direction * done[active], slope[active]
            candidate, after, error = self._step(field, now, before, t, direction * h, rows)
            evaluations[active] += len(_STAGES)
            accepted = error <= 1
            state = state.index_copy(0, active, torch.where(per_row(accepted, now), candidate, now))
            slope = slope.index_copy(0, active, torch.where(per_row(accepted, now), after, before))
            done[active] = torch.where(accepted, done[active] + h, done[active])
            factor = (0.9 * error.clamp(min=1e-10) ** -0.2).clamp(0.2, 5.0)
            step[active] = h * factor.to(h)
            left = (length - done[active]) > smallest
            stuck = left & (step[active] < smallest)
            if bool(stuck.any()):
                self._stiff(number, start + direction * done[active][stuck])
            active = active[left]
            if len(active) == 0:
                return Solution(state, evaluations)
        return self._stiff(self.max_steps, start + direction * done[active])

    def _step(
        self, field: Field, x: Tensor, slope: Tensor, t: Tensor, h: Tensor, context: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Where a step leads from x and its slope, the slope there, and the error; infinite where one is not finite."""
        size = per_row(h.to(x.dtype), x)
        slopes = [slope]
        candidate = x
        for row in _STAGES:
            candidate = x + size * _combined(row, slopes)
            slopes.append(field(candidate, (t + sum(row) * h).to(x.dtype), context))
        scale = self.atol + self.rtol * torch.maximum(x.detach().abs(), candidate.detach().abs())
        error = (size * _combined(_ERROR, slopes)).detach() / scale
        norm = flattened(error).square().mean(1).sqrt()
        return candidate, slopes[-1], torch.where(norm.isfinite(), norm, torch.inf)

    def _stiff(self, number: int, times: Tensor) -> Solution:
        raise ValueError(
            f"Dopri5 gave up at step {number} for {len(times)} samples, the first of them at t = "
            f"{float(times[0]):.6g}: the field is too stiff for these tolerances, or not finite beyond; mend it, or "
            "raise them or max_steps."
        )


def checked_finite(v: Tensor, t: Tensor) -> Tensor:
    """Velocities ``(B, *event_shape)`` at times ``(B,)``; raises ValueError unless all are finite."""
    if not torch.compiler.is_compiling():
        spoilt = ~flattened(v).isfinite().all(1)
        if bool(spoilt.any()):
            raise ValueError(
                f"the velocity is not finite at t = {float(t[spoilt][0]):.6g} for {int(spoilt.sum())} of {len(v)} "
                "samples; mend the field there, or its inputs."
            )
    return v


def _constant(x: Tensor, t: float) -> Tensor:
    return torch.full((len(x),), t, dtype=x.dtype, device=x.device)


def _combined(weights: tuple[float, ...], slopes: list[Tensor]) -> Tensor:
    return sum(w * s for w, s in zip(weights, slopes, strict=True) if w)  # type: ignore[return-value]
