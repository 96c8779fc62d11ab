"""Interatomic distances, shared by every term that depends on pairs of atoms."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from molecular.energy.sums import RowSum
from molecular.energy.tables import TableModule

Pair = tuple[int, int]


def ordered(i: int, j: int) -> Pair:
    """The pair with the smaller atom first, as the pair list stores it."""
    return (i, j) if i < j else (j, i)


@dataclass
class Pairs:
    """Displacements and distances of P pairs in B conformations (batch last, nm)."""

    displacement: Tensor  # (3, P, B), x_i - x_j
    squared: Tensor  # (P, B), r^2
    inverse: Tensor  # (P, B), 1/r
    inverse_squared: Tensor  # (P, B), 1/r^2
    distance: Tensor  # (P, B), r
    closest: float | None  # smallest and largest r of all, None where asking for them would cost a synchronisation
    farthest: float | None

    def within(self, cutoff: float | None) -> Tensor | None:
        """Mask (P, B) of pairs inside the cutoff; None if all are. NaN counts as inside, so that it shows."""
        if cutoff is None or (self.farthest is not None and self.farthest <= cutoff):
            return None
        return ~(self.distance > cutoff)


class PairTerm(TableModule):
    """A term of the potential energy that depends on distances alone."""

    def energy_and_slope(self, pairs: Pairs, slope: Tensor | None) -> Tensor:
        """Energies (B,) in kJ/mol; adds dE/dr / r to `slope` (P, B) unless it is None."""
        raise NotImplementedError


class PairList(TableModule):
    """The pairs i < j that any term needs, in an order that lets terms address them by slices.

    `groups` are concatenated in the order given (a pair keeps its first place); `row` maps a pair to its place.
    A term reports dE/dr divided by r for its rows ("slope"); `force` turns the sum over all terms into forces on atoms.
    """

    gather_first: Tensor
    gather_second: Tensor

    def __init__(self, num_atoms: int, groups: Iterable[Iterable[Pair]]) -> None:
        super().__init__()
        self.row: dict[Pair, int] = {}
        for group in groups:
            for pair in group:
                self.row.setdefault(pair, len(self.row))
        self.num_atoms = num_atoms
        pairs = np.array(list(self.row), dtype=np.int64).reshape(-1, 2)
        self.atoms = RowSum([pairs[:, 1]], [pairs[:, 0]])
        # Coordinates arrive as rows (atom, xyz) flattened; displacements leave as (xyz, pair).
        self.add_index("gather_first", 3 * pairs[None, :, 0] + np.arange(3)[:, None])
        self.add_index("gather_second", 3 * pairs[None, :, 1] + np.arange(3)[:, None])

    def __len__(self) -> int:
        return len(self.row)

    def measure(self, x: Tensor) -> Pairs:
        """Distances for coordinates x of shape (3n, B)."""
        flat = x.index_select(0, self.gather_first).sub_(x.index_select(0, self.gather_second))
        displacement = flat.view(3, len(self), x.shape[1])
        dx, dy, dz = displacement.unbind(0)
        squared = (dx * dx).addcmul_(dy, dy).addcmul_(dz, dz)
        inverse = squared.rsqrt()
        distance = squared * inverse
        closest, farthest = None, None
        if x.device.type == "cpu" and distance.numel() and not torch.compiler.is_compiling():
            closest, farthest = (float(extreme) for extreme in distance.aminmax())
        return Pairs(displacement, squared, inverse, inverse * inverse, distance, closest, farthest)

    def force(self, pairs: Pairs, slope: Tensor) -> Tensor:
        """Forces (3, n, B) of pair energies whose dE/dr / r is `slope` (P, B)."""
        pull = pairs.displacement * slope
        force = torch.zeros(3, self.num_atoms, slope.shape[1], dtype=slope.dtype, device=slope.device)
        self.atoms.add(force, pull, dim=1)
        return force
