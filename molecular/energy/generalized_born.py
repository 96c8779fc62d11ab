"""Generalized Born solvation with salt, and the ACE surface-area term."""

import numpy as np
import torch
from torch import Tensor

from molecular.energy.born_parameters import BornParameters
from molecular.energy.descreening import Descreening, HawkinsRadii, OnufrievRadii
from molecular.energy.pairs import PairList, Pairs, PairTerm
from molecular.energy.sums import RowSum, total
from molecular.energy.tables import TableModule

PROBE_RADIUS = 0.14


class GeneralizedBorn(PairTerm):
    """Polar energy of the pairs i <= j, and surface energy surface sum_i (R_i + probe)^2 (R_i / B_i)^6.

    The polar energy is -(1/eps_solute - exp(-kappa f_ij)/eps_solvent) q_i q_j (1/f_ij - shift) / (4 pi eps0), with
    f_ij^2 = r^2 + B_i B_j exp(-r^2 / (4 B_i B_j)), f_ii = B_i; its half for i = j, without the shift. Born radii B are
    those of `descreening`. The pair list must hold every pair of atoms.
    """

    first: Tensor
    second: Tensor
    surface: Tensor

    def __init__(self, parameters: BornParameters, pair_list: PairList) -> None:
        super().__init__()
        self.cutoff = parameters.cutoff
        pairs = np.array(list(pair_list.row), dtype=np.int64).reshape(-1, 2)
        first, second = pairs[:, 0], pairs[:, 1]
        self.add_index("first", first)
        self.add_index("second", second)
        self.both = RowSum([first, second])
        self.descreening = Descreening(parameters, first, second)
        self.radii: HawkinsRadii | OnufrievRadii = (
            HawkinsRadii(parameters.offset_radius)
            if parameters.polynomial is None
            else OnufrievRadii(parameters.polynomial, parameters.radius, parameters.offset_radius)
        )
        medium = SaltSolution if parameters.kappa else PureSolvent
        self.medium = medium(parameters, first, second)
        radius = parameters.radius
        self.add_table("surface", (parameters.surface * (radius + PROBE_RADIUS) ** 2 * radius**6)[:, None])

    def energy_and_slope(self, pairs: Pairs, slope: Tensor | None) -> Tensor:
        """Energies (B,); adds dE/dr / r to `slope` (P, B) unless it is None."""
        within = pairs.within(self.cutoff)
        integral, integral_slope = self.descreening(pairs, within)
        born, log_born_slope = self.radii(integral)
        energy, born_pull = self._polar(pairs, born, within, slope)
        inverse_born = born.reciprocal()
        self_energy, self_slope = self.medium.of_atoms(born, inverse_born)
        third = (inverse_born * inverse_born).mul_(inverse_born)
        surface_energy = third.mul_(third).mul_(self.surface)
        energy += total(self_energy + surface_energy)
        if slope is None:
            return energy

        # dE/d(ln B), then by the chain rule dE/dI / 8, the scale that the descreening slopes come in.
        born_pull.mul_(-0.125).add_(self_slope).sub_(surface_energy, alpha=6.0)
        integral_pull = born_pull.mul_(log_born_slope).mul_(0.125)
        directed = integral_slope[0].mul_(integral_pull.index_select(0, self.first))
        directed.addcmul_(integral_slope[1], integral_pull.index_select(0, self.second))
        slope.addcmul_(directed, pairs.inverse_squared, value=-1.0)
        return energy

    def _polar(self, pairs: Pairs, born: Tensor, within: Tensor | None, slope: Tensor | None) -> tuple[Tensor, Tensor]:
        """Pair energies (B,) and -8 dE/d(ln B) (n, B); adds dE/dr / r at fixed Born radii to `slope`.

        Without `slope` the second result is not computed, and zero.
        """
        doubled = born * 2.0
        area = doubled.index_select(0, self.first).mul_(doubled.index_select(0, self.second))  # 4 B_i B_j
        exponent = pairs.squared / area
        decay = exponent.neg().exp_()
        area.mul_(decay)
        inverse_f = torch.add(pairs.squared, area, alpha=0.25).rsqrt_()
        energy, pull = self.medium.of_pairs(inverse_f)
        if within is not None:
            energy.masked_fill_(~within, 0.0)
            pull.masked_fill_(~within, 0.0)
        born_pull = torch.zeros_like(born)
        if slope is not None:
            slope.sub_(pull).addcmul_(pull, decay, value=0.25)
            area.mul_(pull)
            area.addcmul_(area, exponent)
            self.both.add(born_pull, area)
        return total(energy), born_pull


class PureSolvent(TableModule):
    """Energies -strength q_i q_j (1/f - shift) with strength = (1/eps_solute - 1/eps_solvent) / (4 pi eps0)."""

    pair_charge: Tensor
    pair_shift: Tensor
    self_charge: Tensor

    def __init__(self, parameters: BornParameters, first: np.ndarray, second: np.ndarray) -> None:
        super().__init__()
        strength, charge = parameters.solute - parameters.solvent, parameters.charge
        pair_charge = -strength * (charge[first] * charge[second])[:, None]
        self.add_table("pair_charge", pair_charge)
        self.add_table("pair_shift", pair_charge * parameters.shift)
        self.add_table("self_charge", -0.5 * strength * charge[:, None] ** 2)

    def of_pairs(self, inverse_f: Tensor) -> tuple[Tensor, Tensor]:
        """Energies and -dE/df / f of the pairs (P, B)."""
        unshifted = inverse_f * self.pair_charge
        energy = unshifted - self.pair_shift
        return energy, unshifted.mul_(inverse_f).mul_(inverse_f)

    def of_atoms(self, born: Tensor, inverse_born: Tensor) -> tuple[Tensor, Tensor]:
        """Self energies and dE/d(ln B) of the atoms (n, B)."""
        energy = inverse_born * self.self_charge
        return energy, -energy


class SaltSolution(TableModule):
    """Energies -(1/eps_solute - exp(-kappa f)/eps_solvent) q_i q_j (1/f - shift) / (4 pi eps0): Debye and Hueckel."""

    pair_charge: Tensor
    self_charge: Tensor

    def __init__(self, parameters: BornParameters, first: np.ndarray, second: np.ndarray) -> None:
        super().__init__()
        self.kappa, self.shift = parameters.kappa, parameters.shift
        self.solute, self.solvent = parameters.solute, parameters.solvent
        charge = parameters.charge
        self.add_table("pair_charge", -(charge[first] * charge[second])[:, None])
        self.add_table("self_charge", -0.5 * charge[:, None] ** 2)

    def of_pairs(self, inverse_f: Tensor) -> tuple[Tensor, Tensor]:
        """Energies and -dE/df / f of the pairs (P, B)."""
        screened = self._screened(inverse_f.reciprocal())
        strength = (self.solute - screened).mul_(self.pair_charge)
        rest = inverse_f - self.shift
        energy = strength * rest
        fall = strength.mul_(inverse_f).mul_(inverse_f)
        fall.addcmul_(screened.mul_(rest).mul_(self.kappa), self.pair_charge, value=-1.0)
        return energy, fall.mul_(inverse_f)

    def of_atoms(self, born: Tensor, inverse_born: Tensor) -> tuple[Tensor, Tensor]:
        """Self energies and dE/d(ln B) of the atoms (n, B)."""
        screened = self._screened(born)
        energy = (self.solute - screened) * inverse_born * self.self_charge
        return energy, screened.mul_(self.kappa).mul_(self.self_charge).sub_(energy)

    def _screened(self, f: Tensor) -> Tensor:
        return (f * -self.kappa).exp_().mul_(self.solvent)
