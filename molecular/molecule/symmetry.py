"""Exact symmetries of a molecule's energy: hydrogens of CH3 and NH3+ groups change places in a cycle."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def methyl_rotations(elements: Sequence[str], bonds: Sequence[tuple[int, int]]) -> list[Tensor]:
    """The groups of exactly three hydrogens on one heavy atom, each with its rotations.

    Returns one (3, 3) int64 tensor a group: row k holds the atoms whose positions go to the atoms of row 0 in
    the k-th cyclic permutation. A cycle keeps chirality; exchanging just two hydrogens would not.

    >>> methyl_rotations(["C", "H", "H", "H", "F"], [(0, 1), (0, 2), (0, 3), (0, 4)])
    [tensor([[1, 2, 3],
            [2, 3, 1],
            [3, 1, 2]])]
    """
    hydrogens: dict[int, list[int]] = {}
    for pair in bonds:
        for heavy, other in (pair, pair[::-1]):
            if elements[heavy] != "H" and elements[other] == "H":
                hydrogens.setdefault(heavy, []).append(other)
    cycle = torch.tensor([[0, 1, 2], [1, 2, 0], [2, 0, 1]])
    return [torch.tensor(sorted(group))[cycle] for _, group in sorted(hydrogens.items()) if len(group) == 3]


def random_symmetry(x: Tensor, groups: Sequence[Tensor], generator: torch.Generator | None = None) -> Tensor:
    """Rotate every group of every sample of x (B, n, 3) by its own random cycle, for data augmentation.

    The identity and both rotations are equally likely. `generator` lives on the CPU, so a seed means the same
    permutations on every device.
    """
    if not groups:
        return x
    rows = torch.stack(list(groups))  # (groups, rotations, hydrogens)
    choice = torch.randint(rows.shape[1], (x.shape[0], len(groups)), generator=generator)
    sources = rows[torch.arange(len(groups)), choice]  # (B, groups, hydrogens)
    index = torch.arange(x.shape[1]).repeat(x.shape[0], 1)
    index[:, rows[:, 0].flatten()] = sources.flatten(1)
    return x.gather(1, index.to(x.device)[..., None].expand_as(x))
