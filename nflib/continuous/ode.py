"""The flow of an ordinary differential equation as a transform, and the `Flow` made of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Self

import torch
from nflows.distributions import Distribution
from torch import Tensor, nn

from nflib.continuous.fields import (
    Between,
    GuidedVelocity,
    Strength,
    Velocity,
    evaluated,
    in_single_precision,
    takes_context,
)
from nflib.continuous.noise import PathFlow, noise_width
from nflib.continuous.paths import LinearPath, Path, times_of
from nflib.continuous.solvers import Field, Heun, Solver, checked_finite
from nflib.continuous.steps import Step, StepwiseTransform
from nflib.derivatives import value_and_trace
from nflib.errors import check_object
from nflib.events import flattened
from nflib.inference import differentiates, without_autocast
from nflib.interfaces import Decoder, Inversion
from nflib.io.arguments import changed

__all__ = ["ODEFlow", "ODETransform", "Velocity"]

DENSITIES = ("map", "trace", "hutchinson")


class ODETransform(StepwiseTransform):
    """The transform from data to noise along ``dx/dt = v(x, t)``, back in time from stop to start.

    Its inverse generates data from noise.

    Args:
        velocity: v, any module or function ``v(x, t, context=None)``; see `Velocity`.
        solver: how the equation is integrated, such as ``Heun(4)``.
        density: what the log-determinant is of. "map": of the very map that a fixed-step solver is, exact at any number
            of steps as long as the map is one-to-one, which is checked. "trace": the trace of the velocity's Jacobian,
            integrated by the same solver along with x, exact up to the solver's error. "hutchinson": the same with an
            estimate of the trace, for bits per dimension where dimensions are many; never a weight.
        start: the time of the noise.
        stop: the time of the data, later.
        num_probes: Rademacher vectors of the estimate by "hutchinson", the same for all rows of a batch.
        probe_seed: of these vectors.
        allowed_folds: with "map", the largest share of samples at which the map may turn out not to be one-to-one;
            these get the log-density NaN, which has weight zero.
        noise_width: standard deviation of the noise, by which "map" judges steps where a batch is concentrated.

    Raises:
        ValueError: a density of another name, "map" without fixed steps, times not in order within 0 … 1, num_probes
            below 1, allowed_folds outside [0, 1), an object that is no velocity or solver; on use, a map that is not
            one-to-one, or a velocity that is not finite or of another shape than x.
    """

    def __init__(
        self,
        velocity: Velocity,
        solver: Solver,
        density: str = "map",
        *,
        start: float = 0.0,
        stop: float = 1.0,
        num_probes: int = 1,
        probe_seed: int = 0,
        allowed_folds: float = 0.0,
        noise_width: float = 1.0,
    ):
        super().__init__()
        if not 0 <= start < stop <= 1:
            raise ValueError(f"times run from 0 (noise) to 1 (data) with start < stop, got {start} to {stop}.")
        if num_probes < 1 or not 0 <= allowed_folds < 1:
            raise ValueError(f"num_probes ({num_probes}) must be 1 or more, allowed_folds ({allowed_folds}) in [0, 1).")
        check_object("velocity", velocity, "MLPVelocity(2)", "__call__")
        self.velocity = velocity
        self._set_solver(solver, density)
        self.start, self.stop = float(start), float(stop)
        self.num_probes, self.probe_seed, self.allowed_folds = num_probes, probe_seed, allowed_folds
        self.noise_width = noise_width
        self.uses_context = takes_context(velocity)

    def with_solver(self, solver: Solver, density: str | None = None) -> ODETransform:
        """The same field under another solver: a new transform on the same weights.

        Args:
            solver: how the equation is integrated.
            density: "map", "trace" or "hutchinson"; None: that of this transform.
        """
        density = density or self.density
        transform = changed(self, {"solver": solver, "density": density})
        transform._set_solver(solver, density)
        return transform

    def _set_solver(self, solver: Solver, density: str) -> None:
        if density not in DENSITIES:
            raise ValueError(f"density must be one of {', '.join(map(repr, DENSITIES))}, got {density!r}.")
        check_object("solver", solver, "Heun(4)", "advance", "pieces")
        if density == "map" and not solver.is_map:
            raise ValueError(
                f"{type(solver).__name__} chooses its steps by x, so its map has no simple Jacobian; use "
                "density='trace', or a solver of fixed steps."
            )
        self.solver, self.density = solver, density

    @property
    def stochastic_density(self) -> bool:
        """Whether log-densities are estimates, and so no weights."""
        return self.density == "hutchinson"

    @property
    def exact_forward(self) -> bool:
        """Whether the log-determinant of `forward` is that of the very map that the inverse turns back."""
        return self.density == "map"

    def forward(self, inputs: Tensor, context: Any = None) -> tuple[Tensor, Tensor]:
        """The noise of data, and ``log|d noise / d data|``."""
        if self.density == "map":
            return super().forward(inputs, context)
        return self._with_trace(inputs, context, backwards=True)

    def invert(self, inputs: Tensor, context: Any = None, decoder: Decoder | None = None) -> Inversion:
        """As `inverse`. What the integrated trace gives is not quite the density of the x returned: see `forward`."""
        if self.density == "map":
            return super().invert(inputs, context)
        return Inversion(*self._with_trace(inputs, context, backwards=False), None)

    def guided(self, guidance: Strength) -> ODETransform:
        """This transform along the guided field, which takes pairs of contexts; see `Flow.guided`."""
        velocity = GuidedVelocity(self.velocity, guidance)
        transform = changed(self, {"velocity": velocity})
        transform.velocity = velocity
        return transform

    def _steps(self, context: Any) -> list[Step]:
        return [self._step(start, stop, context) for start, stop in self._pieces()]

    def _step(self, start: float, stop: float, context: Any) -> Step:
        field = self._field(start, stop)
        return Step(
            lambda x: self.solver.advance(field, x, start, stop, context).state,
            lambda y: self.solver.advance(field, y, stop, start, context).state,
            f"the step from t = {start:.4g} to {stop:.4g}",
        )

    def _pieces(self, backwards: bool = False) -> list[tuple[float, float]]:
        """The stretches of time that are integrated one after the other."""
        ends = (self.stop, self.start) if backwards else (self.start, self.stop)
        return self.solver.pieces(*ends, getattr(self.velocity, "edges", ()))

    def _field(self, start: float, stop: float) -> Field:
        """The velocity between two times, with its result checked."""
        velocity = in_single_precision(Between(self.velocity, start, stop))

        def field(x: Tensor, t: Tensor, context: Any) -> Tensor:
            v = evaluated(velocity, x, t, context)
            if v.shape != x.shape:
                raise ValueError(
                    f"the velocity has shape {tuple(v.shape)}, and x {tuple(x.shape)}; it must have the shape of x."
                )
            # A solver that chooses its steps tries some that it then rejects, and looks at accepted ones by itself.
            return checked_finite(v, t) if self.solver.is_map else v

        return field

    @without_autocast
    @differentiates
    def _with_trace(self, x: Tensor, context: Any, *, backwards: bool) -> tuple[Tensor, Tensor]:
        """Where the field takes x, and the integral of its Jacobian's trace along the way."""
        shape, size = x.shape[1:], math.prod(x.shape[1:])
        probes = self._probes(size, x) if self.stochastic_density else None
        state = torch.cat([flattened(x), x.new_zeros(len(x), 1)], dim=1)
        for start, stop in self._pieces(backwards):
            field = self._field(min(start, stop), max(start, stop))

            def augmented(state: Tensor, t: Tensor, rows: Any, field: Field = field) -> Tensor:
                now = state[:, :-1].reshape(len(state), *shape)
                v, trace = value_and_trace(lambda x: field(x, t, rows), now, probes)
                return torch.cat([flattened(v), trace[:, None]], dim=1)

            state = self.solver.advance(augmented, state, start, stop, context).state
        return state[:, :-1].reshape(x.shape), state[:, -1]

    def _probes(self, size: int, x: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(self.probe_seed)
        signs = torch.randint(0, 2, (self.num_probes, size), generator=generator)
        return (2.0 * signs - 1.0).to(x)


class ODEFlow(PathFlow):
    """A continuous flow: noise at t = 0 becomes data at t = 1 along a velocity field.

    Args:
        velocity: any module or function ``v(x, t, context=None)``; see `Velocity`.
        event_shape: of one sample; a number is a vector of so many.
        path: which the field was, or is to be, fitted to; says how wide the noise is, and converts the velocity into a
            score.
        solver: how the field is integrated.
        density: "map", the exact log-determinant of the solver's map; "trace", integrated by the solver along with x;
            or "hutchinson", an estimate of it; see `ODETransform`.
        start: the time of the noise.
        stop: the time of the data.
        num_probes: random vectors of the estimate by "hutchinson".
        probe_seed: of these vectors.
        allowed_folds: with "map", the largest share of samples at which the map may turn out not to be one-to-one;
            these get the log-density NaN.
        distribution: of the noise (default: normal, as wide as the path has it at t = start).
        embedding_net: applied to every context, once a call.
        context_shape: the shape of one context, as for every `Flow`; without this and embedding_net, as the velocity
            says.

    Raises:
        ValueError: as `ODETransform`; a distribution of another event shape; a context that the velocity cannot do
            without and was not given; on sampling with a density, a map that is not one-to-one; a velocity that is not
            finite, or of another shape than x.

    >>> import torch
    >>> flow = ODEFlow(lambda x, t: -x, event_shape=(2,), solver=Heun(4))
    >>> x, log_prob = flow.sample_and_log_prob(5, seed=0)
    >>> torch.allclose(log_prob, flow.log_prob(x), atol=1e-5)
    True
    """

    def __init__(
        self,
        velocity: Velocity,
        event_shape: Sequence[int] | int,
        *,
        path: Path = LinearPath(),  # noqa: B008, a frozen dataclass
        solver: Solver = Heun(4),  # noqa: B008, likewise
        density: str = "map",
        start: float = 0.0,
        stop: float = 1.0,
        num_probes: int = 1,
        probe_seed: int = 0,
        allowed_folds: float = 0.0,
        distribution: Distribution | torch.distributions.Distribution | None = None,
        embedding_net: nn.Module | None = None,
        context_shape: Sequence[int | None] | None = None,
    ):
        transform = ODETransform(
            velocity,
            solver,
            density,
            start=start,
            stop=stop,
            num_probes=num_probes,
            probe_seed=probe_seed,
            allowed_folds=allowed_folds,
            noise_width=noise_width(path, start),
        )
        super().__init__(transform, event_shape, path, distribution, embedding_net, context_shape)

    @property
    def span(self) -> tuple[float, float]:
        """The times of noise and data, start and stop."""
        return self._transform.start, self._transform.stop

    def velocity(self, x: Tensor, t: Tensor, context: Any = None) -> Tensor:
        """The velocity field ``d x / d t`` of the flow.

        Args:
            x: ``(B, *event_shape)``.
            t: times in 0 … 1, ``(B,)`` or a number.
            context: a row for each x, where the flow takes one.

        Returns:
            Of x's shape.

        Raises:
            ValueError: a time outside 0 … 1, or a context that does not fit.
        """
        return self._evaluated(self._transform.velocity, x, t, context)

    def _evaluated(self, field: Velocity, x: Tensor, t: Tensor, context: Any) -> Tensor:
        return evaluated(in_single_precision(field), x, times_of(t, x), self._encoded(context, len(x)))

    def guided(self, guidance: Strength, unconditional: Any = None) -> Self:  # type: ignore[override]
        """This flow under classifier-free guidance: an `ODEFlow` along the guided field, on the same weights.

        Args:
            guidance: the strength, a number (1: the conditional flow itself) or a function; see `GuidedVelocity`.
            unconditional: the context of the unconditional branch, as for `Flow.guided`.
        """
        guided = super().guided(guidance, unconditional)  # type: ignore[arg-type]
        arguments = {
            "velocity": guided._transform.velocity,
            "distribution": guided._distribution,
            "embedding_net": guided._embedding_net,
            "context_shape": self.context_shape,
        }
        return changed(self, arguments, **guided._modules)  # type: ignore[arg-type]

    def with_solver(self, solver: Solver, density: str | None = None) -> Self:
        """This flow under another solver: a new flow, with its own density, on the same weights.

        Args:
            solver: how the field is integrated.
            density: "map", "trace" or "hutchinson"; None: that of this flow.

        >>> import torch
        >>> from nflib.continuous import Dopri5
        >>> flow = ODEFlow(lambda x, t: -x, event_shape=(2,))
        >>> flow.with_solver(Dopri5(1e-8, 1e-8), "trace").log_prob(torch.zeros(1, 2))
        tensor([0.1621])
        """
        transform = self._transform.with_solver(solver, density)
        return changed(self, {"solver": solver, "density": transform.density}, _transform=transform)
