"""Stochastic interpolants: a drift and a score learnt apart, between any two densities; and symmetric flow matching."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from nflib.continuous.couplings import Coupling, IndependentCoupling, check_data
from nflib.continuous.fields import GuidedVelocity, Strength, Velocity
from nflib.continuous.objectives import squared_error
from nflib.continuous.objectives.parts import OfPairs, check_parts
from nflib.continuous.ode import ODEFlow
from nflib.continuous.paths import Path, TwoSidedPath
from nflib.continuous.times import Times, UniformTimes
from nflib.events import flattened
from nflib.io.arguments import changed
from nflib.random import normal_like

__all__ = ["InterpolantFlow", "InterpolantMatching", "SymmetricMatching"]


class InterpolantFlow(ODEFlow):
    """A stochastic interpolant: an `ODEFlow` along a path with a latent, with a learnt score of the path as well.

    As a flow it follows ``dx/dt = b``; the equations ``dx = (b ± eps s) dt + sqrt(2 eps) dW`` of the same marginals are
    a proposal: ``DiffusionProposal(flow, eps, num_steps, score=flow.path_score)``.

    Args:
        velocity: b, as for `ODEFlow`.
        path_score: s, a module or function of the same arguments.
        event_shape: of one sample; a number is a vector of so many.
        path: from the density at t = 0 to the data, with a latent.
        options: further keyword arguments of `ODEFlow`; its `distribution` is the density at t = 0.

    Raises:
        ValueError: a path without a latent, and as for `ODEFlow`.

    >>> import torch
    >>> from nflib.continuous import MLPVelocity
    >>> flow = InterpolantFlow(MLPVelocity(2, channels=16), MLPVelocity(2, channels=16), (2,))
    >>> loss, metrics = InterpolantMatching()(flow, {"inputs": torch.randn(8, 2)}, torch.Generator().manual_seed(0))
    >>> sorted(metrics)
    ['drift', 'score']
    """

    def __init__(
        self,
        velocity: Velocity,
        path_score: Velocity,
        event_shape: Sequence[int] | int,
        *,
        path: Path = TwoSidedPath(),  # noqa: B008, a frozen dataclass
        **options: Any,
    ):
        super().__init__(velocity, event_shape, path=path, **options)
        if path.one_sided:
            raise ValueError(
                f"an InterpolantFlow needs a path with a latent, as TwoSidedPath(); {type(path).__name__} has none."
            )
        self.score_field = path_score

    def path_score(self, x: Tensor, t: Tensor, context: Any = None) -> Tensor:
        """The learnt score of the path, ``s(x, t) = d log p_t(x) / dx``.

        Args:
            x: ``(B, *event_shape)``.
            t: times in 0 … 1, ``(B,)`` or a number.
            context: a row for each x, where the flow takes one.

        Returns:
            Of x's shape.
        """
        return self._evaluated(self.score_field, x, t, context)

    def guided(self, guidance: Strength, unconditional: Any = None) -> Self:  # type: ignore[override]
        """This flow under classifier-free guidance of velocity and score; see `ODEFlow.guided`.

        Args:
            guidance: the strength, a number, or a function of two velocities, which is given scores for the score.
            unconditional: the context of the unconditional branch, as for `Flow.guided`.
        """
        score = GuidedVelocity(self.score_field, guidance)
        return changed(super().guided(guidance, unconditional), {"path_score": score}, score_field=score)


@dataclass(frozen=True)
class InterpolantMatching(OfPairs):
    """An objective that fits drift b and score s of an `InterpolantFlow` to its path (Albergo et al. 2023).

    (arXiv:2303.08797.) The loss is the mean of ``|b|^2 / 2 - (d x_t / dt) . b`` plus that of ``|s|^2 / 2 + z . s /
    gamma``, each over z and -z, so that what diverges at the ends cancels. The minima are ``b = E[d x_t / dt | x_t]``
    and ``s = -E[z | x_t] / gamma``, with the values ``-E|b|^2 / 2`` and ``-E|s|^2 / 2``.

    Args:
        coupling: which x0 is paired with which x1.
        times: the density of t.

    Raises:
        ValueError: a class in the place of a part; on training, data of another shape than the flow's events.
    """

    needs_flow: ClassVar[dict[str, str]] = {"path_score": "an InterpolantFlow"}

    coupling: Coupling = field(default_factory=IndependentCoupling)
    times: Times = field(default_factory=UniformTimes)

    def __call__(
        self, flow: InterpolantFlow, batch: dict[str, Tensor], generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        x0, x1, context = self.paired(flow, batch, generator)
        t = self.times.sample(len(x1), generator).to(x1)
        edge = torch.finfo(t.dtype).eps
        t = t.clamp(edge, 1 - edge)
        z = normal_like(x1, generator)
        gamma = flow.path.coefficients(t).like(x1).gamma
        drift = score = x1.new_zeros(())
        for latent in (z, -z):
            x, slope = flow.path.pair(x0, x1, t, latent)
            b, s = flow.velocity(x, t, context), flow.path_score(x, t, context)
            drift = drift + _mean_sum(0.5 * b.square() - slope * b) / 2
            score = score + _mean_sum(0.5 * s.square() + latent / gamma * s) / 2
        return drift + score, {"drift": drift.detach(), "score": score.detach()}


def _mean_sum(values: Tensor) -> Tensor:
    return flattened(values).sum(1).mean()


@dataclass(frozen=True)
class SymmetricMatching:
    """The objective of symmetric flow matching: one velocity by which noise becomes x while y becomes noise.

    (SymmFlow, MedSymmFlow.) Events are pairs x and y side by side, ``(B, size + rest)``: at t = 0 noise and y, at t = 1
    x and noise, in straight lines. ``flow.decode([noise, y])`` then draws an x for y, and ``flow.encode([x, noise])`` a
    y for x. Either is right in its own distribution, but not given the other: a deterministic flow from (noise, y)
    fixes how x depends on y. Of standard normal x and y of correlation r they have the correlation ``sin(int_0^1 r / (2
    sqrt(q^2 - (t (1 - t) r)^2)) dt)``, ``q = t^2 + (1 - t)^2``, which is 0.79 r for small r. For exact conditionals fit
    a flow with y as context.

    Args:
        size: how many numbers x has.
        times: the density of t.

    Raises:
        ValueError: a class in the place of times; on training, events that are no vectors, have no numbers left for y,
            or another shape than the flow's.
    """

    size: int
    times: Times = field(default_factory=UniformTimes)

    keys: ClassVar[tuple[str, ...]] = ("inputs", "context")
    needs_flow: ClassVar[dict[str, str]] = {"velocity": "an ODEFlow or a FlowMap"}

    def __post_init__(self) -> None:
        check_parts(self)

    def __call__(
        self, flow: ODEFlow, batch: dict[str, Tensor], generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        data = batch["inputs"]
        if data.dim() != 2 or not 0 < self.size < data.shape[1]:
            raise ValueError(
                f"SymmetricMatching takes vectors of x ({self.size} numbers) and y, got the shape {tuple(data.shape)}."
            )
        check_data(flow, data)
        noise = normal_like(data, generator)
        start = torch.cat([noise[:, : self.size], data[:, self.size :]], dim=1)
        stop = torch.cat([data[:, : self.size], noise[:, self.size :]], dim=1)
        t = self.times.sample(len(data), generator).to(data)
        v = flow.velocity(torch.lerp(start, stop, t[:, None]), t, batch.get("context"))
        loss = squared_error(v - (stop - start)).mean()
        return loss, {"symmetric_matching": loss.detach()}
