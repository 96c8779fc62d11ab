"""How vectors and images become tokens ``(B, T, C)`` and come back; log-determinant zero."""

import math
from collections.abc import Sequence

from torch import Tensor

from nflib.events import check_event_shape
from nflib.transforms.inversion import ClosedForm


class _Rearrangement(ClosedForm):
    """A transform that only moves numbers: `forward` checks the event's shape and calls `_to_tokens`."""

    event_shape: tuple[int, ...]
    token_shape: tuple[int, int]

    def input_shape(self, output_shape: Sequence[int]) -> tuple[int, ...]:
        return self.event_shape

    def output_shape(self, input_shape: Sequence[int]) -> tuple[int, ...]:
        return self.token_shape

    def _to_tokens(self, inputs: Tensor) -> Tensor:
        raise NotImplementedError

    def _from_tokens(self, tokens: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        check_event_shape(inputs, self.event_shape)
        return self._to_tokens(inputs), inputs.new_zeros(inputs.shape[0])

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        check_event_shape(inputs, self.token_shape)
        return self._from_tokens(inputs), inputs.new_zeros(inputs.shape[0])


class VectorPatches(_Rearrangement):
    """Cuts an event of any shape, in raster order, into tokens of `patch_size` numbers: ``(B, T, patch_size)``.

    Args:
        event_shape: the shape of an event.
        patch_size: numbers of a token; divides those of an event.

    Raises:
        ValueError: patch_size does not divide the event's numbers, or inputs have another event shape.
    """

    def __init__(self, event_shape: Sequence[int], patch_size: int | Sequence[int]):
        super().__init__()
        size = math.prod(event_shape)
        if isinstance(patch_size, Sequence) or patch_size < 1 or size % patch_size:
            raise ValueError(
                f"patch_size {patch_size} must divide the {size} numbers of an event {tuple(event_shape)}."
            )
        self.event_shape = tuple(event_shape)
        self.token_shape = (size // patch_size, patch_size)
        self.grid = self.token_shape[:1]

    def _to_tokens(self, inputs: Tensor) -> Tensor:
        return inputs.reshape(inputs.shape[0], *self.token_shape)

    def _from_tokens(self, tokens: Tensor) -> Tensor:
        return tokens.reshape(len(tokens), *self.event_shape)


class ImagePatches(_Rearrangement):
    """Cuts images ``(C, H, W)`` into patches, in raster order; a token is a patch, ``(C, p, q)`` flattened.

    Args:
        event_shape: ``(C, H, W)``.
        patch_size: ``(p, q)``, height and width of a patch, or one number for both; they divide H and W.

    Raises:
        ValueError: event_shape is not of an image, patch_size does not divide it, or inputs have another event shape.

    >>> import torch
    >>> ImagePatches((3, 8, 8), patch_size=4)(torch.zeros(5, 3, 8, 8))[0].shape
    torch.Size([5, 4, 48])
    """

    def __init__(self, event_shape: Sequence[int], patch_size: int | Sequence[int]):
        super().__init__()
        if len(event_shape) != 3:
            raise ValueError(f"an image's event_shape is (channels, height, width), got {tuple(event_shape)}.")
        channels, height, width = event_shape
        sides = tuple(patch_size) if isinstance(patch_size, Sequence) else (patch_size, patch_size)
        if len(sides) != 2 or min(sides) < 1 or height % sides[0] or width % sides[1]:
            raise ValueError(f"patch_size {patch_size} must divide the height {height} and the width {width}.")
        p, q = sides
        self.event_shape = (channels, height, width)
        self.patch_size = sides
        self.grid = (height // p, width // q)
        self.token_shape = (math.prod(self.grid), channels * p * q)

    def _to_tokens(self, inputs: Tensor) -> Tensor:
        (rows, columns), (p, q) = self.grid, self.patch_size
        split = inputs.reshape(inputs.shape[0], self.event_shape[0], rows, p, columns, q)
        return split.permute(0, 2, 4, 1, 3, 5).reshape(inputs.shape[0], *self.token_shape)

    def _from_tokens(self, tokens: Tensor) -> Tensor:
        split = tokens.reshape(len(tokens), *self.grid, self.event_shape[0], *self.patch_size)
        return split.permute(0, 3, 1, 4, 2, 5).reshape(len(tokens), *self.event_shape)
