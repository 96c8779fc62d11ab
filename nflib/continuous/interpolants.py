"""Stochastic interpolants: a drift and a score learnt apart, between any two densities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

from torch import Tensor

from nflib.continuous.fields import GuidedVelocity, Strength, Velocity
from nflib.continuous.ode import ODEFlow
from nflib.continuous.paths import Path, TwoSidedPath
from nflib.io.arguments import changed

__all__ = ["InterpolantFlow"]


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
    >>> from nflib.continuous import InterpolantMatching, MLPVelocity
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
