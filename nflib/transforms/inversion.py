"""Inversion of any transform by a given decoder: nflows' containers, nflib's own maps, and those of other packages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from nflows.transforms import (
    CompositeTransform,
    InverseTransform,
    MultiscaleCompositeTransform,
    SqueezeTransform,
    Transform,
)
from torch import Tensor

from nflib.dtypes import FullPrecisionBuffers
from nflib.interfaces import Decoder, Inversion
from nflib.transforms.domain import within_domain


class ClosedForm(FullPrecisionBuffers, Transform):
    """Base class of transforms whose `inverse` is a formula, exact to rounding, so that samples need no second pass.

    A subclass defines `forward` and `inverse`, each ``(x, context) -> (outputs, logabsdet)`` with logabsdet ``(B,)``.

    >>> import torch
    >>> class Double(ClosedForm):
    ...     def forward(self, inputs, context=None):
    ...         return 2 * inputs, torch.full(inputs.shape[:1], inputs[0].numel() * math.log(2))
    ...
    ...     def inverse(self, inputs, context=None):
    ...         return inputs / 2, torch.full(inputs.shape[:1], -inputs[0].numel() * math.log(2))
    >>> Double().invert(torch.ones(1, 3)).tokens
    tensor([[0.5000, 0.5000, 0.5000]])
    """

    uses_context = False

    def invert(self, inputs: Tensor, context: Any = None, decoder: Decoder | None = None) -> Inversion:
        """The result of `inverse` as an `Inversion` of residual 0."""
        outputs, logabsdet = self.inverse(inputs, context)  # type: ignore[operator]
        return Inversion(outputs, logabsdet, 0.0)


def invert(
    transform: Transform, inputs: Tensor, context: Any = None, decoder: Decoder | None = None, *, density: bool = True
) -> Inversion:
    """Solve ``transform(x) = inputs`` for x, whatever transforms it is composed of.

    A transform with a method ``invert(inputs, context, decoder)`` says how exact it was. Of others, nflows' own among
    them, `inverse` is called, and the residual is unknown: some of these iterate.

    Args:
        transform: any nflows transform.
        inputs: its outputs, ``(B, ...)``.
        context: a row for each input, where the transform takes one.
        decoder: inverts every autoregressive map in it (default: each by its own), but for those in a transform that
            inverts its own parts, as nflows' `MultiscaleCompositeTransform` does.
        density: whether the log-determinant is wanted. If not, a transform of which it costs more than x itself may
            have a method ``generate(inputs, context)``, which is called instead.

    Returns:
        An `nflib.interfaces.Inversion`: x as `tokens`, `logabsdet` ``(B,)``, `residual` and `statistics`.

    >>> import torch
    >>> from nflib.transforms import Reverse, Standardize
    >>> halved = Standardize(torch.zeros(3, 2), 2 * torch.ones(3, 2))
    >>> inversion = invert(CompositeTransform([Reverse(), halved]), torch.ones(1, 3, 2))
    >>> inversion.residual  # closed form throughout
    0.0
    """
    if isinstance(transform, CompositeTransform):
        inversion = Inversion(inputs, inputs.new_zeros(len(inputs)), 0.0)
        for part in reversed(list(transform._transforms)):  # type: ignore[arg-type]
            inversion = inversion.then(invert(part, inversion.tokens, context, decoder, density=density))  # type: ignore[arg-type]
        return inversion
    if isinstance(transform, InverseTransform):
        return _applied(transform._transform, inputs, context, decoder, density=density)
    if not density and hasattr(transform, "generate"):
        return Inversion(transform.generate(inputs, context), inputs.new_zeros(len(inputs)), None)
    own = getattr(transform, "invert", None)
    if own is not None:
        return Inversion.of(own(inputs, context, decoder))
    return Inversion.of(within_domain(transform, inputs, context, inverse=True))


def _applied(transform: Any, inputs: Tensor, context: Any, decoder: Decoder | None, *, density: bool) -> Inversion:
    """What a transform makes of inputs, as the inversion of its inverse: by a formula, but for inverses in it."""
    if isinstance(transform, CompositeTransform):
        inversion = Inversion(inputs, inputs.new_zeros(len(inputs)), 0.0)
        for part in transform._transforms:
            inversion = inversion.then(_applied(part, inversion.tokens, context, decoder, density=density))
        return inversion
    if isinstance(transform, InverseTransform):
        return invert(transform._transform, inputs, context, decoder, density=density)
    outputs, logabsdet = within_domain(transform, inputs, context)
    parts = list(transform.modules())
    exact = all(getattr(part, "exact_forward", True) and not isinstance(part, InverseTransform) for part in parts)
    return Inversion(outputs, logabsdet, 0.0 if exact else None)


def forward(transform: Any, inputs: Tensor, context: Any = None) -> tuple[Tensor, Tensor]:
    """``transform(inputs, context)``, with log-determinants added out of place, as torch.func needs it.

    Raises:
        ValueError: a part gave other than one log-determinant for each input, or an input is outside its domain.
    """
    if not isinstance(transform, CompositeTransform):
        return within_domain(transform, inputs, context)  # type: ignore[no-any-return]
    total = inputs.new_zeros(inputs.shape[0])
    for part in transform._transforms:
        inputs, logabsdet = forward(part, inputs, context)
        total = total + logabsdet
    if total.shape != inputs.shape[:1]:
        raise ValueError(
            f"a part of the transform gave log-determinants of shape {tuple(total.shape)} that are not one number for "
            "each input, such as columns (batch, 1); sum them over the event, to (batch,)."
        )
    return inputs, total


def uses_context(transform: Transform) -> bool:
    """Whether the transform may read a context: nflib's own say so, of those of other packages it is assumed."""
    if isinstance(transform, CompositeTransform):
        return any(uses_context(part) for part in transform._transforms)  # type: ignore[arg-type]
    if isinstance(transform, InverseTransform):
        return uses_context(transform._transform)
    return bool(getattr(transform, "uses_context", True))


def input_shape(transform: Transform, output_shape: Sequence[int]) -> tuple[int, ...]:
    """The shape of an event that the transform takes to one of `output_shape`; parts that do not say keep shapes."""
    return _mapped_shape(transform, tuple(output_shape), backwards=True)


def output_shape(transform: Transform, input_shape: Sequence[int]) -> tuple[int, ...]:
    """The shape of what the transform makes of an event of `input_shape`."""
    return _mapped_shape(transform, tuple(input_shape), backwards=False)


def _mapped_shape(transform: Any, shape: tuple[int, ...], *, backwards: bool) -> tuple[int, ...]:
    """The shape of what a transform, or its inverse, makes of an event of this shape."""
    if isinstance(transform, InverseTransform):
        return _mapped_shape(transform._transform, shape, backwards=not backwards)
    if isinstance(transform, CompositeTransform):
        parts = list(transform._transforms)
        for part in reversed(parts) if backwards else parts:
            shape = _mapped_shape(part, shape, backwards=backwards)
        return shape
    if isinstance(transform, MultiscaleCompositeTransform):
        return _shape_of_scales(transform) if backwards else (math.prod(shape),)
    if isinstance(transform, SqueezeTransform):
        (channels, *sides), factor = shape, transform.factor
        if backwards:
            return (channels // factor**2, *(side * factor for side in sides))
        return (channels * factor**2, *(side // factor for side in sides))
    own = getattr(transform, "input_shape" if backwards else "output_shape", None)
    return shape if own is None else tuple(own(shape))


def _shape_of_scales(transform: Any) -> tuple[int, ...]:
    """The shape of an event that nflows' multiscale transform takes, whose parts split off what is done."""
    *others, last = zip(transform._transforms, transform._output_shapes, strict=True)
    shape = _mapped_shape(last[0], tuple(last[1]), backwards=True)
    axis = transform._split_dim - 1
    for part, done in reversed(others):
        shape = _mapped_shape(part, (*shape[:axis], shape[axis] + done[axis], *shape[axis + 1 :]), backwards=True)
    return shape
