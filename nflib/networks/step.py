"""What every layer has to know about the tokens of one pass."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from nflib.networks.cache import KeyValueCache


class Step(NamedTuple):
    """One pass through a transformer's layers.

    start: the position of its first token. cache: where keys and values are kept (None: the pass covers the whole
    sequence). condition: of each token, for the layers' norms, ``(B or 1, L, c)``. temperature: of each sample's
    attention, ``(B, 1, 1, 1)``, 1 where None. mask: added to attention scores, where causality alone does not say who
    sees whom.
    """

    start: int = 0
    cache: KeyValueCache | None = None
    condition: Tensor | None = None
    temperature: Tensor | None = None
    mask: Tensor | None = None


WHOLE_SEQUENCE = Step()
