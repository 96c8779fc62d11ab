"""Flow matching: the velocity of pairs of noise and data, regressed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from nflib.continuous.couplings import Coupling, IndependentCoupling, Pairs
from nflib.continuous.objectives.parts import OfPairs
from nflib.continuous.ode import ODEFlow
from nflib.continuous.times import Times, UniformTimes, UShapedTimes
from nflib.events import flattened

__all__ = ["FlowMatching", "PseudoHuber", "Reflow", "squared_error"]


def squared_error(difference: Tensor) -> Tensor:
    """The mean square over the numbers of each row, ``(B,)``, of differences ``(B, *event_shape)``."""
    return flattened(difference).square().mean(1)


@dataclass(frozen=True)
class PseudoHuber:
    """The pseudo-Huber loss ``sqrt(|d|^2 + c^2) - c`` of each row, ``(B,)``, of differences d.

    It is quadratic for small differences and linear for large ones. Its minimum is not the mean but lies between mean
    and median: it is for straight couplings, whose velocity is the same for all pairs at a point.

    Args:
        c: where the loss becomes linear; default 0.00054 for each number of a row (Lee et al. 2024, arXiv:2405.20320).

    >>> import torch
    >>> PseudoHuber(c=3.0)(torch.tensor([[4.0, 0.0], [0.0, 0.0]]))
    tensor([2., 0.])
    """

    c: float | None = None

    def __call__(self, difference: Tensor) -> Tensor:
        flat = flattened(difference)
        c = 0.00054 * flat.shape[1] if self.c is None else self.c
        return (flat.square().sum(1) + c**2).sqrt() - c


@dataclass(frozen=True)
class FlowMatching(OfPairs):
    """An objective that fits an `ODEFlow`'s velocity to ``d x_t / dt`` of its path between pairs of noise and data.

    The loss is ``mean rho(v(x_t, t) - d x_t / dt)`` over pairs and times; its minimum is the velocity that carries the
    noise to the data (Lipman et al. 2023, arXiv:2210.02747; Liu et al. 2023, arXiv:2209.03003). The path is the flow's.

    Args:
        coupling: which noise is paired with which data.
        times: the density of t; a time at which the path has no velocity is not to be drawn.
        loss: rho, from differences ``(B, *event_shape)`` to ``(B,)``.
        weight: from times ``(B,)`` to factors of the loss ``(B,)``, such as `cosmap`; None: equal ones. "weights" of
            the data come on top.

    Raises:
        ValueError: a class in the place of a part; on training, data of another shape than the flow's events, a path
            with a latent.

    >>> import tempfile
    >>> import torch
    >>> from nflib.continuous import MLPVelocity
    >>> from nflib.training import TrainingConfig, fit
    >>> flow = ODEFlow(MLPVelocity(2, channels=32), (2,))
    >>> config = TrainingConfig(batch_size=64, max_steps=20, progress_bar=False, tensorboard=False)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     fit(flow, torch.randn(256, 2), config=config, objective=FlowMatching(), output=folder).steps
    20
    """

    needs_flow: ClassVar[dict[str, str]] = {"velocity": "an ODEFlow or a FlowMap"}

    coupling: Coupling = field(default_factory=IndependentCoupling)
    times: Times = field(default_factory=UniformTimes)
    loss: Callable[[Tensor], Tensor] = squared_error
    weight: Callable[[Tensor], Tensor] | None = None

    @property
    def keys(self) -> tuple[str, ...]:
        """Names of the tensors of a batch that are read."""
        return (*super().keys, "weights")

    def __call__(
        self, flow: ODEFlow, batch: dict[str, Tensor], generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        x, v, t, context = self.drawn(flow, batch, generator)
        return self.compared(flow.velocity(x, t, context) - v, t, batch)

    def drawn(
        self, flow: ODEFlow, batch: dict[str, Tensor], generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor, Any]:
        """Points between noise and data, at which a velocity is compared.

        Args:
            flow: that is trained.
            batch: as `fit` gives it.
            generator: of noise and times.

        Returns:
            Points and the velocities of their paths, ``(B, *event_shape)``, times ``(B,)``, and contexts or None.
        """
        x0, x1, context = self.paired(flow, batch, generator)
        t = self.times.sample(len(x1), generator).to(x1)
        x, v = flow.path.pair(x0, x1, t)
        return x, v, t, context

    def compared(self, difference: Tensor, t: Tensor, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of velocities at points that were `drawn`.

        Args:
            difference: between the flow's velocities and those of the paths, ``(B, *event_shape)``.
            t: times, ``(B,)``.
            batch: which may hold "weights".

        Returns:
            The loss, a scalar, and what is logged of it.
        """
        value = self.loss(difference)
        value = value if self.weight is None else self.weight(t) * value
        loss = (value * batch["weights"].to(value) if "weights" in batch else value).mean()
        return loss, {"flow_matching": loss.detach()}


@dataclass(frozen=True)
class Reflow(FlowMatching):
    """`FlowMatching` on pairs of a flow's own noise and samples, which straightens its paths (rf++, Lee et al. 2024).

    With pairs by `pairs_of`, times mostly near both ends, and the pseudo-Huber loss (arXiv:2405.20320).

    Args:
        coupling: which noise is paired with which data: as they come.
        times: the density of t.
        loss: from differences ``(B, *event_shape)`` to ``(B,)``.
        weight: as for `FlowMatching`.
    """

    coupling: Coupling = field(default_factory=Pairs)
    times: Times = field(default_factory=UShapedTimes)
    loss: Callable[[Tensor], Tensor] = field(default_factory=PseudoHuber)
