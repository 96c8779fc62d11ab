"""Flow maps: networks that take x from one time to another in one pass, as flows with an exact density."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Protocol, Self

import torch
from nflows.distributions import Distribution
from torch import Tensor, nn

from nflib.continuous.fields import evaluated, in_single_precision, takes_context
from nflib.continuous.networks import ResidualMLP, TimeFeatures
from nflib.continuous.noise import PathFlow, noise_width
from nflib.continuous.paths import LinearPath, Path, times_of
from nflib.continuous.solvers import checked_finite
from nflib.continuous.steps import Step, StepwiseTransform
from nflib.errors import at_least, check_object
from nflib.events import per_row
from nflib.io.arguments import changed

__all__ = ["AverageVelocity", "FlowMap", "FlowMapTransform", "MLPFlowMap"]


class AverageVelocity(Protocol):
    """An average velocity between two times: any module or function ``u(x, r, t, context=None)``, row by row.

    It is the mean over times from r to t of the velocity along the trajectory that is at x at time r, so that
    ``x + (t - r) u`` is where it is at time t. ``u(x, r, r)`` is the velocity itself.

    Args:
        x: states, ``(B, *event_shape)``.
        r: their times, from 0 to 1, ``(B,)``.
        t: times to go to, likewise; t < r is the way back.
        context: a row for each state; left out where there is none.

    Returns:
        u, of x's shape.
    """

    def __call__(self, x: Tensor, r: Tensor, t: Tensor, context: Any = None) -> Tensor: ...


class FlowMapTransform(StepwiseTransform):
    """The transform from data to noise by jumps ``X_{r -> t}(x) = x + (t - r) u(x, r, t)`` of a network.

    Its inverse generates data from noise. The log-determinant is that of the jumps themselves, exact however well they
    were trained, as long as the map is one-to-one, which is checked.

    Args:
        velocity: u; see `AverageVelocity`.
        num_steps: jumps of equal length, from t = 0 (noise) to 1 (data).
        allowed_folds: the largest share of samples at which the map may turn out not to be one-to-one; these get the
            log-density NaN, which has weight zero.
        noise_width: standard deviation of the noise, by which jumps are judged where a batch is concentrated.

    Raises:
        ValueError: a num_steps that is not a positive integer, allowed_folds outside [0, 1); on use, a map that is not
            one-to-one, an average velocity of another shape than x, a jump that is not finite.
    """

    def __init__(
        self,
        velocity: AverageVelocity,
        num_steps: int = 4,
        *,
        allowed_folds: float = 0.0,
        noise_width: float = 1.0,
    ):
        super().__init__()
        if not 0 <= allowed_folds < 1:
            raise ValueError(f"allowed_folds must be in [0, 1), got {allowed_folds!r}.")
        check_object("velocity", velocity, "MLPFlowMap(2)", "__call__")
        self.velocity = velocity
        self.num_steps = at_least(1, "num_steps", num_steps)
        self.allowed_folds, self.noise_width = allowed_folds, noise_width
        self.uses_context = takes_context(velocity, num_times=2)

    def jump(self, x: Tensor, r: Tensor | float, t: Tensor | float, context: Any = None) -> Tensor:
        """The jump ``X_{r -> t}(x)`` from x at times r to times t.

        Args:
            x: states at times r, ``(B, *event_shape)``.
            r: their times in 0 … 1, ``(B,)`` or a number.
            t: times to go to, likewise.
            context: a row for each state, or None.
        """
        r, t = (times_of(value, x) for value in (r, t))
        return x + per_row(t - r, x) * self.average_velocity(x, r, t, context)

    def average_velocity(self, x: Tensor, r: Tensor, t: Tensor, context: Any = None) -> Tensor:
        """u, with its result checked."""
        u = evaluated(in_single_precision(self.velocity), x, r, t, context)
        if u.shape != x.shape:
            raise ValueError(
                f"the average velocity has shape {tuple(u.shape)}, and x {tuple(x.shape)}; it must have that of x."
            )
        return u

    def _steps(self, context: Any) -> list[Step]:
        times = [k / self.num_steps for k in range(self.num_steps)] + [1.0]
        return [self._step(r, t, context) for r, t in pairwise(times)]

    def _step(self, r: float, t: float, context: Any) -> Step:
        return Step(
            lambda x: checked_finite(self.jump(x, r, t, context), times_of(r, x)),
            lambda y: self.jump(y, t, r, context),
            f"the jump from t = {r:.4g} to {t:.4g}",
        )


class FlowMap(PathFlow):
    """A flow map: noise at t = 0 becomes data at t = 1 in a few jumps, each one pass of a network.

    Its density is exact for any network whose jumps are one-to-one. The jumps back in time, of the same network, prove
    that and are where the inverse is sought: train both, as `MeanFlow`, `Distill` and `Invertible` do.

    Args:
        velocity: any module or function ``u(x, r, t, context=None)``; see `AverageVelocity`.
        event_shape: of one sample; a number is a vector of so many.
        num_steps: jumps of equal length from t = 0 to 1, one pass of the network each.
        path: from noise to data, on which u is to be fitted; says how wide the noise is.
        allowed_folds: the largest share of samples at which the map may turn out not to be one-to-one; these get the
            log-density NaN.
        distribution: of the noise (default: normal, as wide as the path has it at t = 0).
        embedding_net: applied to every context, once a call.
        context_shape: the shape of one context, as for every `Flow`; without this and embedding_net, as the velocity
            says.

    Raises:
        ValueError: as `FlowMapTransform`; a distribution of another event shape; a context that the network cannot do
            without and was not given; on densities, a map that is not one-to-one, an average velocity of another
            shape than x, a jump that is not finite.

    >>> import torch
    >>> shrinks = lambda x, r, t: x * (torch.expm1(r - t) / (t - r))[:, None]  # of the velocity -x
    >>> flow = FlowMap(shrinks, event_shape=(2,), num_steps=2)
    >>> flow.log_prob(torch.zeros(1, 2))  # a normal of standard deviation 1 / e
    tensor([0.1621])
    """

    _transform: FlowMapTransform

    def __init__(
        self,
        velocity: AverageVelocity,
        event_shape: Sequence[int] | int,
        *,
        num_steps: int = 4,
        path: Path = LinearPath(),  # noqa: B008, a frozen dataclass
        allowed_folds: float = 0.0,
        distribution: Distribution | torch.distributions.Distribution | None = None,
        embedding_net: nn.Module | None = None,
        context_shape: Sequence[int | None] | None = None,
    ):
        width = noise_width(path, 0.0)
        transform = FlowMapTransform(velocity, num_steps, allowed_folds=allowed_folds, noise_width=width)
        super().__init__(transform, event_shape, path, distribution, embedding_net, context_shape)

    def average_velocity(self, x: Tensor, r: Tensor | float, t: Tensor | float, context: Any = None) -> Tensor:
        """The average velocity u between two times, of x's shape; see `AverageVelocity`.

        Args:
            x: states at times r, ``(B, *event_shape)``.
            r: their times in 0 … 1, ``(B,)`` or a number.
            t: times to go to, likewise.
            context: a row for each state, where the flow takes one.

        Raises:
            ValueError: times outside 0 … 1, a context that does not fit, a network that gives another shape.
        """
        return self._transform.average_velocity(x, times_of(r, x), times_of(t, x), self._encoded(context, len(x)))

    def jump(self, x: Tensor, r: Tensor | float, t: Tensor | float, context: Any = None) -> Tensor:
        """The jump ``X_{r -> t}(x)`` from x at times r to times t, of x's shape.

        Args:
            x: states at times r, ``(B, *event_shape)``.
            r: their times in 0 … 1, ``(B,)`` or a number.
            t: times to go to, likewise.
            context: a row for each state, where the flow takes one.
        """
        return self._transform.jump(x, r, t, self._encoded(context, len(x)))

    def velocity(self, x: Tensor, t: Tensor | float, context: Any = None) -> Tensor:
        """The velocity ``u(x, t, t)`` at x and t, of x's shape.

        Args:
            x: ``(B, *event_shape)``.
            t: times in 0 … 1, ``(B,)`` or a number.
            context: a row for each x, where the flow takes one.
        """
        return self.average_velocity(x, t, t, context)

    def with_num_steps(self, num_steps: int) -> Self:
        """This flow in another number of jumps: a new flow, with its own density, on the same weights."""
        own = self._transform
        transform = FlowMapTransform(
            own.velocity, num_steps, allowed_folds=own.allowed_folds, noise_width=own.noise_width
        )
        return changed(self, {"num_steps": num_steps}, _transform=transform)


class MLPFlowMap(nn.Module):
    """A network for the average velocity ``u(x, r, t, context)`` of vectors, of residual layers.

    They see x, r, t - r and the context vector. The output starts at zero.

    Args:
        size: how many numbers x has.
        channels: width of the residual layers.
        num_layers: how many of these.
        context_size: how many numbers the context vector has, 0 for none.
        num_frequencies: of `TimeFeatures`; few, as u is fitted to its own derivatives in r and t.

    >>> FlowMap(MLPFlowMap(2, channels=32), event_shape=(2,), num_steps=1).sample(5).shape
    torch.Size([5, 2])
    """

    def __init__(
        self,
        size: int,
        *,
        channels: int = 128,
        num_layers: int = 3,
        context_size: int = 0,
        num_frequencies: int = 2,
    ):
        super().__init__()
        self.times = TimeFeatures(num_frequencies)
        self.uses_context = context_size > 0
        self.context_shape = (context_size,) if context_size else None
        self.network = ResidualMLP(size + 2 * self.times.size + context_size, size, channels, num_layers)

    def forward(self, x: Tensor, r: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        if self.uses_context and context is None:
            raise ValueError("this map is conditioned on a vector; pass the flow a context.")
        return self.network(x, self.times(r), self.times(t - r), context)
