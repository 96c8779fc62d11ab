"""Rows of several shapes as a source of batches of one shape each."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor


class RowsByShape:
    """Numbers of rows that are sorted by shape.

    >>> rows = RowsByShape([3, 5])
    >>> rows.of_one_shape(torch.tensor([4, 7, 1]))
    (1, tensor([4, 7, 4]))

    Args:
        counts: rows of each shape.
    """

    def __init__(self, counts: Sequence[int]) -> None:
        self.counts = list(counts)
        self.ends = list(accumulate(self.counts))

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def shape_of(self, index: int) -> int:
        """The number of a row's shape."""
        return bisect_right(self.ends, index)

    def of_one_shape(self, indices: Tensor) -> tuple[int, Tensor]:
        """The shape of the first of these rows, and rows of it in the place of those of other shapes.

        Of all other rows that come, each row of a shape takes the place of equally many, give or take one.
        """
        shape = self.shape_of(int(indices[0]))
        count, end = self.counts[shape], self.ends[shape]
        start = end - count
        is_other = (indices < start) | (indices >= end)
        return shape, torch.where(is_other, start + indices % count, indices)
