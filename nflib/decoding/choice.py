"""Which decoder inverts the maps of a call: passed around them, as nflows' `inverse` has no argument for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

if TYPE_CHECKING:
    from nflib.transforms.autoregressive import Autoregressive


class Decoder(Protocol):
    """Anything that solves ``z = transform(u)`` for u ``(B, T, C)``; returns u and its logabsdet ``(B,)``.

    prefix: the first tokens of u, where they are given.
    """

    def __call__(
        self, transform: Autoregressive, noise: Tensor, context: Any = None, prefix: Tensor | None = None
    ) -> tuple[Tensor, Tensor]: ...


_current: ContextVar[Decoder | None] = ContextVar("nflib_decoder", default=None)


def current() -> Decoder | None:
    """The decoder that `using` put in force, in this thread; None: every map uses its own."""
    return _current.get()


@contextmanager
def using(decoder: Decoder | None) -> Iterator[None]:
    """Within the block, and in this thread alone, every autoregressive map is inverted by `decoder`.

    None leaves in force what was. Raises ValueError where decoder is not callable.

    >>> from nflib import decoding
    >>> with decoding.using(decoding.Jacobi()):
    ...     pass  # x = flow.sample(5)
    """
    if decoder is not None and (isinstance(decoder, type) or not callable(decoder)):
        raise ValueError(f"decoding must be a decoder, such as decoding.Jacobi(), got {decoder!r}.")
    token = _current.set(_current.get() if decoder is None else decoder)
    try:
        yield
    finally:
        _current.reset(token)
