"""Lennard-Jones and Coulomb interactions with exceptions, cutoff and reaction field."""

import numpy as np
import openmm
import torch
from torch import Tensor

from molecular.energy.pairs import Pair, PairList, Pairs, PairTerm, ordered
from molecular.energy.sums import total
from molecular.energy.units import COULOMB, ELEMENTARY_CHARGE, KILOJOULE, NANOMETRE, plain
from molecular.energy.unsupported import UnsupportedForce


class Nonbonded(PairTerm):
    """`NonbondedForce` without periodicity: E = 4 eps ((sigma/r)^12 - (sigma/r)^6) + q_i q_j / (4 pi eps0 r).

    With a cutoff, Coulomb becomes q_i q_j / (4 pi eps0) (1/r + krf r^2 - crf) and pairs beyond it are dropped;
    exceptions (1-4 pairs) keep the plain form at every distance, as in OpenMM. The pair list must start with
    the excluded pairs, then the exceptions, then all others.
    """

    charge: Tensor
    repulsion: Tensor
    dispersion: Tensor
    shift: Tensor

    def __init__(self, force: openmm.NonbondedForce, pair_list: PairList) -> None:
        super().__init__()
        excluded, exceptions = self.special_pairs(force)
        self.start, self.regular = len(excluded), len(exceptions)
        method = force.getNonbondedMethod()
        if (
            force.getNumGlobalParameters()
            or force.getNumParticleParameterOffsets()
            or force.getNumExceptionParameterOffsets()
        ):
            raise UnsupportedForce(
                "NonbondedForce has parameter offsets; compile_system supports fixed parameters only."
            )
        if not force.getIncludeDirectSpace():
            raise UnsupportedForce("NonbondedForce leaves its direct space out; compile_system computes all of it.")
        self.cutoff = None if method == openmm.NonbondedForce.NoCutoff else plain(force.getCutoffDistance(), NANOMETRE)
        self.switch = None
        if self.cutoff is not None and force.getUseSwitchingFunction():
            self.switch = plain(force.getSwitchingDistance(), NANOMETRE)

        particles = [force.getParticleParameters(index) for index in range(force.getNumParticles())]
        q = np.array([plain(charge, ELEMENTARY_CHARGE) for charge, _, _ in particles])
        sigma = np.array([plain(value, NANOMETRE) for _, value, _ in particles])
        epsilon = np.array([plain(value, KILOJOULE) for _, _, value in particles])
        pairs = np.array(list(pair_list.row)[self.start :], dtype=np.int64).reshape(-1, 2)
        i, j = pairs[:, 0], pairs[:, 1]
        charge = q[i] * q[j]
        sigma = 0.5 * (sigma[i] + sigma[j])
        epsilon = np.sqrt(epsilon[i] * epsilon[j])
        special = np.array([exceptions[pair] for pair in list(pair_list.row)[self.start :][: self.regular]]).reshape(
            -1, 3
        )
        charge[: self.regular], sigma[: self.regular], epsilon[: self.regular] = special.T
        self.add_table("charge", COULOMB * charge[:, None])
        self.add_table("repulsion", (4.0 * epsilon * sigma**12)[:, None])
        self.add_table("dispersion", (4.0 * epsilon * sigma**6)[:, None])
        # Reaction field (Tironi et al. 1995): constants of OpenMM's CutoffNonPeriodic.
        self.field = 0.0
        field_shift = 0.0
        if self.cutoff is not None:
            dielectric = force.getReactionFieldDielectric()
            self.field = (dielectric - 1.0) / (2.0 * dielectric + 1.0) / self.cutoff**3
            field_shift = 3.0 * dielectric / (2.0 * dielectric + 1.0) / self.cutoff
        self.add_table("shift", COULOMB * charge[self.regular :, None] * field_shift)

    @staticmethod
    def special_pairs(
        force: openmm.NonbondedForce,
    ) -> tuple[list[Pair], dict[Pair, tuple[float, float, float]]]:
        """Pairs without any interaction, and exceptions (charge product, sigma, epsilon) of the others."""
        excluded: list[Pair] = []
        exceptions: dict[Pair, tuple[float, float, float]] = {}
        for index in range(force.getNumExceptions()):
            i, j, charge, sigma, epsilon = force.getExceptionParameters(index)
            values = (plain(charge, ELEMENTARY_CHARGE**2), plain(sigma, NANOMETRE), plain(epsilon, KILOJOULE))
            if values[0] == 0.0 and values[2] == 0.0:
                excluded.append(ordered(i, j))
            else:
                exceptions[ordered(i, j)] = values
        return excluded, exceptions

    def energy_and_slope(self, pairs: Pairs, slope: Tensor | None) -> Tensor:
        """Energies (B,); adds dE/dr / r to `slope` (P, B) unless it is None."""
        inverse, inverse_squared = pairs.inverse[self.start :], pairs.inverse_squared[self.start :]
        coulomb = inverse * self.charge
        sixth = (inverse_squared * inverse_squared).mul_(inverse_squared)
        steep = sixth * self.repulsion
        well = steep - self.dispersion
        if self.switch is None:
            energy = torch.addcmul(coulomb, well, sixth)
            pull = torch.addcmul(coulomb, steep.add_(well), sixth, value=6.0)  # -r dE/dr
        else:
            lennard_jones = well * sixth
            weight, change = self._switching(pairs.distance[self.start :])
            energy = torch.addcmul(coulomb, lennard_jones, weight)
            pull = torch.addcmul(coulomb, steep.add_(well).mul_(sixth), weight, value=6.0).addcmul_(
                lennard_jones, change
            )
        if self.cutoff is not None:
            self._reaction_field(pairs, energy, pull)
        if slope is not None:
            slope[self.start :].addcmul_(pull, inverse_squared, value=-1.0)
        return total(energy)

    def _reaction_field(self, pairs: Pairs, energy: Tensor, pull: Tensor) -> None:
        """Turns Coulomb into its reaction-field form and drops pairs beyond the cutoff, in place; not exceptions."""
        energy, pull = energy[self.regular :], pull[self.regular :]
        energy.sub_(self.shift)
        if self.field != 0.0:
            polarised = pairs.squared[self.start + self.regular :] * self.charge[self.regular :]
            energy.add_(polarised, alpha=self.field)
            pull.sub_(polarised, alpha=2.0 * self.field)
        within = pairs.within(self.cutoff)
        if within is not None:
            within = within[self.start + self.regular :]
            energy.masked_fill_(~within, 0.0)
            pull.masked_fill_(~within, 0.0)

    def _switching(self, distance: Tensor) -> tuple[Tensor, Tensor]:
        """OpenMM's quintic switching function S(r) and -r dS/dr; exceptions are not switched."""
        assert self.cutoff is not None and self.switch is not None
        width = self.cutoff - self.switch
        t = ((distance - self.switch) / width).clamp_(0.0, 1.0)
        t[: self.regular] = 0.0
        weight = 1.0 - t**3 * (10.0 - t * (15.0 - 6.0 * t))
        return weight, distance * (t * (1.0 - t)) ** 2 * (30.0 / width)
