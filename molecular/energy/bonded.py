"""Bonds, angles and torsions: energies and analytic forces."""

import math

import openmm
import torch
from torch import Tensor

from molecular.energy.pairs import PairList, Pairs, ordered
from molecular.energy.tables import TableModule
from molecular.energy.units import KILOJOULE, NANOMETRE, RADIAN, plain


class HarmonicBonds(TableModule):
    """E = k (r - r0)^2 / 2 for each bond."""

    rows: Tensor
    length: Tensor
    stiffness: Tensor

    def __init__(self, force: openmm.HarmonicBondForce, pair_list: PairList) -> None:
        super().__init__()
        bonds = [force.getBondParameters(index) for index in range(force.getNumBonds())]
        self.add_index("rows", [pair_list.row[ordered(i, j)] for i, j, _, _ in bonds])
        self.add_table("length", [[plain(r0, NANOMETRE)] for _, _, r0, _ in bonds])
        self.add_table("stiffness", [[plain(k, KILOJOULE / NANOMETRE**2)] for _, _, _, k in bonds])

    @staticmethod
    def pairs_of(force: openmm.HarmonicBondForce) -> list[tuple[int, int]]:
        """The atom pairs this force needs distances of."""
        return [ordered(*force.getBondParameters(index)[:2]) for index in range(force.getNumBonds())]

    def energy_and_slope(self, pairs: Pairs, slope: Tensor) -> Tensor:
        """Energies (B,); adds dE/dr / r to `slope` (P, B)."""
        stretch = pairs.distance.index_select(0, self.rows).sub_(self.length)
        tension = stretch * self.stiffness
        energy = (stretch * tension).sum(0).mul_(0.5)
        slope.index_add_(0, self.rows, tension.mul_(pairs.inverse.index_select(0, self.rows)))
        return energy


class HarmonicAngles(TableModule):
    """E = k (theta - theta0)^2 / 2 for each angle, as a function of its three distances.

    By the law of cosines cos theta = (a + b - c) / (2 sqrt(a b)) with a, b the squared lengths of the two arms and c the
    squared distance of the outer atoms, so the force is again one along the three pairs.
    """

    arm_a: Tensor
    arm_b: Tensor
    outer: Tensor
    angle: Tensor
    stiffness: Tensor

    def __init__(self, force: openmm.HarmonicAngleForce, pair_list: PairList) -> None:
        super().__init__()
        angles = [force.getAngleParameters(index) for index in range(force.getNumAngles())]
        self.add_index("arm_a", [pair_list.row[ordered(i, j)] for i, j, _, _, _ in angles])
        self.add_index("arm_b", [pair_list.row[ordered(j, k)] for _, j, k, _, _ in angles])
        self.add_index("outer", [pair_list.row[ordered(i, k)] for i, _, k, _, _ in angles])
        self.add_table("angle", [[plain(theta, RADIAN)] for _, _, _, theta, _ in angles])
        self.add_table("stiffness", [[plain(k, KILOJOULE / RADIAN**2)] for _, _, _, _, k in angles])

    @staticmethod
    def pairs_of(force: openmm.HarmonicAngleForce) -> list[tuple[int, int]]:
        """The atom pairs this force needs distances of."""
        result = []
        for index in range(force.getNumAngles()):
            i, j, k = force.getAngleParameters(index)[:3]
            result += [ordered(i, j), ordered(j, k), ordered(i, k)]
        return result

    def energy_and_slope(self, pairs: Pairs, slope: Tensor) -> Tensor:
        """Energies (B,); adds dE/dr / r to `slope` (P, B)."""
        a = pairs.squared.index_select(0, self.arm_a)
        b = pairs.squared.index_select(0, self.arm_b)
        c = pairs.squared.index_select(0, self.outer)
        inverse_a = pairs.inverse.index_select(0, self.arm_a)
        inverse_b = pairs.inverse.index_select(0, self.arm_b)
        inverse_ab = inverse_a * inverse_b
        cosine = (a + b).sub_(c).mul_(inverse_ab).mul_(0.5).clamp_(-1.0, 1.0)
        # sin^2 below rounding error: the force of a straight angle is zero there instead of infinite.
        tiny = torch.finfo(cosine.dtype).eps
        inverse_sine = (1.0 - cosine * cosine).clamp_(min=tiny).rsqrt_()
        bend = cosine.acos().sub_(self.angle)
        torque = bend * self.stiffness
        energy = (bend * torque).sum(0).mul_(0.5)
        # dE/dcos = -torque / sin;  r dr = d(r^2)/2, hence slope = 2 dE/d(r^2).
        pull = torque.mul_(inverse_sine).mul_(inverse_ab)
        slope.index_add_(0, self.outer, pull)
        twist = cosine * pull
        ratio = a.sqrt().mul_(inverse_b)
        slope.index_add_(0, self.arm_a, torch.addcdiv(-pull, twist, ratio))
        slope.index_add_(0, self.arm_b, torch.addcmul(-pull, twist, ratio))
        return energy


class PeriodicTorsions(TableModule):
    """E = sum_n k_n (1 + cos(n phi - phase_n)), all terms of one quadruplet of atoms together.

    With c = cos phi and s = sin phi, cos n phi and sin n phi follow from the angle addition theorem, so no inverse
    trigonometric function is needed. s is only computed if some phase is neither 0 nor pi.
    """

    gather: Tensor
    scatter: Tensor
    constant: Tensor
    cosine_amplitude: Tensor
    sine_amplitude: Tensor

    def __init__(self, force: openmm.PeriodicTorsionForce) -> None:
        super().__init__()
        terms: dict[tuple[int, int, int, int], list[tuple[int, float, float]]] = {}
        for index in range(force.getNumTorsions()):
            i, j, k, m, n, phase, barrier = force.getTorsionParameters(index)
            atoms = (i, j, k, m)
            if atoms not in terms and atoms[::-1] in terms:
                atoms = atoms[::-1]
            terms.setdefault(atoms, []).append((n, plain(phase, RADIAN), plain(barrier, KILOJOULE)))
        self.degree = max((n for series in terms.values() for n, _, _ in series), default=0)
        cosine = [[0.0] * len(terms) for _ in range(self.degree + 1)]
        sine = [[0.0] * len(terms) for _ in range(self.degree + 1)]
        for place, series in enumerate(terms.values()):
            for n, phase, barrier in series:
                cosine[0][place] += barrier
                cosine[n][place] += barrier * math.cos(phase)
                # The float nearest pi has a sine of 1e-16: meant as zero.
                if abs(math.sin(phase)) > 1e-9:
                    sine[n][place] += barrier * math.sin(phase)
        self.chiral = any(any(row) for row in sine)
        self.num_torsions = len(terms)
        self.add_table("constant", sum(cosine[0]))
        self.add_table("cosine_amplitude", [[[v] for v in row] for row in cosine[1:]])
        self.add_table("sine_amplitude", [[[v] for v in row] for row in sine[1:]])
        atoms = torch.tensor(list(terms), dtype=torch.int64).reshape(-1, 4).t()
        # x, y, z, x, y of each atom: a cross product is then two products of shifted slices.
        component = torch.tensor([0, 1, 2, 0, 1])
        self.add_index("gather", (3 * atoms[:, None, :] + component[None, :, None]).numpy())
        self.add_index("scatter", atoms.numpy())

    def energy_and_force(self, x: Tensor, force: Tensor) -> Tensor:
        """Energies (B,) for coordinates x (3n, B); adds the forces to `force` (3, n, B)."""
        count, batch = self.num_torsions, x.shape[1]
        points = x.index_select(0, self.gather).view(4, 5, count, batch)
        edges = points[1:] - points[:3]
        middle = edges[1]
        normals = _cross(edges[:2], edges[1:])  # (2, 3, T, B)
        m, n = normals[0], normals[1]
        mm, nn = _dot(normals, normals)
        inverse_m, inverse_n = mm.rsqrt(), nn.rsqrt()
        middle_squared = _dot(middle[:3], middle[:3])
        inverse_middle = middle_squared.rsqrt()
        length = middle_squared * inverse_middle
        inverse_mn = inverse_m * inverse_n
        cosine = _dot(m, n).mul_(inverse_mn)
        sine = _dot(edges[0][:3], n).mul_(inverse_mn).mul_(length)
        energy, torque = self._series(cosine, sine)

        # The force on the first atom is along m, on the last along n (Blondel & Karplus 1996).
        torque = torque * length
        outer = torch.stack((-torque * inverse_m * inverse_m, torque * inverse_n * inverse_n))
        ends = normals * outer[:, None]
        project = _dot(edges[0::2, :3], middle[None, :3].expand(2, 3, count, batch)) * (
            inverse_middle * inverse_middle
        )
        shift = torch.addcmul(ends[0] * project[0], ends[1], project[1], value=-1)
        scatter = torch.cat((ends[0], -shift - ends[0], shift - ends[1], ends[1]), dim=1)
        force.index_add_(1, self.scatter, scatter)
        return energy

    def _series(self, cosine: Tensor, sine: Tensor) -> tuple[Tensor, Tensor]:
        """Energies (B,) and torques -dE/dphi (T, B)."""
        cosine_n, sine_n = cosine, sine
        energy = self.cosine_amplitude[0] * cosine_n
        torque = self.cosine_amplitude[0] * sine_n
        if self.chiral:
            energy = energy.addcmul_(self.sine_amplitude[0], sine_n)
            torque = torque.addcmul_(self.sine_amplitude[0], cosine_n, value=-1)
        for n in range(2, self.degree + 1):
            cosine_n, sine_n = (
                torch.addcmul(cosine_n * cosine, sine_n, sine, value=-1),
                torch.addcmul(sine_n * cosine, cosine_n, sine),
            )
            energy = energy.addcmul_(self.cosine_amplitude[n - 1], cosine_n)
            torque = torque.addcmul_(self.cosine_amplitude[n - 1], sine_n, value=n)
            if self.chiral:
                energy = energy.addcmul_(self.sine_amplitude[n - 1], sine_n)
                torque = torque.addcmul_(self.sine_amplitude[n - 1], cosine_n, value=-n)
        return energy.sum(0).add_(self.constant), torque


def _cross(a: Tensor, b: Tensor) -> Tensor:
    """a x b for vectors stored as components x, y, z, x, y along dimension -3."""
    return torch.addcmul(
        a[..., 1:4, :, :] * b[..., 2:5, :, :], a[..., 2:5, :, :], b[..., 1:4, :, :], value=-1
    )


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """a . b over components along dimension -3."""
    ax, ay, az = a.unbind(-3)
    bx, by, bz = b.unbind(-3)
    return (ax * bx).addcmul_(ay, by).addcmul_(az, bz)
