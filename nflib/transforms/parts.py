"""One map for some numbers of an event, another for the others."""

from __future__ import annotations

from typing import Any

from nflows.transforms import Transform
from torch import Tensor

from nflib.events import check_event_shape
from nflib.transforms.inversion import ClosedForm


class ByParts(ClosedForm):
    """Maps the numbers of an event that a mask marks by one transform, and the others by another.

    Args:
        mask: which numbers, a bool tensor of the event's shape.
        marked: a transform in closed form of vectors ``(B, n)``, the n marked numbers in their order.
        others: the same for the other numbers.

    Raises:
        ValueError: an input has another event shape.

    >>> import torch
    >>> from nflib.transforms import Standardize, Whiten
    >>> halved = Standardize(torch.zeros(2), 2 * torch.ones(2))
    >>> parts = ByParts(torch.tensor([True, False, True]), halved, Whiten((1,)))
    >>> parts(torch.ones(1, 3))[0]
    tensor([[0.5000, 1.0000, 0.5000]])
    """

    mask: Tensor

    def __init__(self, mask: Tensor, marked: Transform, others: Transform):
        super().__init__()
        self.register_buffer("mask", mask, persistent=False)
        self.marked = marked
        self.others = others

    def forward(self, inputs: Tensor, context: Any = None) -> tuple[Tensor, Tensor]:
        check_event_shape(inputs, self.mask.shape, "ByParts")
        return self._joined(*self.marked(inputs[:, self.mask]), *self.others(inputs[:, ~self.mask]))

    def inverse(self, inputs: Tensor, context: Any = None) -> tuple[Tensor, Tensor]:
        check_event_shape(inputs, self.mask.shape, "ByParts")
        return self._joined(*self.marked.inverse(inputs[:, self.mask]), *self.others.inverse(inputs[:, ~self.mask]))

    def _joined(self, marked: Tensor, marked_det: Tensor, others: Tensor, others_det: Tensor) -> tuple[Tensor, Tensor]:
        mask = self.mask.expand(len(marked), *self.mask.shape)
        outputs = others.new_zeros(mask.shape).masked_scatter(mask, marked).masked_scatter(~mask, others)
        return outputs, marked_det + others_det
