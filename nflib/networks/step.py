"""What transformer layers need to know about the tokens of one pass."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from nflib.networks.cache import KeyValueCache


class Step(NamedTuple):
    """What the layers of a transformer are told of one pass over L tokens.

    Attributes:
        start: position of the first token.
        cache: where keys and values are kept; None where the pass covers the whole sequence.
        condition: of each token, for the layers' norms, ``(B or 1, L, c)``.
        temperature: of each sample's attention, ``(B, 1, 1, 1)``; None for 1.
        mask: added to attention scores; None where causality alone says which tokens see which.
    """

    start: int = 0
    cache: KeyValueCache | None = None
    condition: Tensor | None = None
    temperature: Tensor | None = None
    mask: Tensor | None = None


WHOLE_SEQUENCE = Step()
