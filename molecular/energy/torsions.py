"""Periodic torsions: energies and analytic forces."""

import math

import numpy as np
import openmm
import torch
from numpy.polynomial import Chebyshev, Polynomial
from torch import Tensor

from molecular.energy.dihedrals import AtomTerm, Dihedrals
from molecular.energy.sums import total
from molecular.energy.units import KILOJOULE, RADIAN, plain
from molecular.energy.unsupported import UnsupportedForce

# Coefficients of T_n grow as 2.4^n and cancel: beyond this, single precision loses more than 0.1 % of a barrier.
HIGHEST_PERIODICITY = 12


class PeriodicTorsions(AtomTerm):
    """E = sum_n k_n (1 + cos(n phi - phase_n)), all terms of one quadruplet of atoms together.

    With c = cos phi and s = sin phi, cos n phi = T_n(c) and sin n phi = s U_{n-1}(c), Chebyshev polynomials.
    So the sum is E = even(c) + s odd(c), without inverse trigonometric functions; `odd` vanishes if all phases
    are 0 or pi, as in Amber.
    """

    even: Tensor
    odd: Tensor
    even_slope: Tensor
    odd_slope: Tensor

    def __init__(self, force: openmm.PeriodicTorsionForce) -> None:
        super().__init__()
        terms: dict[tuple[int, ...], list[tuple[int, float, float]]] = {}
        for index in range(force.getNumTorsions()):
            *atoms, n, phase, barrier = force.getTorsionParameters(index)
            if not 0 < n <= HIGHEST_PERIODICITY:
                raise UnsupportedForce(
                    f"Torsion {index} has the periodicity {n}; compile_system supports 1 to {HIGHEST_PERIODICITY}."
                )
            key = min(tuple(atoms), tuple(atoms[::-1]))
            terms.setdefault(key, []).append((n, plain(phase, RADIAN), plain(barrier, KILOJOULE)))
        degree = max((n for series in terms.values() for n, _, _ in series), default=1)
        even, odd = np.zeros((degree + 1, len(terms))), np.zeros((degree + 1, len(terms)))
        for column, series in enumerate(terms.values()):
            for n, phase, barrier in series:
                _add(even, column, Polynomial([barrier]))
                _add(even, column, barrier * math.cos(phase) * _first_kind(n))
                # The floats nearest pi have sines of about 1e-16; they are meant as zero.
                if abs(math.sin(phase)) > 1e-9:
                    _add(odd, column, barrier * math.sin(phase) * _first_kind(n).deriv() / n)
        self.chiral = bool(odd.any())
        powers = np.arange(1, degree + 1)[:, None]
        for name, table in (("even", even), ("odd", odd)):
            self.add_table(name, table[..., None])
            self.add_table(f"{name}_slope", (powers * table[1:])[..., None])
        self.dihedrals = Dihedrals(list(terms))

    def energy_and_force(self, x: Tensor, force: Tensor | None) -> Tensor:
        """Energies (B,) for coordinates x (3n, B); adds the forces to `force` (3, n, B) unless it is None."""
        frame = self.dihedrals.measure(x, with_sine=force is not None or self.chiral)
        cosine, sine_length = frame.cosine, frame.sine_length
        energy = _horner(self.even, cosine)
        if sine_length is None:
            return total(energy)
        if self.chiral:
            sine = sine_length * frame.middle_squared.rsqrt()
            odd = _horner(self.odd, cosine)
            energy.addcmul_(sine, odd)
        if force is None:
            return total(energy)
        torque = _horner(self.even_slope, cosine).mul_(sine_length)
        if self.chiral:
            torque.addcmul_(_horner(self.odd_slope, cosine).mul_(sine), sine_length)
            torque.addcmul_(odd.mul_(cosine), frame.middle_squared.sqrt(), value=-1.0)
        self.dihedrals.push(frame, torque, force)
        return total(energy)


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
