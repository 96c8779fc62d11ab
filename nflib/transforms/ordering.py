"""In which order an autoregressive map visits the tokens ``(B, T, C)``; log-determinant zero."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nflib.errors import at_least
from nflib.transforms.inversion import ClosedForm


class Reverse(ClosedForm):
    """Reverses the order of the tokens ``(B, T, C)``, or of those inside each frame.

    Args:
        frame_length: reverse the tokens inside each frame of so many, frames staying in order (default: all tokens).
        within_tokens: also reverse the numbers inside each token, for maps that are autoregressive there, too.

    Raises:
        ValueError: frame_length is no positive integer, or the tokens do not fill whole frames.

    >>> Reverse()(torch.arange(3.0).view(1, 3, 1))[0].flatten()
    tensor([2., 1., 0.])
    """

    def __init__(self, frame_length: int | None = None, *, within_tokens: bool = False):
        super().__init__()
        self.frame_length = None if frame_length is None else at_least(1, "frame_length", frame_length)
        self.within_tokens = within_tokens

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if self.frame_length is None:
            outputs = inputs.flip(1)
        else:
            if inputs.shape[1] % self.frame_length:
                raise ValueError(
                    f"{inputs.shape[1]} tokens do not fill frames of {self.frame_length}; pass whole frames."
                )
            outputs = inputs.unflatten(1, (-1, self.frame_length)).flip(2).flatten(1, 2)
        outputs = outputs.flip(-1) if self.within_tokens else outputs
        return outputs, inputs.new_zeros(inputs.shape[0])

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.forward(inputs, context)


class Permute(ClosedForm):
    """Permutes the tokens ``(B, T, C)``: output token t is input token ``permutation[t]``.

    Args:
        permutation: ``(T,)``, each of 0 … T-1 once.

    Raises:
        ValueError: it is not a permutation of 0 … T-1, or the inputs do not have T tokens.
    """

    permutation: Tensor
    inverse_permutation: Tensor

    def __init__(self, permutation: Tensor):
        super().__init__()
        permutation = torch.as_tensor(permutation, dtype=torch.long)
        if not torch.equal(permutation.sort().values, torch.arange(len(permutation), device=permutation.device)):
            raise ValueError(f"a permutation must list each of 0 … {len(permutation) - 1} once.")
        self.register_buffer("permutation", permutation)
        self.register_buffer("inverse_permutation", permutation.argsort())

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._reordered(inputs, self.permutation), inputs.new_zeros(inputs.shape[0])

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._reordered(inputs, self.inverse_permutation), inputs.new_zeros(inputs.shape[0])

    def _reordered(self, inputs: Tensor, order: Tensor) -> Tensor:
        # Indexing alone would drop the tokens beyond the permutation without a word.
        if inputs.dim() < 2 or inputs.shape[1] != len(order):
            raise ValueError(f"expected inputs of {len(order)} tokens, got shape {tuple(inputs.shape)}.")
        return inputs[:, order]


class PermuteByContext(ClosedForm):
    """Permutes each sample's tokens as its context says: output token t is input token ``ordering(context)[t]``.

    Args:
        ordering: a function of the context that gives permutations ``(B, T)``.

    Raises:
        ValueError: the permutations have another shape.
    """

    uses_context = True

    def __init__(self, ordering: Callable[[Any], Tensor]):
        super().__init__()
        self.ordering = ordering

    def forward(self, inputs: Tensor, context: Any = None) -> tuple[Tensor, Tensor]:
        return self._reordered(inputs, self.ordering(context)), inputs.new_zeros(inputs.shape[0])

    def inverse(self, inputs: Tensor, context: Any = None) -> tuple[Tensor, Tensor]:
        return self._reordered(inputs, self.ordering(context).argsort(dim=-1)), inputs.new_zeros(inputs.shape[0])

    def _reordered(self, inputs: Tensor, order: Tensor) -> Tensor:
        if order.shape != inputs.shape[:2]:
            raise ValueError(f"orderings of shape {tuple(order.shape)} do not fit tokens {tuple(inputs.shape)}.")
        return inputs.gather(1, order.unsqueeze(-1).expand_as(inputs))
