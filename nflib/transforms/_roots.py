"""Numbers at which increasing functions take given values."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from nflib.inference import is_traced

MAX_STEPS = 40


@torch.no_grad()
def increasing_root(
    function: Callable[[Tensor], tuple[Tensor, Tensor]],
    value: Tensor,
    low: Tensor,
    high: Tensor,
    start: Tensor,
    tolerance: Tensor | float,
    is_done: Tensor | None = None,
) -> Tensor:
    """Where an increasing function takes a value, number by number, by Newton's method safeguarded by bisection.

    The error left is of the order of the square of Newton's last step, which is below a hundredth of the root of the
    tolerance, or within the tolerance.

    Args:
        function: of numbers of the shape of `value`; gives its values and the logarithms of its slopes.
        value: to be taken.
        low: at or below the solution.
        high: at or above the solution.
        start: between them.
        tolerance: absolute, of the solution.
        is_done: numbers that stay where they start (default: none).
    """
    u, last, before = start, high - low, high - low
    # Numbers that are none would never be found.
    found_before = ~(last > 0) | value.isnan()
    is_done = found_before if is_done is None else is_done | found_before
    for _ in range(MAX_STEPS):
        found, log_slope = function(u)
        too_high = found > value
        low, high = torch.where(too_high, low, u), torch.where(too_high, u, high)
        step = (value - found) * torch.exp(-log_slope)
        # Newton's steps must stay within what encloses the solution, and halve in two.
        good = (u + step >= low) & (u + step <= high) & (step.abs() <= 0.5 * before)
        new = torch.where(good, u + step, 0.5 * (low + high))
        before, last, u = last, (new - u).abs(), torch.where(is_done, u, new)
        is_done = is_done | (last <= tolerance) | (good & (last <= 1e-2 * tolerance**0.5))
        if not is_traced() and bool(is_done.all()):
            break
    return u
