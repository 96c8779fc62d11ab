"""Sums over rows: what each bond, angle or pair contributes to its atoms or pairs, and to the energy."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from molecular.energy.tables import TableModule

_BLOCK = 8


def total(values: Tensor) -> Tensor:
    """Sum (B,) of the rows of `values` (K, B), in float64 where the device has it.

    The terms of a solvated peptide are a hundred times its energy and cancel, so single precision would lose more in
    adding them than in computing them. Blocks of rows are added as they are, which costs next to nothing in accuracy.
    """
    count, batch = values.shape
    exact = torch.float32 if values.device.type == "mps" else torch.float64
    whole = count // _BLOCK
    blocks = values[: whole * _BLOCK].view(whole, _BLOCK, batch).sum(1)
    return blocks.to(exact).sum(0) + values[whole * _BLOCK :].sum(0).to(exact)


class RowSum(TableModule):
    """Adds each row k of a source to the rows added[0][k], added[1][k], ... of a target; subtracts it likewise.

    Run operator by operator this is `index_add_`. A compiler turns that into one atomic addition a number; for it the
    sum is written the other way round, as what each target row collects (`collect`, padded to the longest list with
    weight 0): a loop over the batch without conflicts.
    """

    collect: Tensor
    weight: Tensor

    def __init__(self, added: Sequence[ArrayLike], subtracted: Sequence[ArrayLike] = ()) -> None:
        super().__init__()
        targets = [np.array(rows, dtype=np.int64).reshape(-1) for rows in (*added, *subtracted)]
        self.alphas = [1] * len(added) + [-1] * len(subtracted)
        for index, rows in enumerate(targets):
            self.add_index(f"target_{index}", rows)
        self.num_rows = 1 + max((int(rows.max(initial=-1)) for rows in targets), default=-1)
        lists: list[list[tuple[int, int]]] = [[] for _ in range(self.num_rows)]
        for rows, alpha in zip(targets, self.alphas, strict=True):
            for source, target in enumerate(rows):
                lists[target].append((source, alpha))
        self.depth = max((len(found) for found in lists), default=0)
        collect, weight = np.zeros((2, self.depth, self.num_rows))
        for row, found in enumerate(lists):
            if found:
                collect[: len(found), row], weight[: len(found), row] = np.array(found).T
        self.padded, self.signed = bool((weight == 0.0).any()), bool(subtracted)
        self.add_index("collect", collect)
        self.add_table("weight", weight[..., None])

    def add(self, target: Tensor, source: Tensor, dim: int = 0) -> None:
        """target (..., R, B) += sums of the rows of source (..., K, B), in place; `dim` is where R and K are."""
        if torch.compiler.is_compiling():
            self._gather(target, source, dim)
            return
        for index, alpha in enumerate(self.alphas):
            target.index_add_(dim, getattr(self, f"target_{index}"), source, alpha=alpha)

    def _gather(self, target: Tensor, source: Tensor, dim: int) -> None:
        if not self.depth:
            return
        rows = source.index_select(dim, self.collect).view(
            *source.shape[:dim], self.depth, self.num_rows, source.shape[-1]
        )
        if self.signed:
            rows = rows * self.weight
        # Padding takes row 0, which may be infinite where the sum is not: leave it out rather than multiply it by 0.
        if self.padded:
            rows = torch.where(self.weight == 0.0, 0.0, rows)
        target.narrow(dim, 0, self.num_rows).add_(rows.sum(dim))
