"""Harmonic bonds and angles: energies and analytic forces."""

import numpy as np
import openmm
import torch
from torch import Tensor

from molecular.energy.pairs import Pair, PairList, Pairs, PairTerm, ordered
from molecular.energy.sums import RowSum, total
from molecular.energy.tables import column
from molecular.energy.units import KILOJOULE, NANOMETRE, RADIAN, plain


class HarmonicBonds(PairTerm):
    """E = k (r - r0)^2 / 2 for each bond."""

    rows: Tensor
    length: Tensor
    stiffness: Tensor

    def __init__(self, force: openmm.HarmonicBondForce, pair_list: PairList) -> None:
        super().__init__()
        bonds = [force.getBondParameters(index) for index in range(force.getNumBonds())]
        self.add_index("rows", [pair_list.row[ordered(i, j)] for i, j, _, _ in bonds])
        self.pairs = RowSum([self.rows])
        self.add_table("length", column([plain(r0, NANOMETRE) for _, _, r0, _ in bonds]))
        self.add_table("stiffness", column([plain(k, KILOJOULE / NANOMETRE**2) for _, _, _, k in bonds]))

    @staticmethod
    def pairs_of(force: openmm.HarmonicBondForce) -> list[Pair]:
        """The atom pairs this force needs distances of."""
        return [ordered(*force.getBondParameters(index)[:2]) for index in range(force.getNumBonds())]

    def energy_and_slope(self, pairs: Pairs, slope: Tensor | None) -> Tensor:
        """Energies (B,); adds dE/dr / r to `slope` (P, B) unless it is None."""
        # Bonds are so stiff that the last place of a length counts: its own root is better than r^2 (1/r).
        stretch = pairs.squared.index_select(0, self.rows).sqrt_().sub_(self.length)
        tension = stretch * self.stiffness
        energy = total(stretch * tension).mul_(0.5)
        if slope is not None:
            self.pairs.add(slope, tension.mul_(pairs.inverse.index_select(0, self.rows)))
        return energy


class HarmonicAngles(PairTerm):
    """E = k (theta - theta0)^2 / 2 for each angle, as a function of its three distances.

    By the law of cosines cos theta = (a + b - c) / (2 sqrt(a b)) with a, b the squared lengths of the two
    arms and c the squared distance of the outer atoms, so the force is again one along the three pairs.
    """

    sides: Tensor
    angle: Tensor
    stiffness: Tensor

    def __init__(self, force: openmm.HarmonicAngleForce, pair_list: PairList) -> None:
        super().__init__()
        angles = [force.getAngleParameters(index) for index in range(force.getNumAngles())]
        sides = [[pair_list.row[pair] for pair in _sides(*angle[:3])] for angle in angles]
        self.add_index("sides", np.array(sides, dtype=np.int64).T)
        self.pairs = RowSum([self.sides])
        self.add_table("angle", column([plain(theta, RADIAN) for _, _, _, theta, _ in angles]))
        self.add_table("stiffness", column([plain(k, KILOJOULE / RADIAN**2) for _, _, _, _, k in angles]))

    @staticmethod
    def pairs_of(force: openmm.HarmonicAngleForce) -> list[Pair]:
        """The atom pairs this force needs distances of."""
        angles = [force.getAngleParameters(index)[:3] for index in range(force.getNumAngles())]
        return [pair for atoms in angles for pair in _sides(*atoms)]

    def energy_and_slope(self, pairs: Pairs, slope: Tensor | None) -> Tensor:
        """Energies (B,); adds dE/dr / r to `slope` (P, B) unless it is None."""
        a, b, c = pairs.squared.index_select(0, self.sides).chunk(3)
        inverse_a, inverse_b, _ = pairs.inverse.index_select(0, self.sides).chunk(3)
        inverse_ab = inverse_a * inverse_b
        cosine = (a + b).sub_(c).mul_(inverse_ab).mul_(0.5).clamp_(-1.0, 1.0)
        bend = cosine.acos().sub_(self.angle)
        torque = bend * self.stiffness
        energy = total(bend * torque).mul_(0.5)
        if slope is None:
            return energy
        # sin^2 below rounding error: the force of a straight angle is small there instead of infinite.
        inverse_sine = (cosine * cosine).neg_().add_(1.0).clamp_(min=torch.finfo(cosine.dtype).eps).rsqrt_()
        # dE/dcos = -torque / sin;  r dr = d(r^2)/2, hence slope = 2 dE/d(r^2).
        pull = torque.mul_(inverse_sine).mul_(inverse_ab)
        twist = cosine.mul_(pull)
        ratio = a.sqrt().mul_(inverse_b)
        change = torch.cat((torch.addcdiv(-pull, twist, ratio), torch.addcmul(-pull, twist, ratio), pull))
        self.pairs.add(slope, change)
        return energy


def _sides(i: int, j: int, k: int) -> tuple[Pair, Pair, Pair]:
    """The two arms and the outer pair of angle i-j-k."""
    return ordered(i, j), ordered(j, k), ordered(i, k)
