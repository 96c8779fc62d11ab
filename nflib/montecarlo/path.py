"""The geometric path between two densities, and the particles that are moved along it."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from nflib.events import finite_rows, flattened, per_row
from nflib.montecarlo.densities import Proposal, Target, as_proposal, as_target, draw_batches, log_prob_where
from nflib.montecarlo.weighted_samples import WeightedSamples

__all__ = ["GeometricPath", "Particles"]


class Particles(NamedTuple):
    """N points, with what the densities at both ends of the path say about each.

    A point is *dead* where its position or one of its two log-densities is not finite: both are then `-inf`, its
    gradients are zero, and no intermediate density holds any of it. A gradient that is not finite at a point that is
    alive reads zero: every kernel here stays exact whatever the drift.
    """

    x: Tensor
    """`(N, *event_shape)`."""
    log_proposal: Tensor
    """log q(x), `(N,)`, float64."""
    log_target: Tensor
    """log p~(x), `(N,)`, float64."""
    proposal_gradient: Tensor | None = None
    """d log q / dx, `(N, *event_shape)`, or None if no kernel asked for it."""
    target_gradient: Tensor | None = None
    """d log p~ / dx, likewise."""

    @property
    def alive(self) -> Tensor:
        """Which points have finite densities, `(N,)`."""
        return self.log_target > -torch.inf

    @property
    def log_ratio(self) -> Tensor:
        """log p~(x) - log q(x), `(N,)`; `-inf` for dead points."""
        return torch.where(self.alive, self.log_target - self.log_proposal, -torch.inf)

    def log_density(self, inverse_temperature: float) -> Tensor:
        """Log of the intermediate density, `(N,)`: (1 - b) log q + b log p~; `-inf` for dead points."""
        b = inverse_temperature
        return torch.where(self.alive, (1.0 - b) * self.log_proposal + b * self.log_target, -torch.inf)

    def gradient(self, inverse_temperature: float) -> Tensor:
        """Its gradient, `(N, *event_shape)`. Raises ValueError where the particles were made without gradients."""
        if self.proposal_gradient is None or self.target_gradient is None:
            raise ValueError("Particles: no gradients here; evaluate them with GeometricPath.evaluate(gradient=True).")
        b = inverse_temperature
        return (1.0 - b) * self.proposal_gradient + b * self.target_gradient

    def select(self, indices: Tensor) -> Particles:
        """The particles of these indices."""
        return Particles(*(None if value is None else value[indices] for value in self))  # type: ignore[arg-type]

    def replace(self, others: Particles, where: Tensor) -> Particles:
        """`others` where the mask `(N,)` is true, these elsewhere."""

        def merge(mine: Tensor | None, theirs: Tensor | None) -> Tensor | None:
            if mine is None or theirs is None:
                return None
            return torch.where(per_row(where, mine), theirs, mine)

        return Particles(*(merge(mine, theirs) for mine, theirs in zip(self, others, strict=True)))  # type: ignore[arg-type]


class GeometricPath:
    """The densities `q(x)^(1-b) p~(x)^b`, from the proposal q at b = 0 to the target p~ at b = 1.

    Where q or p~ is not finite every density of the path with b > 0 is zero. At most `batch_size` points are given to
    a density at once. `num_evaluations` and `num_gradients` count the points at which the target has been asked for its
    density, and for its gradient as well. Of a proposal without `log_prob` (not `is_geometric`) only the draws know
    log q, elsewhere it reads 0, and only the density at b = 1 means anything.

    Args:
        proposal: q, what `as_proposal` takes.
        target: p~, what `as_target` takes.
        batch_size: how many points a density sees at once.
        allow_stochastic: also take a proposal whose log-densities are estimates.

    Raises:
        ValueError: what `as_proposal` and `as_target` refuse.
    """

    def __init__(self, proposal: Any, target: Any, batch_size: int = 1024, *, allow_stochastic: bool = False) -> None:
        self.proposal: Proposal = as_proposal(proposal, allow_stochastic=allow_stochastic)
        self.target: Target = as_target(target)
        self.is_geometric = hasattr(self.proposal, "log_prob")
        self.batch_size = batch_size
        self.num_evaluations = 0
        self.num_gradients = 0

    @classmethod
    def of_target(cls, target: Target, batch_size: int = 1024) -> GeometricPath:
        """A path that is the target at b = 1 and has no proposal: its particles read log q = 0."""
        return cls(_Constant(), target, batch_size)

    def draw(self, count: int, generator: torch.Generator, *, gradient: bool = False) -> Particles:
        """Draw particles from the proposal.

        Args:
            count: how many.
            generator: of the draws.
            gradient: whether with gradients of both densities, at one evaluation of the target each all the same.
        """
        pieces = []
        for x, log_proposal, usable in draw_batches(self.proposal, count, self.batch_size, generator):
            if gradient:
                _, proposal_gradient = self._with_gradient(x, usable, "proposal")
                log_target, target_gradient = self._with_gradient(x, usable, "target")
                pieces.append(_finite_only(x, log_proposal, log_target, proposal_gradient, target_gradient))
            else:
                pieces.append(_finite_only(x, log_proposal, self._at(x, usable, "target")))
        return _concatenate(pieces)

    def particles_of(self, samples: WeightedSamples) -> Particles:
        """Points that were drawn of the proposal before, with the densities they had; counted as evaluations."""
        assert samples.log_prob is not None and samples.log_target is not None
        self.num_evaluations += len(samples)
        # Without an accelerator there is one device, and nothing need be drawn to tell.
        device = self.device() if torch.accelerator.is_available() else samples.x.device
        return _finite_only(*(part.to(device) for part in (samples.x, samples.log_prob, samples.log_target)))

    def device(self) -> torch.device:
        """Where the proposal draws, which is known once it has drawn."""
        return self.proposal.sample_and_log_prob(1, generator=torch.Generator())[0].device

    def evaluate(self, x: Tensor, where: Tensor | None = None, *, gradient: bool = False) -> Particles:
        """The particles at given points, with the densities there.

        Args:
            x: positions, `(N, *event_shape)`; one that is not finite is dead and is given to neither density.
            where: mask `(N,)` of the points that are wanted; all others are dead likewise. None: all.
            gradient: whether with gradients of both densities.

        Raises:
            ValueError: a log-density that is not one number a sample, or has no gradient where one is wanted.
        """
        pieces = []
        for first in range(0, len(x), self.batch_size):
            chunk = x[first : first + self.batch_size]
            usable = finite_rows(chunk)
            if where is not None:
                usable = usable & where[first : first + self.batch_size]
            if gradient:
                log_proposal, proposal_gradient = self._with_gradient(chunk, usable, "proposal")
                usable = usable & torch.isfinite(log_proposal)
                log_target, target_gradient = self._with_gradient(chunk, usable, "target")
                pieces.append(_finite_only(chunk, log_proposal, log_target, proposal_gradient, target_gradient))
            else:
                log_proposal = self._at(chunk, usable, "proposal")
                usable = usable & torch.isfinite(log_proposal)
                pieces.append(_finite_only(chunk, log_proposal, self._at(chunk, usable, "target")))
        return _concatenate(pieces)

    def with_gradients(self, particles: Particles) -> Particles:
        """The same points with gradients; dead ones stay dead, and points that have gradients are not evaluated."""
        if particles.proposal_gradient is not None and particles.target_gradient is not None:
            return particles
        return self.evaluate(particles.x, particles.alive, gradient=True)

    def at_target(self) -> GeometricPath:
        """`of_target` with counts that go on from these; `with_proposal` tells what log q is of its particles."""
        path = self.of_target(self.target, self.batch_size)
        path.num_evaluations, path.num_gradients = self.num_evaluations, self.num_gradients
        return path

    def with_proposal(self, particles: Particles) -> Particles:
        """The same points with log q evaluated where they stand, and without gradients."""
        values = [
            self._at(x, alive, "proposal")
            for x, alive in zip(particles.x.split(self.batch_size), particles.alive.split(self.batch_size), strict=True)
        ]
        log_proposal = torch.where(particles.alive, torch.cat(values), -torch.inf)
        return Particles(particles.x, log_proposal, particles.log_target)

    def _log_prob(self, x: Tensor, usable: Tensor, name: str) -> Tensor:
        """Log-densities of the "proposal" or "target" at the usable points, NaN elsewhere."""
        density = self.target if name == "target" else self.proposal if self.is_geometric else _Constant()
        if name == "target":
            self.num_evaluations += int(usable.sum())
        return log_prob_where(density.log_prob, x, usable, f"the {name}'s log_prob")

    @torch.no_grad()
    def _at(self, x: Tensor, usable: Tensor, name: str) -> Tensor:
        """As `_log_prob`, in float64."""
        return self._log_prob(x, usable, name).to(x.device, torch.float64)

    def _with_gradient(self, x: Tensor, usable: Tensor, name: str) -> tuple[Tensor, Tensor]:
        if not usable.any():
            return torch.full((len(x),), torch.nan, dtype=torch.float64, device=x.device), torch.zeros_like(x)
        if not x.is_floating_point():
            raise ValueError(
                f"points of {x.dtype} have no gradients; pass floating-point ones, or a kernel that needs no gradient."
            )
        with torch.enable_grad():
            points = x.detach().requires_grad_(True)
            log_prob = self._log_prob(points, usable, name)
            (gradient,) = torch.autograd.grad(log_prob.sum(), points)
        if name == "target":
            self.num_gradients += int(usable.sum())
        gradient = gradient.to(x)
        gradient = torch.where(per_row(finite_rows(gradient), x), gradient, 0.0)
        return log_prob.detach().to(x.device, torch.float64), gradient


class _Constant:
    """Log q = 0 everywhere, with a gradient; nothing to draw from."""

    def log_prob(self, inputs: Tensor, /) -> Tensor:
        return 0.0 * flattened(inputs).sum(dim=1)

    def sample_and_log_prob(self, num_samples: int, *, generator: torch.Generator | None = None) -> Any:
        raise ValueError("there is no proposal here to draw from; use MALA or HMC, which move by the target alone.")


def _finite_only(
    x: Tensor,
    log_proposal: Tensor,
    log_target: Tensor,
    proposal_gradient: Tensor | None = None,
    target_gradient: Tensor | None = None,
) -> Particles:
    log_proposal, log_target = log_proposal.to(torch.float64), log_target.to(torch.float64)
    alive = torch.isfinite(log_proposal + log_target)
    if alive.all():
        return Particles(x.detach(), log_proposal, log_target, proposal_gradient, target_gradient)
    mask = per_row(alive, x)
    gradients = (None if g is None else torch.where(mask, g, 0.0) for g in (proposal_gradient, target_gradient))
    log_proposal = torch.where(alive, log_proposal, -torch.inf)
    log_target = torch.where(alive, log_target, -torch.inf)
    return Particles(x.detach(), log_proposal, log_target, *gradients)


def _concatenate(pieces: list[Particles]) -> Particles:
    if len(pieces) == 1:
        return pieces[0]
    columns = zip(*pieces, strict=True)
    return Particles(*(None if column[0] is None else torch.cat(column) for column in columns))  # type: ignore[arg-type]
