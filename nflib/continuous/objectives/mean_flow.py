"""MeanFlow: the average velocity of a flow map, learnt from pairs of noise and data alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from nflib.contexts import map_context
from nflib.continuous.couplings import Coupling, IndependentCoupling
from nflib.continuous.maps import FlowMap
from nflib.continuous.objectives.flow_matching import squared_error
from nflib.continuous.objectives.parts import OfPairs
from nflib.continuous.times import Times, UniformTimes
from nflib.events import per_row

__all__ = ["Jumps", "MeanFlow", "derivative_along", "drawn_times"]


class Jumps(NamedTuple):
    """Jumps on which a flow map is trained.

    Attributes:
        x: points from which they start, ``(B, *event_shape)``.
        r: their times, ``(B,)``.
        t: times to which they lead, ``(B,)``.
        context: a row for each point, or None.
        velocity: of the pair of noise and data between which x lies, of x's shape, where there is one.
    """

    x: Tensor
    r: Tensor
    t: Tensor
    context: Any = None
    velocity: Tensor | None = None


@dataclass(frozen=True)
class MeanFlow(OfPairs):
    """An objective that fits a `FlowMap`'s average velocity u to pairs of noise and data (Geng et al. 2025).

    As u(x, r, t) (t - r) is the integral of the velocity from r to t, its derivative along the path in r gives

        u(x_r, r, t) = v + (t - r) (v . du/dx + du/dr),

    whose right side, without a gradient and with the velocity of a pair in the place of v, is what u is regressed on.
    Times run from noise to data, and x is where the jump starts: with t and r exchanged, and another sign, it is the
    paper's (arXiv:2505.13447). A share of pairs has t = r, where it is flow matching.

    Args:
        coupling: which noise is paired with which data; `FlowCoupling`, of a trained flow, for maps of few passes.
        times: the density of both r and t.
        share_instant: share of pairs with t = r.
        both_ways: whether jumps lead back in time as often as on, as densities and `Invertible` want them; else t >= r.
        loss: from differences ``(B, *event_shape)`` to ``(B,)``.

    Raises:
        ValueError: a share outside 0 … 1; otherwise as for `FlowMatching`.
    """

    needs_flow: ClassVar[dict[str, str]] = {"average_velocity": "a FlowMap"}

    coupling: Coupling = field(default_factory=IndependentCoupling)
    times: Times = field(default_factory=UniformTimes)
    share_instant: float = 0.75
    both_ways: bool = True
    loss: Callable[[Tensor], Tensor] = squared_error

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.share_instant <= 1:
            raise ValueError(f"share_instant is a share of the pairs, 0 … 1, got {self.share_instant!r}.")

    def jumps(self, flow: FlowMap, batch: dict[str, Tensor], generator: torch.Generator) -> Jumps:
        """Jumps from points on the paths between pairs, with the pairs' velocities there.

        Args:
            flow: that is trained.
            batch: as `fit` gives it.
            generator: of noise and times.
        """
        x0, x1, context = self.paired(flow, batch, generator)
        r, t = drawn_times(self.times, x1, generator, both_ways=self.both_ways)
        x, v = flow.path.pair(x0, x1, r)
        return Jumps(x, r, t, context, v)

    def __call__(
        self, flow: FlowMap, batch: dict[str, Tensor], generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        return self.compared(flow, self.jumps(flow, batch, generator))

    def compared(self, flow: FlowMap, jumps: Jumps) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of jumps, a scalar, and what is logged of it."""
        x, r, t, context, v = jumps
        assert v is not None
        count = round(self.share_instant * len(x))
        parts = []
        if count > 0:
            rows = slice(count)
            parts.append(self.loss(flow.velocity(x[rows], r[rows], map_context(itemgetter(rows), context)) - v[rows]))
        if count < len(x):
            rows = slice(count, None)
            x, r, t, v, context = x[rows], r[rows], t[rows], v[rows], map_context(itemgetter(rows), context)
            u, slope = derivative_along(
                lambda x, r: flow.average_velocity(x, r, t, context), (x, r), (v, torch.ones_like(r))
            )
            left = per_row(t - r, x)
            parts.append(self.loss(u - (v + left * slope.detach())))
        loss = torch.cat(parts).mean()
        return loss, {"mean_flow": loss.detach()}


def drawn_times(times: Times, x: Tensor, generator: torch.Generator, *, both_ways: bool) -> tuple[Tensor, Tensor]:
    """Two times for each row of x, in order unless both_ways."""
    first, second = (times.sample(len(x), generator).to(x) for _ in range(2))
    return (first, second) if both_ways else (torch.minimum(first, second), torch.maximum(first, second))


def derivative_along(
    function: Callable[..., Tensor], at: tuple[Tensor, ...], direction: tuple[Any, ...]
) -> tuple[Tensor, Tensor]:
    """A function's value, with its gradient, and its derivative in a direction, in one pass (forward mode)."""
    # Of torch's fused kernels of attention none knows forward derivatives.
    with sdpa_kernel(SDPBackend.MATH):
        value, slope = torch.func.jvp(function, at, direction)[:2]
    return value, slope
