"""Generalized Born solvation after Onufriev, Bashford & Case (2004), with the ACE surface-area term."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from molecular.energy.pairs import PairList, Pairs, PairTerm


@dataclass(frozen=True)
class BornParameters:
    """What an OBC model is made of, whichever OpenMM force it was read from (nm, kJ/mol, elementary charges).

    `strength` is (1/eps_solute - 1/eps_solvent) / (4 pi eps0), `shift` is subtracted from 1/f of each pair,
    `surface` is 4 pi times the surface tension, and `swallowed` says whether an atom wholly inside another one
    has its extra descreening (`GBSAOBCForce` has it, the `CustomGBForce` models have not).
    """

    charge: np.ndarray
    radius: np.ndarray
    offset_radius: np.ndarray
    scaled_radius: np.ndarray
    polynomial: tuple[float, float, float]
    strength: float
    surface: float
    cutoff: float | None
    shift: float
    swallowed: bool


PROBE_RADIUS = 0.14


class GeneralizedBorn(PairTerm):
    """Polar energy -strength sum_{i<=j} q_i q_j / f_ij and surface energy surface sum_i (R_i + probe)^2 (R_i / B_i)^6.

    f_ij^2 = r^2 + B_i B_j exp(-r^2 / (4 B_i B_j));  1/B_i = 1/rho_i - tanh(alpha psi - beta psi^2 + gamma psi^3)/R_i,
    psi_i = rho_i I_i, with I_i the sum over the other atoms of the pairwise descreening integral (Hawkins, Cramer &
    Truhlar 1996). The pair list must hold every pair of atoms.
    """

    ends: Tensor
    buried: Tensor
    rho: Tensor
    reach: Tensor
    reach_squared: Tensor
    pair_charge: Tensor
    pair_shift: Tensor
    self_charge: Tensor
    surface: Tensor
    atom_rho: Tensor
    inverse_rho: Tensor
    inverse_radius: Tensor
    buried_rho: Tensor
    buried_reach: Tensor

    def __init__(self, parameters: BornParameters, pair_list: PairList) -> None:
        super().__init__()
        self.num_atoms, self.num_pairs = len(parameters.charge), len(pair_list)
        self.polynomial, self.cutoff = parameters.polynomial, parameters.cutoff
        self.swallowed = parameters.swallowed
        pairs = np.array(list(pair_list.row), dtype=np.int64).reshape(-1, 2)
        first, second = pairs[:, 0], pairs[:, 1]
        # Descreening is directed: row p is atom `first` among the volume of `second`, row P + p the reverse.
        descreened, descreening = np.concatenate((first, second)), np.concatenate((second, first))
        rho, reach = parameters.offset_radius[descreened], parameters.scaled_radius[descreening]
        self.add_index("ends", descreened)
        self.add_table("rho", rho.reshape(2, -1, 1))
        self.add_table("reach", reach.reshape(2, -1, 1))
        self.add_table("reach_squared", (reach**2).reshape(2, -1, 1))
        buried = np.flatnonzero(reach > rho)
        self.nearest = float(np.max((reach - rho)[buried], initial=0.0))
        self.add_index("buried", buried)
        self.add_table("buried_rho", rho[buried, None])
        self.add_table("buried_reach", reach[buried, None])

        charge, radius = parameters.charge, parameters.radius
        pair_charge = -parameters.strength * charge[first] * charge[second]
        self.add_table("pair_charge", pair_charge[:, None])
        self.add_table("pair_shift", pair_charge[:, None] * parameters.shift)
        self.add_table("self_charge", -0.5 * parameters.strength * charge[:, None] ** 2)
        self.add_table("surface", (parameters.surface * (radius + PROBE_RADIUS) ** 2 * radius**6)[:, None])
        self.add_table("atom_rho", parameters.offset_radius[:, None])
        self.add_table("inverse_rho", 1.0 / parameters.offset_radius[:, None])
        self.add_table("inverse_radius", 1.0 / radius[:, None])

    def energy_and_slope(self, pairs: Pairs, slope: Tensor | None) -> Tensor:
        """Energies (B,); adds dE/dr / r to `slope` (P, B) unless it is None."""
        within = pairs.within(self.cutoff)
        integral, integral_slope = self._descreening(pairs, within)
        born, log_born_slope = self._born_radii(integral)
        energy, born_pull = self._polar(pairs, born, within, slope)
        inverse_born = born.reciprocal()
        self_energy = inverse_born * self.self_charge
        third = (inverse_born * inverse_born).mul_(inverse_born)
        surface_energy = third.mul_(third).mul_(self.surface)
        energy += (self_energy + surface_energy).sum(0)
        if slope is None:
            return energy

        # dE/d(ln B), then by the chain rule dE/dI / 8, the scale that the descreening slopes come in.
        born_pull.mul_(-0.125).sub_(self_energy).sub_(surface_energy, alpha=6.0)
        integral_pull = born_pull.mul_(log_born_slope).mul_(0.125)

        directed = integral_pull.index_select(0, self.ends).view_as(integral_slope).mul_(integral_slope)
        slope.addcmul_(directed[0].add_(directed[1]), pairs.inverse_squared, value=-1.0)
        return energy

    def _descreening(self, pairs: Pairs, within: Tensor | None) -> tuple[Tensor, Tensor]:
        """Integrals I (n, B) and, for each directed pair, -8 r dI/dr (2, P, B).

        For L = max(rho, |r - s|), U = r + s the integral of a pair is half of
        1/L - 1/U + (r - s^2/r)/4 (1/U^2 - 1/L^2) + ln(L/U)/(2r); it is stationary in U, and in L = r - s.
        Atoms that do not reach beyond rho have L = U, hence the clamp on U. s - r > rho is left to `_bury`.
        """
        r, inverse = pairs.distance, pairs.inverse
        upper, lower = r + self.reach, r - self.reach
        torch.maximum(upper, self.rho, out=upper)
        torch.maximum(lower, self.rho, out=lower)
        inverse_lower, inverse_upper = lower.reciprocal_(), upper.reciprocal_()
        logarithm = (inverse_upper / inverse_lower).log_()
        difference = inverse_lower - inverse_upper
        squares = inverse_lower.add_(inverse_upper).mul_(difference)
        arm = torch.addcmul(r, self.reach_squared, inverse, value=-1.0)
        falling = logarithm.mul_(2.0 * inverse).addcmul_(arm, squares, value=-1.0)
        integral = torch.add(falling, difference, alpha=4.0, out=difference)
        integral_slope = falling.addcmul_(squares, r, value=2.0)
        if pairs.closest is None or not pairs.closest >= self.nearest:
            self._bury(r, integral, integral_slope)
        if within is not None:
            integral.masked_fill_(~within, 0.0)
            integral_slope.masked_fill_(~within, 0.0)
        total = torch.zeros(self.num_atoms, r.shape[1], dtype=r.dtype, device=r.device)
        total.index_add_(0, self.ends, integral.flatten(0, 1))
        return total.mul_(0.125), integral_slope

    def _bury(self, r: Tensor, integral: Tensor, integral_slope: Tensor) -> None:
        """Corrects directed pairs in which the descreened atom lies wholly inside the other one (r < s - rho).

        There L = s - r, in which the pair integral is not stationary: `GBSAOBCForce` adds 1/rho - 1/L, which
        makes it so; without that addition the slope gains 1/L^2.
        """
        rho, reach = self.buried_rho, self.buried_reach
        r = r.repeat(2, 1).index_select(0, self.buried)
        lower = torch.maximum(reach - r, rho)
        # What changes when L goes from rho to s - r, in the scale of the caller
        difference = 1.0 / lower - 1.0 / rho
        squares = 1.0 / (lower * lower) - 1.0 / (rho * rho)
        logarithm = (lower / rho).log() * (2.0 / r)
        falling = logarithm - (r - reach * reach / r) * squares
        change, change_slope = falling + 4.0 * difference, falling + 2.0 * r * squares
        if self.swallowed:
            change = change - 8.0 * difference
        else:
            change_slope = change_slope - torch.where(lower > rho, 8.0 * r / (lower * lower), 0.0)
        integral.flatten(0, 1).index_add_(0, self.buried, change)
        integral_slope.flatten(0, 1).index_add_(0, self.buried, change_slope)

    def _born_radii(self, integral: Tensor) -> tuple[Tensor, Tensor]:
        """Born radii B (n, B) and d(ln B)/dI."""
        alpha, beta, gamma = self.polynomial
        psi = integral * self.atom_rho
        saturation = (psi * gamma).sub_(beta).mul_(psi).add_(alpha).mul_(psi).tanh_()
        born = torch.addcmul(self.inverse_rho, saturation, self.inverse_radius, value=-1.0).reciprocal_()
        inner = (psi * (3.0 * gamma)).sub_(2.0 * beta).mul_(psi).add_(alpha)
        outer = 1.0 - saturation * saturation
        return born, inner.mul_(outer).mul_(born).mul_(self.atom_rho).mul_(self.inverse_radius)

    def _polar(self, pairs: Pairs, born: Tensor, within: Tensor | None, slope: Tensor | None) -> tuple[Tensor, Tensor]:
        """Pair energies (B,) and -8 dE/d(ln B) (n, B); adds dE/dr / r at fixed Born radii to `slope`.

        Without `slope` the second result is not computed, and zero.
        """
        doubled = born * 2.0
        first, second = self.ends[: self.num_pairs], self.ends[self.num_pairs :]
        area = doubled.index_select(0, first).mul_(doubled.index_select(0, second))  # 4 B_i B_j
        exponent = pairs.squared / area
        decay = exponent.neg().exp_()
        area.mul_(decay)
        inverse_f = torch.add(pairs.squared, area, alpha=0.25).rsqrt_()
        energy = inverse_f * self.pair_charge
        total = energy - self.pair_shift
        if within is not None:
            total.masked_fill_(~within, 0.0)
        born_pull = torch.zeros_like(born)
        if slope is not None:
            pull = energy.mul_(inverse_f).mul_(inverse_f)  # -f^-1 dE/df
            if within is not None:
                pull.masked_fill_(~within, 0.0)
            slope.sub_(pull).addcmul_(pull, decay, value=0.25)
            area.mul_(pull)
            area.addcmul_(area, exponent)
            born_pull.index_add_(0, first, area).index_add_(0, second, area)
        return total.sum(0), born_pull
