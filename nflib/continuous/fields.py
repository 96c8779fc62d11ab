"""Velocity fields, and fields made of others: converted, guided, refined, in blocks of time."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from nflib.contexts import map_context
from nflib.continuous.paths import Path
from nflib.dtypes import widened
from nflib.errors import first_line
from nflib.events import flattened, per_row
from nflib.io.arguments import keep_arguments
from nflib.transforms.guided import unpaired

__all__ = [
    "BlockwiseVelocity",
    "FromDenoiser",
    "FromNoise",
    "FromScore",
    "GuidedVelocity",
    "RatioAware",
    "RefinedVelocity",
    "Velocity",
]


class Velocity(Protocol):
    """A velocity field: any module or function ``v(x, t, context=None)`` that treats each row of a batch by itself.

    A field that is not smooth at some times has a list of them, `edges`, and a method ``within(start, stop)`` that
    gives the field between two. One may say in `context_shape` which contexts it takes, as a flow does, and in
    `uses_context` whether it takes any, where its signature does not tell.

    Args:
        x: states, ``(B, *event_shape)``.
        t: their times, from 0 (noise) to 1 (data), ``(B,)``.
        context: a row for each state; left out where there is none.

    Returns:
        ``d x / d t``, of x's shape.
    """

    def __call__(self, x: Tensor, t: Tensor, context: Any = None) -> Tensor: ...


Strength = float | Callable[[Tensor, Tensor], Tensor]


def takes_context(field: Callable[..., Tensor], num_times: int = 1) -> bool:
    """Whether a function of x and so many times has an argument after them, unless it says so by `uses_context`."""
    own = getattr(field, "uses_context", None)
    if own is not None:
        return bool(own)
    try:
        parameters = inspect.signature(field.forward if isinstance(field, nn.Module) else field).parameters.values()
    except ValueError as error:  # of a traced module, or a function that is not written in Python
        raise ValueError(
            f"no signature tells whether this {type(field).__name__} takes a context; say so by its attribute "
            "uses_context, True or False, or wrap it in a function of your own."
        ) from error
    return len(parameters) > 1 + num_times or any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters)


def context_shape_of(field: Callable[..., Tensor]) -> tuple[int | None, ...] | None:
    """The shape of one context, where a field says it."""
    return getattr(field, "context_shape", None)


def evaluated(field: Callable[..., Tensor], *inputs: Any) -> Tensor:
    """The field's value at inputs, the last of which is the context; None is left out.

    Raises ValueError where the field cannot do without.
    """
    if inputs[-1] is not None:
        return field(*inputs)
    try:
        return field(*inputs[:-1])
    except (AttributeError, TypeError) as error:
        # What a field does not need may be missing for another reason, but None is what was not passed.
        missing = "NoneType" in str(error) and takes_context(field, len(inputs) - 2)
        if not missing and "required positional argument" not in str(error):
            raise
        raise ValueError(f"this field takes a context ({first_line(error)}); pass the flow one.") from error


def _within(field: Velocity, start: float, stop: float) -> Velocity:
    """A field between two times, of which it may have its own way."""
    within = getattr(field, "within", None)
    return field if within is None else within(start, stop)


class Between(nn.Module):
    """A field between two times, as a module of its weights."""

    def __init__(self, velocity: Velocity, start: float, stop: float):
        super().__init__()
        self.velocity, self.start, self.stop = velocity, start, stop

    def forward(self, *inputs: Any) -> Tensor:
        return _within(self.velocity, self.start, self.stop)(*inputs)


def in_single_precision(velocity: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The field, computed in float32 where its weights are in half precision: of its rounding no map is smooth."""
    if not isinstance(velocity, nn.Module):
        return velocity
    if not any(w.dtype.itemsize < 4 and w.is_floating_point() for w in (*velocity.parameters(), *velocity.buffers())):
        return velocity
    weights = {**dict(velocity.named_parameters()), **dict(velocity.named_buffers())}
    single = {name: widened(w) for name, w in weights.items()}
    # A context comes as an embedding in half precision makes it.
    return lambda *inputs: torch.func.functional_call(velocity, single, tuple(map_context(widened, i) for i in inputs))


class _OfAnother(nn.Module):
    """A field made of another, `field`, whose edges it has. A subclass writes `_velocity`."""

    def __init__(self, field: Callable[..., Tensor]):
        super().__init__()
        self.field = field
        self.uses_context = takes_context(field)
        self.context_shape = context_shape_of(field)

    @property
    def edges(self) -> Sequence[float]:
        return getattr(self.field, "edges", ())

    def within(self, start: float, stop: float) -> Velocity:
        """The field between two times, of which `field` may have its own way."""
        field = _within(self.field, start, stop)
        return lambda x, t, context=None: self._velocity(field, x, t, context)

    def forward(self, x: Tensor, t: Tensor, context: Any = None) -> Tensor:
        return self._velocity(self.field, x, t, context)

    def _velocity(self, field: Callable[..., Tensor], x: Tensor, t: Tensor, context: Any) -> Tensor:
        raise NotImplementedError


class _Converted(_OfAnother):
    def __init__(self, network: Callable[..., Tensor], path: Path):
        super().__init__(network)
        self.path = path

    def _velocity(self, field: Callable[..., Tensor], x: Tensor, t: Tensor, context: Any) -> Tensor:
        value = evaluated(field, x, t, context)
        v = self._converted(value, x, t)
        if not torch.compiler.is_compiling():
            spoilt = ~flattened(v).isfinite().all(1) & flattened(value + x).isfinite().all(1)
            if bool(spoilt.any()):
                raise ValueError(
                    f"{type(self).__name__} has no velocity at t = {float(t[spoilt][0]):.6g}, where the conversion of "
                    f"{type(self.path).__name__} divides by zero; integrate from start > 0, or to stop < 1."
                )
        return v

    def _converted(self, value: Tensor, x: Tensor, t: Tensor) -> Tensor:
        raise NotImplementedError


class FromScore(_Converted):
    """The velocity field of a network that was trained to predict the score ``s(x, t, context)`` of a path.

    Args:
        network: s, a module or function, which gives scores of x's shape.
        path: from standard normal noise to data, without a latent, on which it was trained.

    Raises:
        ValueError: on evaluation, at a time at which the score does not tell the velocity (t = 0 of `LinearPath`).

    >>> import torch
    >>> from nflib.continuous.paths import LinearPath
    >>> field = FromScore(lambda x, t: -x / (t**2 + (1 - t) ** 2)[:, None], LinearPath())  # of standard normal data
    >>> field(torch.ones(1, 2), torch.tensor([0.5]))
    tensor([[0., 0.]])
    """

    def _converted(self, value: Tensor, x: Tensor, t: Tensor) -> Tensor:
        return self.path.velocity_from_score(value, x, t)


class FromDenoiser(_Converted):
    """The velocity field of a denoiser, a network ``D(x, t, context) = E[x1 | x_t]`` that predicts the data.

    Where no noise is left (t = 1 of `LinearPath`) ``E[x0 | x_1]`` is zero and the velocity is ``beta' D``.

    Args:
        network: D, a module or function, which gives data of x's shape.
        path: from standard normal noise to data, without a latent, on which it was trained.

    Raises:
        ValueError: on evaluation, at a time at which alpha' diverges as well (t = 1 of `VariancePreservingPath`).
    """

    def _converted(self, value: Tensor, x: Tensor, t: Tensor) -> Tensor:
        c = self.path.coefficients(t).like(x)
        ends = (c.alpha.abs() < 4 * torch.finfo(x.dtype).eps) & c.alpha_dot.isfinite()
        # Not computed at all where it is not wanted: a NaN there would spoil the gradient.
        inner = torch.where(ends, 0.5, t.to(x.dtype).reshape(ends.shape)).flatten()
        return torch.where(ends, c.beta_dot * value, self.path.velocity_from_denoised(value, x, inner))


class FromNoise(_Converted):
    """The velocity field of a noise predictor, a network ``E(x, t, context) = E[x0 | x_t]``.

    Args:
        network: E, a module or function, which gives noise of x's shape.
        path: from standard normal noise to data, without a latent, on which it was trained.

    Raises:
        ValueError: on evaluation, at a time at which the noise does not tell the data (t = 0 of `LinearPath`).
    """

    def _converted(self, value: Tensor, x: Tensor, t: Tensor) -> Tensor:
        return self.path.velocity_from_noise(value, x, t)


@keep_arguments
@dataclass(frozen=True)
class RatioAware:
    """A strength of guidance w that falls with the ratio of the guidance to the velocity, so that it is low near noise.

    ``w = 1 + (maximum - 1) exp(-alpha rho)``, ``rho = |v_c - v_u| / |v_u|`` of each sample (Zhu et al. 2025,
    arXiv:2508.03442; summaries of its first version square the ratio, the authors' own page and code do not).

    Args:
        maximum: w where the ratio is zero.
        alpha: how fast w falls to 1 as the ratio grows.

    Raises:
        ValueError: a negative alpha.
    """

    maximum: float
    alpha: float

    def __post_init__(self) -> None:
        if not self.alpha >= 0:
            raise ValueError(f"RatioAware: alpha is {self.alpha!r}; pass zero or a positive number.")

    def __call__(self, conditional: Tensor, unconditional: Tensor) -> Tensor:
        """The strength of each sample, ``(B, 1, …)``.

        Args:
            conditional: the velocity v_c given the context, ``(B, *event_shape)``.
            unconditional: the velocity v_u given the unconditional context, likewise.
        """
        own = flattened(unconditional).norm(dim=1).clamp(min=torch.finfo(conditional.dtype).eps)
        ratio = flattened(conditional - unconditional).norm(dim=1) / own
        strength = 1 + (self.maximum - 1) * torch.exp(-self.alpha * ratio)
        return per_row(strength, conditional)


class GuidedVelocity(_OfAnother):
    """A field under classifier-free guidance, ``v_u + w (v_c - v_u)`` of its values given two contexts.

    It takes pairs of contexts, as `nflib.transforms.PairedContext` makes them, and evaluates both in one batch:
    ``flow.guided(strength, unconditional)`` is the flow along the guided field, with an exact density of its own.

    Args:
        field: the velocity that is guided, which takes a context.
        strength: w, a number (1: the conditional field itself), or a function of v_c and v_u such as `RatioAware`.

    Raises:
        ValueError: a guidance of autoregressive maps, such as `LinearGuidance`.

    >>> import torch
    >>> from nflib.continuous import MLPVelocity, ODEFlow
    >>> flow = ODEFlow(MLPVelocity(2, channels=16, context_size=3), (2,))
    >>> guided = flow.guided(2.0, torch.zeros(1, 3))
    >>> guided.sample(5, torch.ones(1, 3)).shape
    torch.Size([1, 5, 2])
    """

    def __init__(self, field: Callable[..., Tensor], strength: Strength):
        super().__init__(field)
        if hasattr(strength, "attention_temperature"):
            raise ValueError(
                f"a velocity is guided by a number, or a function of two velocities such as RatioAware; a "
                f"{type(strength).__name__} guides autoregressive flows."
            )
        self.strength = strength
        self.context_shape = None  # which are pairs

    def _velocity(self, field: Callable[..., Tensor], x: Tensor, t: Tensor, context: Any) -> Tensor:
        both = field(torch.cat([x, x]), torch.cat([t, t]), unpaired(context))
        conditional, unconditional = both.chunk(2)
        strength = self.strength(conditional, unconditional) if callable(self.strength) else self.strength
        return unconditional + strength * (conditional - unconditional)


class RefinedVelocity(_OfAnother):
    """A field plus the correction of a small network, ``v + r(x, t, v)``.

    It is fitted as any field is, with the parameters of v frozen or not. For a network that corrects the slope of the
    step before see `RefinedSteps`.

    Args:
        field: v, a velocity.
        refiner: r, a module or function ``(x, t, v, context)``, without the context where there is none.
    """

    def __init__(self, field: Callable[..., Tensor], refiner: Callable[..., Tensor]):
        super().__init__(field)
        self.refiner = refiner

    def _velocity(self, field: Callable[..., Tensor], x: Tensor, t: Tensor, context: Any) -> Tensor:
        v = evaluated(field, x, t, context)
        return v + evaluated(self.refiner, x, t, v, context)


class BlockwiseVelocity(nn.Module):
    """A velocity field made of one field for each segment of time; solvers never step across an edge.

    Args:
        fields: velocity modules, in the order of time.
        edges: the times between them (default: segments of equal length).

    Raises:
        ValueError: edges that do not rise within 0 … 1, or are not one fewer than the fields; fields of which only some
            take a context.

    >>> import torch
    >>> from nflib.continuous import MLPVelocity
    >>> field = BlockwiseVelocity([MLPVelocity(2), MLPVelocity(2)])
    >>> field.edges, field(torch.zeros(5, 2), torch.rand(5)).shape
    ((0.5,), torch.Size([5, 2]))
    """

    def __init__(self, fields: Iterable[nn.Module], edges: Sequence[float] | None = None):
        super().__init__()
        self.fields = nn.ModuleList(fields)
        number = len(self.fields)
        self.edges = tuple(k / number for k in range(1, number)) if edges is None else tuple(map(float, edges))
        if number != len(self.edges) + 1 or not all(a < b for a, b in pairwise((0.0, *self.edges, 1.0))):
            raise ValueError(f"{number} fields take {number - 1} edges that rise within 0 … 1, got {list(self.edges)}.")
        self.uses_context = takes_context(self.fields[0])
        self.context_shape = context_shape_of(self.fields[0])
        if any(takes_context(own) != self.uses_context for own in self.fields):
            raise ValueError("some of the fields take a context and others none; make all of one kind.")

    def within(self, start: float, stop: float) -> nn.Module:
        """The field of the segment in which two times lie.

        Args:
            start: a time in 0 … 1.
            stop: another one, later or earlier.

        Raises:
            ValueError: an edge lies between them.
        """
        low, high = min(start, stop), max(start, stop)
        if any(low < edge < high for edge in self.edges):
            raise ValueError(f"an edge of the fields lies between t = {low:.6g} and {high:.6g}; take two steps.")
        return self.fields[sum(edge <= low for edge in self.edges)]

    def forward(self, x: Tensor, t: Tensor, context: Any = None) -> Tensor:
        """Each row's velocity by the field of its own time; an edge belongs to the segment that follows it."""
        segment = torch.bucketize(t.contiguous(), t.new_tensor(self.edges), right=True)
        order = segment.argsort(stable=True)
        rows = order.split(segment.bincount(minlength=len(self.fields)).tolist())
        # All are called, of no rows too, so that each of their parameters has a gradient.
        pieces = [
            evaluated(field, x[own], t[own], map_context(lambda part: part[own], context))  # noqa: B023, called at once
            for field, own in zip(self.fields, rows, strict=True)
        ]
        return torch.cat(pieces)[order.argsort()]
