"""Float64 parameter tables that survive changes of precision and device."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn


def column(values: ArrayLike) -> np.ndarray:
    """Values as rows of a table that is broadcast over the batch, (K, 1)."""
    return np.array(values, dtype=np.float64).reshape(-1, 1)


class TableModule(nn.Module):
    """A module whose parameter tables keep a float64 master copy.

    `add_table` registers a floating-point buffer; after any `.to(...)` the buffer is cut anew from its float64
    master, so that a module built in float32 and moved to float64 has the full precision of the force field.
    `rounded` says how it is cut to float32. `add_index` registers an int64 buffer.
    """

    def __init__(self) -> None:
        super().__init__()
        self._masters: dict[str, Tensor] = {}

    def add_table(self, name: str, values: ArrayLike) -> None:
        master = torch.from_numpy(np.array(values, dtype=np.float64))
        self._masters[name] = master
        self.register_buffer(name, master.clone(), persistent=False)

    def add_index(self, name: str, values: ArrayLike) -> None:
        self.register_buffer(name, torch.from_numpy(np.array(values, dtype=np.int64).reshape(-1)), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "TableModule":
        super()._apply(fn, recurse)
        for name, master in self._masters.items():
            moved = self._buffers[name]
            assert moved is not None
            self._buffers[name] = rounded(master, moved.dtype).to(moved.device)
        return self


def rounded(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Float64 `values` in another precision; in float32 each by that neighbour which keeps the sum of errors small.

    The atoms of a molecule share a few parameters. Rounded to nearest, all that share one are wrong in the same
    direction, which shifts the energy of a hundred atoms by more than the arithmetic loses. Here no error exceeds one
    unit of the last place, and errors of successive rows cancel; what is exact stays exact.
    """
    if dtype != torch.float32 or not values.numel():
        return values.to(dtype)
    exact = values.detach().cpu().numpy().ravel()
    nearest = exact.astype(np.float32)
    infinity = np.float32(np.inf)
    below = np.where(nearest > exact, np.nextafter(nearest, -infinity), nearest)
    above = np.where(nearest < exact, np.nextafter(nearest, infinity), nearest)
    finite = np.isfinite(exact)
    errors = [np.subtract(side, exact, out=np.zeros_like(exact), where=finite).tolist() for side in (below, above)]
    choices, error = np.zeros(len(exact), dtype=bool), 0.0
    for row, (down, up) in enumerate(zip(*errors, strict=True)):
        choices[row] = abs(error + up) < abs(error + down)
        error += up if choices[row] else down
    return torch.from_numpy(np.where(choices, above, below).reshape(values.shape))
