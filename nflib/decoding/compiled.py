"""Any decoder, with the networks of the maps that it inverts run through torch.compile."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

if TYPE_CHECKING:
    from nflib.decoding.choice import Decoder
    from nflib.transforms.autoregressive import Autoregressive

# Of one token or more, at the start or later, of one sample or more: each is compiled for itself.
RECOMPILE_LIMIT = 32


class Compiled:
    """Inverts as `decoder` does, each sweep's pass through a network compiled by `torch.compile`, to the same numbers.

    A map is compiled when it is first inverted, which takes from seconds to a minute, for windows and batches of any
    size, and is kept as long as this object is. It is meant for devices that run kernels faster than Python launches
    them; on CPUs nothing was gained (benchmarks/RESULTS.md). options: keywords of `torch.compile`.

    >>> from nflib import decoding
    >>> decoder = decoding.Compiled(decoding.Jacobi())  # x = flow.sample(5, decoding=decoder)
    """

    def __init__(self, decoder: Decoder, **options: Any):
        self.decoder = decoder
        self.options: dict[str, Any] = {"dynamic": True, **options}
        self._maps: dict[Autoregressive, Autoregressive] = {}

    def __call__(
        self, transform: Autoregressive, noise: Tensor, context: Any = None, prefix: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        if transform not in self._maps:
            self._maps[transform] = cast("Autoregressive", _CompiledMap(transform, self.options))
        with torch._dynamo.config.patch(recompile_limit=RECOMPILE_LIMIT):
            return self.decoder(self._maps[transform], noise, context, prefix)


class _CompiledMap:
    """A map in all but that what it computes of tokens is compiled."""

    def __init__(self, transform: Autoregressive, options: dict[str, Any]):
        self.transform = transform
        self.extend = torch.compile(transform.extend, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.transform, name)
