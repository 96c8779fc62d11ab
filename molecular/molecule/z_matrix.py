"""The z-matrix order: in which order atoms are placed, each relative to three earlier ones."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class ZMatrixOrder(NamedTuple):
    """An order of the atoms, and for each the three earlier atoms whose frame holds it.

    order: (n,) atom indices. references: (n, 3) atom indices: parent p (bonded to the atom), q (bonded to p)
    and s (bonded to p or to q). The first three atoms have none and hold -1.
    """

    order: Tensor
    references: Tensor


def z_matrix_order(bonds: Sequence[Sequence[int]], elements: Sequence[str], root: int | None = None) -> ZMatrixOrder:
    """The z-matrix order of a molecule: the bond graph visited breadth first, heavy atoms before hydrogens.

    The first child c of an atom p, with q the parent of p, refers to q's parent (or, at the root, to another
    child of the root): its azimuth is the torsion about p-q. Later children refer to c, to which they are all
    but rigid, so one token per rotatable bond has a wide azimuth.

    Args:
        bonds: pairs of atom indices.
        elements: symbols of the n atoms.
        root: the first atom; by default the heavy atom with most heavy neighbours, the first of equals.

    Raises:
        ValueError: the graph is not connected, a bond names an unknown atom, or the root has one neighbour.
    """
    num_atoms = len(elements)
    neighbours: list[list[int]] = [[] for _ in range(num_atoms)]
    for i, j in bonds:
        if i == j or not (0 <= i < num_atoms and 0 <= j < num_atoms):
            raise ValueError(f"bond ({i}, {j}) does not join two of the {num_atoms} atoms; use indices from 0.")
        neighbours[i].append(j)
        neighbours[j].append(i)
    for atom, adjacent in enumerate(neighbours):
        neighbours[atom] = sorted(set(adjacent), key=lambda k: (elements[k] == "H", k))
    if root is None:
        root = _default_root(neighbours, elements)
    if not 0 <= root < num_atoms or len(neighbours[root]) < 2:
        raise ValueError(f"atom {root} cannot be the root; choose an atom with two or more neighbours.")

    order, parent = [root], {root: -1}
    first_child: dict[int, int] = {}
    references = {root: (-1, -1, -1)}
    queue = deque([root])
    while queue:
        p = queue.popleft()
        for child in neighbours[p]:
            if child in parent:
                continue
            if p == root:
                # The first two children hold the frame in which the root's other children are written.
                reference = (-1, -1, -1) if len(order) < 3 else (root, order[1], order[2])
            elif p in first_child:
                reference = (p, parent[p], first_child[p])
            elif parent[p] == root:
                reference = (p, root, order[2] if p == order[1] else order[1])
            else:
                reference = (p, parent[p], parent[parent[p]])
            first_child.setdefault(p, child)
            parent[child], references[child] = p, reference
            order.append(child)
            queue.append(child)
    if len(order) < num_atoms:
        lost = min(set(range(num_atoms)) - set(order))
        raise ValueError(f"no chain of bonds joins atom {lost} to atom {root}; give one connected molecule.")
    return ZMatrixOrder(torch.tensor(order), torch.tensor([references[atom] for atom in order]))


def _default_root(neighbours: list[list[int]], elements: Sequence[str]) -> int:
    heavy = [i for i, element in enumerate(elements) if element != "H" and len(neighbours[i]) >= 2]
    if not heavy:
        raise ValueError(
            "no heavy atom has two neighbours, so no frame can be set up; give a molecule of three or more atoms."
        )
    return max(heavy, key=lambda i: (sum(elements[k] != "H" for k in neighbours[i]), -i))
