"""Periodic torsions: energies and analytic forces."""

import math

import numpy as np
import openmm
import torch
from numpy.polynomial import Chebyshev, Polynomial
from torch import Tensor

from molecular.energy.tables import TableModule
from molecular.energy.units import KILOJOULE, RADIAN, plain


class PeriodicTorsions(TableModule):
    """E = sum_n k_n (1 + cos(n phi - phase_n)), all terms of one quadruplet of atoms together.

    With c = cos phi and s = sin phi, cos n phi = T_n(c) and sin n phi = s U_{n-1}(c), Chebyshev polynomials.
    So the sum is E = even(c) + s odd(c), without inverse trigonometric functions; `odd` vanishes if all phases
    are 0 or pi, as in Amber.
    """

    gather: Tensor
    pulled: Tensor
    pushed: Tensor
    even: Tensor
    odd: Tensor
    even_slope: Tensor
    odd_slope: Tensor

    def __init__(self, force: openmm.PeriodicTorsionForce) -> None:
        super().__init__()
        terms: dict[tuple[int, ...], list[tuple[int, float, float]]] = {}
        for index in range(force.getNumTorsions()):
            *atoms, n, phase, barrier = force.getTorsionParameters(index)
            key = min(tuple(atoms), tuple(atoms[::-1]))
            terms.setdefault(key, []).append((n, plain(phase, RADIAN), plain(barrier, KILOJOULE)))
        degree = max((n for series in terms.values() for n, _, _ in series), default=1)
        even, odd = np.zeros((degree + 1, len(terms))), np.zeros((degree + 1, len(terms)))
        for column, series in enumerate(terms.values()):
            for n, phase, barrier in series:
                _add(even, column, Polynomial([barrier]))
                _add(even, column, barrier * math.cos(phase) * _first_kind(n))
                # The floats nearest pi have sines of about 1e-16; they are meant as zero.
                if n > 0 and abs(math.sin(phase)) > 1e-9:
                    _add(odd, column, barrier * math.sin(phase) * _first_kind(n).deriv() / n)
        self.num_torsions, self.degree, self.chiral = len(terms), degree, bool(odd.any())
        powers = np.arange(1, degree + 1)[:, None]
        for name, table in (("even", even), ("odd", odd)):
            self.add_table(name, table[..., None])
            self.add_table(f"{name}_slope", (powers * table[1:])[..., None])
        atoms = np.array(list(terms), dtype=np.int64).reshape(-1, 4).T
        # x, y, z, x, y of each atom: a cross product is then two products of shifted slices.
        self.add_index("gather", 3 * atoms[None] + np.array([0, 1, 2, 0, 1])[:, None, None])
        self.add_index("pulled", atoms[[0, 3, 2]])
        self.add_index("pushed", atoms[[1, 2, 1]])

    def energy_and_force(self, x: Tensor, force: Tensor | None) -> Tensor:
        """Energies (B,) for coordinates x (3n, B); adds the forces to `force` (3, n, B) unless it is None."""
        count, batch = self.num_torsions, x.shape[1]
        points = x.index_select(0, self.gather).view(5, 4, count, batch)
        edges = points[:, 1:] - points[:, :3]
        normals = _cross(edges[:, :2], edges[:, 1:])  # (3, 2, T, B)
        edges = edges[:3]
        m, n = normals.unbind(1)
        # inverse[i] = 1/|normal i|^2
        inverse = (normals * normals).sum(0).reciprocal_()
        inverse_mn = (inverse[0] * inverse[1]).sqrt_()
        cosine = (m * n).sum(0).mul_(inverse_mn)
        along, middle_squared, across = (edges * edges[:, 1:2]).sum(0).unbind()
        energy = _horner(self.even, cosine)
        if force is None and not self.chiral:
            return energy.sum(0)

        # sin phi times the length of the middle bond
        sine_length = (edges[:, 0] * n).sum(0).mul_(inverse_mn).mul_(middle_squared)
        if self.chiral:
            sine = sine_length * middle_squared.rsqrt()
            odd = _horner(self.odd, cosine)
            energy.addcmul_(sine, odd)
        if force is None:
            return energy.sum(0)
        # -dE/dphi times the length of the middle bond. The outer atoms feel it along m and n (Blondel & Karplus
        # 1996), the inner ones what balances force and torque.
        torque = _horner(self.even_slope, cosine).mul_(sine_length)
        if self.chiral:
            torque.addcmul_(_horner(self.odd_slope, cosine).mul_(sine), sine_length)
            torque.addcmul_(odd.mul_(cosine), middle_squared.sqrt(), value=-1.0)
        outer = inverse.mul_(torque)
        outer[0].neg_()
        parts = torch.empty(3, 3, count, batch, dtype=x.dtype, device=x.device)
        ends, shift = parts[:, :2], parts[:, 2]
        torch.mul(normals, outer, out=ends)
        lever_m, lever_n = along / middle_squared, across / middle_squared
        torch.addcmul(ends[:, 0] * lever_m, ends[:, 1], lever_n, value=-1.0, out=shift)
        parts = parts.flatten(1, 2)
        force.index_add_(1, self.pulled, parts).index_add_(1, self.pushed, parts, alpha=-1)
        return energy.sum(0)


def _first_kind(n: int) -> Polynomial:
    """Chebyshev polynomial T_n in powers of c."""
    return Chebyshev.basis(n).convert(kind=Polynomial)


def _add(table: np.ndarray, column: int, polynomial: Polynomial) -> None:
    table[: len(polynomial.coef), column] += polynomial.coef


def _horner(coefficients: Tensor, c: Tensor) -> Tensor:
    """Polynomials with coefficients (D, T, 1), constant first, at c (T, B)."""
    value = coefficients[-1].expand_as(c).contiguous()
    for coefficient in coefficients[:-1].unbind()[::-1]:
        value = torch.addcmul(coefficient, value, c)
    return value


def _cross(a: Tensor, b: Tensor) -> Tensor:
    """a x b of vectors given as x, y, z, x, y along the first dimension."""
    return (a[1:4] * b[2:5]).addcmul_(a[2:5], b[1:4], value=-1.0)
