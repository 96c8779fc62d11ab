"""Explicit steps ``x -> y``, each near the identity, as one invertible map with its exact log-determinant.

What few-step importance weights need is the log-determinant of the map that was computed, not the integral of a trace
that it approximates. Jacobians are dense, one backward pass a dimension: meant for up to some hundred dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from nflows.transforms import Transform
from torch import Tensor

from nflib.derivatives import jacobian
from nflib.events import flattened, per_row
from nflib.inference import differentiates, without_autocast
from nflib.interfaces import Decoder, Inversion

__all__ = ["Step", "StepwiseTransform", "check_resolved", "inverted", "pushed"]

MAX_ITERATIONS = 50
MAX_HALVINGS = 8
CONTINUATION = 8
FARTHEST = 1e3
# Of the noise's variance, what the solution back in time must find again: two Euler steps find 0.1 at most on mixtures
# of normals, and have useless weights; four find 0.4 or more.
LEAST_EXPLAINED = 0.25
FEWEST_TO_JUDGE = 16


class Step(NamedTuple):
    """A map of states ``(B, *event_shape)``, row by row, and a guess of its inverse, such as a step back in time."""

    forward: Callable[[Tensor], Tensor]
    guess: Callable[[Tensor], Tensor]
    name: str


class StepwiseTransform(Transform):
    """A transform from data to noise whose inverse goes by explicit steps, which a subclass makes in `_steps`."""

    velocity: Callable[..., Tensor]
    allowed_folds: float
    noise_width: float

    @without_autocast
    @differentiates
    def forward(self, inputs: Tensor, context: Any = None) -> tuple[Tensor, Tensor]:
        """The noise of data, and ``log|d noise / d data|``: each step is inverted by Newton's method."""
        steps = self._steps(context)
        noise, logabsdet = inverted(steps, inputs, allowed=self.allowed_folds)
        check_resolved(steps, noise, inputs, ~logabsdet.isnan(), self.noise_width)
        return noise, logabsdet

    def inverse(self, inputs: Tensor, context: Any = None) -> tuple[Tensor, Tensor]:
        """The data that noise becomes, and ``log|d data / d noise|``."""
        return self.invert(inputs, context)[:2]

    @without_autocast
    @differentiates
    def invert(self, inputs: Tensor, context: Any = None, decoder: Decoder | None = None) -> Inversion:
        """As `inverse`; the residual is zero, as the steps are evaluated and nothing is solved for."""
        steps = self._steps(context)
        outputs, logabsdet = pushed(steps, inputs, allowed=self.allowed_folds)
        check_resolved(steps, inputs, outputs, ~logabsdet.isnan(), self.noise_width)
        return Inversion(outputs, logabsdet, 0.0)

    def generate(self, inputs: Tensor, context: Any = None) -> Tensor:
        """The data that noise becomes, without a log-determinant."""
        for step in self._steps(context):
            inputs = step.forward(inputs)
        return inputs

    def _steps(self, context: Any) -> list[Step]:
        raise NotImplementedError


def pushed(steps: Sequence[Step], x: Tensor, *, check: bool = True, allowed: float = 0.0) -> tuple[Tensor, Tensor]:
    """What the steps make of x, and ``log|dy/dx|`` ``(B,)``; differentiable.

    Args:
        steps: one after the other.
        x: ``(B, *event_shape)``.
        check: whether to show of each row that the map is one-to-one there: the determinant of each step is positive,
            and the step's inverse, sought from the guess, is where it came from.
        allowed: the largest share of rows that may fail; these get a log-determinant of NaN.

    Raises:
        ValueError: more rows fail.
    """
    total = torch.zeros(len(x), dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)
    good = torch.ones(len(x), dtype=torch.bool, device=x.device)
    for step in steps:
        y, matrix = jacobian(step.forward, x)
        sign, logabsdet = torch.linalg.slogdet(matrix.to(total.dtype))
        total = total + logabsdet
        if check:
            good &= (sign > 0) & _comes_back(step, x.detach(), y.detach(), matrix.detach())
            _check_share(good, allowed, f"cannot be traced back through {step.name}")
        x = y
    return x, torch.where(good, total, torch.nan) if check and allowed > 0 else total


def inverted(steps: Sequence[Step], y: Tensor, *, allowed: float = 0.0) -> tuple[Tensor, Tensor]:
    """The x that the steps take to y, and ``log|dx/dy|`` ``(B,)``; differentiable in y and the steps' parameters.

    Newton's method a step, each row until it has converged, by itself.

    Args:
        steps: one after the other.
        y: ``(B, *event_shape)``.
        allowed: the largest share of rows that may have no solution, or one at which a step's determinant is not
            positive; these get a log-determinant of NaN.

    Raises:
        ValueError: more rows fail.
    """
    total = torch.zeros(len(y), dtype=torch.promote_types(y.dtype, torch.float32), device=y.device)
    good = torch.ones(len(y), dtype=torch.bool, device=y.device)
    for step in reversed(steps):
        with torch.no_grad():
            x, solved = _solved(step, y.detach())
        good &= solved
        _check_share(good, allowed, f"are not inverted by Newton's method in {step.name}")
        # Twice, so that second derivatives are those of the solution as well (each Newton step doubles their order).
        for _ in range(2 if torch.is_grad_enabled() else 0):
            reached, matrix = jacobian(step.forward, x)
            x = x + _solve(matrix, y - reached).view_as(x)
        # What has no solution stays where it is: its steps would lead anywhere.
        x = torch.where(per_row(solved, x), x, y)
        _, matrix = jacobian(step.forward, x)
        sign, logabsdet = torch.linalg.slogdet(matrix.to(total.dtype))
        good &= sign > 0
        _check_share(good, allowed, f"have no positive determinant in {step.name}")
        total = total - logabsdet
        y = x
    return y, torch.where(good, total, torch.nan) if allowed > 0 else total


@torch.no_grad()
def check_resolved(steps: Sequence[Step], x: Tensor, y: Tensor, good: Tensor, width: float) -> None:
    """Raise ValueError where the steps' guesses of the inverse hardly find the noise x again that they made y of.

    Then the steps are too long, and what holds at these points says nothing of those between them.

    Args:
        steps: one after the other.
        x, y: ``(B, *event_shape)``.
        good: which rows count, ``(B,)``.
        width: standard deviation of noise: a batch that spreads less, such as of equal points, is judged by that.
    """
    if int(good.sum()) < FEWEST_TO_JUDGE:
        return
    found = y
    for step in reversed(steps):
        found = step.guess(found)
    x, found = x[good], found[good]
    spread = (x - x.mean(0)).square().sum().clamp(min=x.numel() * width**2)
    unexplained = float((found - x).square().sum() / spread)
    if not unexplained < 1 - LEAST_EXPLAINED:
        raise ValueError(
            f"the map cannot be shown to be one-to-one: back in time it finds {max(0.0, 1 - unexplained):.0%} of the "
            f"variance of {len(x)} samples' noise again, so its steps are too long for this field; take more."
        )


def _check_share(good: Tensor, allowed: float, problem: str) -> None:
    """Raise ValueError where more than the allowed share of rows is not good."""
    failed = int((~good).sum())
    if failed > allowed * len(good):
        raise ValueError(
            f"the map is not one-to-one: {failed / len(good):.2%} of {len(good)} samples {problem}, so they have no "
            "density; take more steps, or a smoother field."
        )


def _comes_back(step: Step, x: Tensor, y: Tensor, matrix: Tensor) -> Tensor:
    """Which rows of x the inverse of a step finds again from y, sought from the step's own guess, ``(B,)``.

    By simplified Newton steps with the Jacobian at x, one evaluation each; where these fail, by Newton's method.
    """
    with torch.no_grad():
        factors, guess = torch.linalg.lu_factor_ex(matrix), step.guess(y)
        found = guess
        for _ in range(MAX_ITERATIONS):
            change = torch.linalg.lu_solve(*factors[:2], _columns(y - step.forward(found))).view_as(x)
            found = torch.where(per_row(_near(found + change, y), x), found + change, guess)
            same = _norm((found - x) / _tolerance(x)) < 1e3
            if bool(same.all()):
                return same
        found, solved = _newton(step.forward, guess, y)
        return same | (solved & (_norm((found - x) / _tolerance(x)) < 1e3))


def _solved(step: Step, y: Tensor) -> tuple[Tensor, Tensor]:
    """The x of ``step(x) = y``, without a gradient, and which rows were solved."""
    x, solved = _newton(step.forward, step.guess(y), y)
    if not bool(solved.all()):
        # From y itself, as the step grows from none to its full length.
        other = y
        for share in torch.linspace(0, 1, CONTINUATION + 1).tolist()[1:]:
            other, found = _newton(lambda x: torch.lerp(x, step.forward(x), share), other, y)  # noqa: B023
        x = torch.where(per_row(solved, x), x, other)
        solved |= found
    return x, solved


@torch.no_grad()
def _newton(function: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Newton's method with backtracking for ``function(x) = y``, each row by itself: x, and which rows were solved."""
    tolerance = _tolerance(y)
    active = torch.ones(len(y), dtype=torch.bool, device=y.device)
    error = torch.full((len(y),), torch.inf, dtype=y.dtype, device=y.device)
    for _ in range(MAX_ITERATIONS):
        reached, matrix = jacobian(function, x)
        residual = y - reached
        error = torch.where(active, _norm(residual / tolerance), error)
        active = active & (error > 1)
        if not bool(active.any()):
            break
        change = torch.where(per_row(active, x), _solve(matrix, residual).view_as(x), 0.0)
        factor = torch.ones_like(error)
        for _ in range(MAX_HALVINGS):
            candidate = x + per_row(factor, x) * change
            near = _near(candidate, y)
            candidate = torch.where(per_row(near, x), candidate, x)
            worse = active & ~(near & (_norm((y - function(candidate)) / tolerance) < error))
            if not bool(worse.any()):
                break
            factor = torch.where(worse, 0.5 * factor, factor)
        # What rounding leaves may stay a little above the tolerance, and then falls no more.
        active = active & ~worse
        x = torch.where(per_row(active, x), x + per_row(factor, x) * change, x)
    return x, error < 1e3


def _near(x: Tensor, y: Tensor) -> Tensor:
    """Which rows of x are no farther out than a step may come from, ``(B,)``: elsewhere a field need not be finite."""
    return _norm(x) < FARTHEST * (1 + _norm(y))


def _tolerance(x: Tensor) -> Tensor:
    """What rounding leaves of each row's numbers, of their shape."""
    largest = flattened(x).abs().amax(1)
    return per_row(16 * torch.finfo(x.dtype).eps * (1 + largest), x).expand_as(x)


def _solve(matrix: Tensor, right: Tensor) -> Tensor:
    solution, info = torch.linalg.solve_ex(matrix, _columns(right))
    return torch.where((info == 0)[:, None, None], solution, 0.0)


def _columns(x: Tensor) -> Tensor:
    return flattened(x).unsqueeze(-1)


def _norm(x: Tensor) -> Tensor:
    """The largest number of each row, ``(B,)``; infinite where one is not finite."""
    norm = flattened(x).abs().amax(1)
    return torch.where(norm.isfinite(), norm, torch.inf)
