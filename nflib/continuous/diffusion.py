"""The stochastic differential equation along a velocity and a score, as a proposal on whole paths."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nflib.contexts import repeated
from nflib.continuous.fields import evaluated, in_single_precision
from nflib.continuous.ode import ODEFlow
from nflib.errors import at_least
from nflib.events import flattened
from nflib.random import normal_like

__all__ = ["DiffusionProposal", "velocity_and_score"]


def velocity_and_score(
    flow: ODEFlow, x: Tensor, t: Tensor, context: Any = None, score: Callable[..., Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """Of x ``(B, *event_shape)`` at t, a flow's velocity and a score: the velocity's, unless another is given."""
    velocity = flow.velocity(x, t, context)
    if score is None:
        return velocity, flow.path.score_from_velocity(velocity, x, t)
    return velocity, evaluated(in_single_precision(score), x, t, context)


class DiffusionProposal:
    """A proposal by a stochastic differential equation from noise to data, weighted path by path.

    The equation ``dx = (b + eps s) dt + sqrt(2 eps) dW`` is solved in Euler-Maruyama steps of length h. Each draw comes
    with ``log p0(x_0) - sum_k log N(x_k; x_k+1 - h (b - eps s), 2 eps h) / N(x_k+1; x_k + h (b + eps s), 2 eps h)`` in
    the place of log q(x): with it, importance weights are right in expectation for any field and any number of steps,
    and the better both are the more even the weights. It belongs to the path that led to x, not to x: there is no
    ``log_prob(x)``, and its mean over draws near x is not log q(x). `importance_sample` and `smc` take the proposal.

    Args:
        flow: gives the velocity b, the path, the noise, and the times of noise and data; its solver is not used.
        epsilon: half the squared noise per unit of time, a number, or a function of t that is taken at the middle of
            each step.
        num_steps: equal steps from the flow's start to its stop.
        score: s, a function ``(x, t, context)`` as the velocity is one (default: that of the velocity, by the flow's
            path; that of `TwoSidedPath` is to be learnt). At an end of the path without noise, where a score would
            divide by zero, velocity and score are taken at the middle of the step instead.
        context: one for all draws, where the flow takes one; see `Flow.given`.

    Raises:
        ValueError: a num_steps that is not a positive integer, an epsilon that is not positive, a path that needs a
            score of its own, a context that does not fit.

    >>> import torch
    >>> from nflib.continuous import ODEFlow
    >>> from nflib.montecarlo import importance_sample
    >>> flow = ODEFlow(lambda x, t: (2 * t - 1)[:, None] / ((1 - t) ** 2 + t**2)[:, None] * x, (2,))
    >>> normal = torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2))
    >>> samples = importance_sample(DiffusionProposal(flow, 0.5, 20), normal, 2000, seed=0)
    >>> abs(samples.log_normalizer) < 3 * samples.log_normalizer_standard_error
    True
    """

    def __init__(
        self,
        flow: ODEFlow,
        epsilon: float | Callable[[float], float],
        num_steps: int,
        *,
        score: Callable[..., Tensor] | None = None,
        context: Any = None,
    ):
        num_steps = at_least(1, "num_steps", num_steps)
        start, stop = flow.span
        self.flow, self.score, self.context = flow, score, flow.given(context).context
        self.step = (stop - start) / num_steps
        # Where the field is looked at before and after each step: not where its score divides by zero.
        self.looks = [start + k * self.step for k in range(num_steps)] + [stop]
        middles = [t + 0.5 * self.step for t in self.looks[:-1]]
        self.epsilons = [float(epsilon(t)) if callable(epsilon) else float(epsilon) for t in middles]
        if not all(0 < value < math.inf for value in self.epsilons):
            raise ValueError("DiffusionProposal: epsilon must be positive and finite at all times between the ends.")
        if score is None and not flow.path.one_sided:
            raise ValueError(f"{type(flow.path).__name__} does not tell the score of a velocity; pass score, too.")
        for end, middle in ((0, middles[0]), (-1, middles[-1])):
            c = flow.path.coefficients(torch.tensor([self.looks[end]], dtype=torch.float64))
            if float((c.alpha if flow.path.one_sided else c.gamma).abs()) < 1e-12:
                self.looks[end] = middle

    @torch.no_grad()
    def sample_and_log_prob(
        self, num_samples: int, *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draw samples, each with the number that stands for its log-density.

        Args:
            num_samples: how many.
            generator: of the random numbers; None: torch's global one.

        Returns:
            Draws ``(num_samples, *event_shape)`` and these numbers, ``(num_samples,)``, in nats.
        """
        context = repeated(self.context, num_samples)
        x, log_prob = self.flow.noise_and_log_prob(num_samples, self.context, generator=generator)
        x, log_prob = (x, log_prob) if context is None else (x[0], log_prob[0])
        velocity, score = self._field(x, self.looks[0], context)
        for look, epsilon in zip(self.looks[1:], self.epsilons, strict=True):
            scale = math.sqrt(2 * epsilon * self.step)
            noise = normal_like(x, generator)
            moved = x + self.step * (velocity + epsilon * score) + scale * noise
            velocity, score = self._field(moved, look, context)
            # The noise with which the step back in time would lead from here to where this one began.
            back = (x - moved + self.step * (velocity - epsilon * score)) / scale
            log_prob = log_prob - 0.5 * flattened(noise.square() - back.square()).sum(1)
            x = moved
        return x, log_prob

    def _field(self, x: Tensor, t: float, context: Any) -> tuple[Tensor, Tensor]:
        times = torch.full((len(x),), t, dtype=x.dtype, device=x.device)
        return velocity_and_score(self.flow, x, times, context, self.score)
