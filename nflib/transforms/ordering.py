"""In which order an autoregressive map visits the tokens ``(B, T, C)``; log-determinant zero."""

import torch
from nflows.transforms import Transform
from torch import Tensor


class Reverse(Transform):
    """Reverses the tokens; with `frame_length`, those inside each frame, frames staying in order."""

    def __init__(self, frame_length: int | None = None):
        super().__init__()
        self.frame_length = frame_length

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if self.frame_length is None:
            outputs = inputs.flip(1)
        else:
            outputs = inputs.unflatten(1, (-1, self.frame_length)).flip(2).flatten(1, 2)
        return outputs, inputs.new_zeros(len(inputs))

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.forward(inputs, context)


class Permute(Transform):
    """Visits the tokens as ``permutation`` lists them: output t is input permutation[t].

    Raises ValueError where `permutation` is not a permutation of 0 … T-1.
    """

    permutation: Tensor
    inverse_permutation: Tensor

    def __init__(self, permutation: Tensor):
        super().__init__()
        permutation = torch.as_tensor(permutation, dtype=torch.long)
        if not torch.equal(permutation.sort().values, torch.arange(len(permutation))):
            raise ValueError(f"a permutation must list each of 0 … {len(permutation) - 1} once.")
        self.register_buffer("permutation", permutation)
        self.register_buffer("inverse_permutation", permutation.argsort())

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return inputs[:, self.permutation], inputs.new_zeros(len(inputs))

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return inputs[:, self.inverse_permutation], inputs.new_zeros(len(inputs))
