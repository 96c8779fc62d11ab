"""Inverting any transform by a decoder of the caller's: nflows' containers, nflib's own maps, and everybody else's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nflows.transforms import CompositeTransform, InverseTransform, Transform
from torch import Tensor

from nflib.dtypes import FullPrecisionBuffers
from nflib.interfaces import Decoder, Inversion


class ClosedForm(FullPrecisionBuffers, Transform):
    """A transform whose `inverse` is a formula, exact to rounding. A subclass writes `forward` and `inverse`."""

    uses_context = False

    def invert(self, inputs: Tensor, context: Any = None, decoder: Decoder | None = None) -> Inversion:
        """What `inverse` gives, and that nothing is left of an error."""
        outputs, logabsdet = self.inverse(inputs, context)  # type: ignore[operator]
        return Inversion(outputs, logabsdet, 0.0)


def invert(
    transform: Transform, inputs: Tensor, context: Any = None, decoder: Decoder | None = None, *, density: bool = True
) -> Inversion:
    """Solve ``transform(x) = inputs`` for x, every autoregressive map in it by `decoder` (None: each by its own).

    A transform with a method `invert` of these arguments says how exact it was. Of others, nflows' own among them, the
    two-argument `inverse` is asked, and the residual is unknown: some of these iterate. Without `density` no
    log-determinant is wanted: a transform of which it costs more than x itself has a method ``generate(inputs,
    context)`` for that.
    """
    if isinstance(transform, CompositeTransform):
        inversion = Inversion(inputs, inputs.new_zeros(len(inputs)), 0.0)
        for part in reversed(list(transform._transforms)):  # type: ignore[arg-type]
            inversion = inversion.then(invert(part, inversion.tokens, context, decoder, density=density))  # type: ignore[arg-type]
        return inversion
    if isinstance(transform, InverseTransform):
        # Its inverse is the inner transform forwards, which is a formula wherever maps are exact.
        outputs, logabsdet = transform.inverse(inputs, context)
        return Inversion(outputs, logabsdet, 0.0)
    if not density and hasattr(transform, "generate"):
        return Inversion(transform.generate(inputs, context), inputs.new_zeros(len(inputs)), None)
    own = getattr(transform, "invert", None)
    if own is not None:
        return own(inputs, context, decoder)  # type: ignore[no-any-return]
    return Inversion(*transform.inverse(inputs, context))


def uses_context(transform: Transform) -> bool:
    """Whether the transform may read a context: nflib's own parts say so, of everybody else's it is assumed."""
    if isinstance(transform, CompositeTransform):
        return any(uses_context(part) for part in transform._transforms)  # type: ignore[arg-type]
    if isinstance(transform, InverseTransform):
        return uses_context(transform._transform)
    return bool(getattr(transform, "uses_context", True))


def input_shape(transform: Transform, output_shape: Sequence[int]) -> tuple[int, ...]:
    """The shape of an event that the transform takes to one of `output_shape`; parts that do not say keep shapes."""
    if isinstance(transform, CompositeTransform):
        for part in reversed(list(transform._transforms)):  # type: ignore[arg-type]
            output_shape = input_shape(part, output_shape)  # type: ignore[arg-type]
        return tuple(output_shape)
    own = getattr(transform, "input_shape", None)
    return tuple(output_shape) if own is None else tuple(own(output_shape))
