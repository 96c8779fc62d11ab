"""Dihedral angles of many quadruplets of atoms, and the forces that torques about them exert."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from molecular.energy.sums import RowSum
from molecular.energy.tables import TableModule


class AtomTerm(TableModule):
    """A term of the potential energy that depends on positions themselves."""

    def energy_and_force(self, x: Tensor, force: Tensor | None) -> Tensor:
        """Energies (B,) in kJ/mol for coordinates x (3n, B); adds the forces to `force` (3, n, B) unless it is None."""
        raise NotImplementedError


@dataclass
class DihedralFrame:
    """Angles phi of T dihedrals in B conformations and what their forces are made of (batch last)."""

    cosine: Tensor  # (T, B), cos phi
    sine_length: Tensor | None  # (T, B), sin phi times the length of the middle bond
    middle_squared: Tensor  # (T, B), squared length of the middle bond
    normals: Tensor  # (3, 2, T, B), of the planes of the first and the last three atoms
    inverse: Tensor  # (2, T, B), 1/|normal|^2
    along: Tensor  # (T, B), outer bonds projected on the middle one
    across: Tensor


class Dihedrals(TableModule):
    """The dihedral angles phi of quadruplets of atoms, in the sign that OpenMM gives them."""

    gather: Tensor

    def __init__(self, quadruplets: Sequence[Sequence[int]]) -> None:
        super().__init__()
        self.count = len(quadruplets)
        atoms = np.array(quadruplets, dtype=np.int64).reshape(-1, 4).T
        # x, y, z, x, y of each atom: a cross product is then two products of shifted slices.
        self.add_index("gather", 3 * atoms[None] + np.array([0, 1, 2, 0, 1])[:, None, None])
        self.outer = RowSum([atoms[[0, 3]]], [atoms[[1, 2]]])
        self.inner = RowSum([atoms[2]], [atoms[1]])

    def measure(self, x: Tensor, with_sine: bool) -> DihedralFrame:
        """Angles of coordinates x (3n, B)."""
        points = x.index_select(0, self.gather).view(5, 4, self.count, x.shape[1])
        edges = points[:, 1:] - points[:, :3]
        normals = _cross(edges[:, :2], edges[:, 1:])
        edges = edges[:3]
        m, n = normals.unbind(1)
        # Three atoms on a line have no plane: with a normal of zero the cosine and the forces are zero, not NaN.
        inverse = (normals * normals).sum(0).clamp_(min=math.sqrt(torch.finfo(x.dtype).tiny)).reciprocal_()
        inverse_mn = (inverse[0] * inverse[1]).sqrt_()
        cosine = (m * n).sum(0).mul_(inverse_mn)
        along, middle_squared, across = (edges * edges[:, 1:2]).sum(0).unbind()
        sine_length = None
        if with_sine:
            sine_length = (edges[:, 0] * n).sum(0).mul_(inverse_mn).mul_(middle_squared)
        return DihedralFrame(cosine, sine_length, middle_squared, normals, inverse, along, across)

    def push(self, frame: DihedralFrame, torque: Tensor, force: Tensor) -> None:
        """Adds to `force` (3, n, B) what `torque` (T, B), -dE/dphi times the length of the middle bond, exerts.

        The outer atoms feel it along the normals (Blondel & Karplus 1996), the inner ones what balances force and
        torque. Uses up `frame`.
        """
        outer = frame.inverse.mul_(torque)
        outer[0].neg_()
        ends = frame.normals.mul_(outer)
        lever_m, lever_n = frame.along / frame.middle_squared, frame.across / frame.middle_squared
        shift = (ends[:, 0] * lever_m).addcmul_(ends[:, 1], lever_n, value=-1.0)
        self.outer.add(force, ends.flatten(1, 2), dim=1)
        self.inner.add(force, shift, dim=1)


def _cross(a: Tensor, b: Tensor) -> Tensor:
    """a x b of vectors given as x, y, z, x, y along the first dimension."""
    return (a[1:4] * b[2:5]).addcmul_(a[2:5], b[1:4], value=-1.0)
