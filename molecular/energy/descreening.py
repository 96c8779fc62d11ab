"""Pairwise descreening: how far each atom is from the solvent, and the Born radius that follows."""

import numpy as np
import torch
from torch import Tensor

from molecular.energy.born_parameters import BornParameters, NeckParameters
from molecular.energy.pairs import Pairs
from molecular.energy.sums import RowSum
from molecular.energy.tables import TableModule


class Descreening(TableModule):
    """The integrals I_i = sum_j I_ij of Hawkins, Cramer & Truhlar (1996), and the neck correction where a model has it.

    Descreening is directed: [0, p] is atom `first` of pair p among the volume of `second`, [1, p] the reverse.
    """

    rho: Tensor
    reach: Tensor
    reach_squared: Tensor
    receding: Tensor
    receding_rho: Tensor
    receding_reach: Tensor

    def __init__(self, parameters: BornParameters, first: np.ndarray, second: np.ndarray) -> None:
        super().__init__()
        self.num_atoms, self.swallowed = len(parameters.charge), parameters.swallowed
        descreened, descreening = np.concatenate((first, second)), np.concatenate((second, first))
        rho, reach = parameters.offset_radius[descreened], parameters.scaled_radius[descreening]
        self.add_table("rho", rho.reshape(2, -1, 1))
        self.add_table("reach", reach.reshape(2, -1, 1))
        self.add_table("reach_squared", (reach**2).reshape(2, -1, 1))
        # Atoms nearer to each other than this may lie inside one another.
        self.nearest = float(np.max(reach - rho, initial=0.0))
        receding = np.flatnonzero(reach < 0.0)
        self.add_index("receding", receding)
        self.add_table("receding_rho", rho[receding, None])
        self.add_table("receding_reach", reach[receding, None])
        self.atoms = RowSum([descreened])
        self.neck = (
            None if parameters.neck is None else Neck(parameters.neck, parameters.radius, descreened, descreening)
        )

    def forward(self, pairs: Pairs, within: Tensor | None) -> tuple[Tensor, Tensor]:
        """Integrals I (n, B) and, for each directed pair, -8 r dI/dr (2, P, B).

        For L = max(rho, |r - s|), U = r + s the integral of a pair is half of
        1/L - 1/U + (r - s^2/r)/4 (1/U^2 - 1/L^2) + ln(L/U)/(2r); it is stationary in U, and in L = r - s.
        Atoms that do not reach beyond rho have L = U, hence the clamp on U.
        """
        r, inverse = pairs.distance, pairs.inverse
        upper, lower = r + self.reach, (r - self.reach).abs_()
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
        if self.nearest > 0.0 and (pairs.closest is None or not pairs.closest >= self.nearest):
            self._bury(r, integral, integral_slope)
        if len(self.receding):
            self._recede(r, integral, integral_slope)
        if self.neck is not None:
            self.neck.add(r, integral, integral_slope)
        if within is not None:
            integral.masked_fill_(~within, 0.0)
            integral_slope.masked_fill_(~within, 0.0)
        total = torch.zeros(self.num_atoms, r.shape[1], dtype=r.dtype, device=r.device)
        self.atoms.add(total, integral.flatten(0, 1))
        return total.mul_(0.125), integral_slope

    def _bury(self, r: Tensor, integral: Tensor, integral_slope: Tensor) -> None:
        """Corrects directed pairs in which the descreened atom lies wholly inside the other one (r < s - rho).

        There L = s - r, in which the pair integral is not stationary: `GBSAOBCForce` adds 1/rho - 1/L, which
        makes it so; without that addition the slope gains 1/L^2.
        """
        lower = self.reach - r
        inside = lower > self.rho
        if self.swallowed:
            integral.add_(torch.where(inside, 8.0 / self.rho - 8.0 / lower, 0.0))
        else:
            integral_slope.sub_(torch.where(inside, 8.0 * r / (lower * lower), 0.0))

    def _recede(self, r: Tensor, integral: Tensor, integral_slope: Tensor) -> None:
        """Drops directed pairs of negative reach (sulphur in GBn2) where r + s < rho: there L is not U."""
        apart = self.receding_rho - self.receding_reach
        pair = torch.remainder(self.receding, r.shape[0])
        dropped = r.index_select(0, pair) < apart
        for values in (integral.flatten(0, 1), integral_slope.flatten(0, 1)):
            kept = values.index_select(0, self.receding).masked_fill_(dropped, 0.0)
            values.index_copy_(0, self.receding, kept)


class Neck(TableModule):
    """The neck correction of `NeckParameters` for each directed pair."""

    height: Tensor
    centre: Tensor
    edge: Tensor

    def __init__(
        self, parameters: NeckParameters, radius: np.ndarray, descreened: np.ndarray, descreening: np.ndarray
    ) -> None:
        super().__init__()
        rows = descreened, descreening
        self.add_table("height", (8.0 * parameters.scale * parameters.height[rows]).reshape(2, -1, 1))
        self.add_table("centre", parameters.distance[rows].reshape(2, -1, 1))
        edge = radius[descreened] + radius[descreening] + parameters.window
        self.add_table("edge", edge.reshape(2, -1, 1))

    def add(self, r: Tensor, integral: Tensor, integral_slope: Tensor) -> None:
        """Adds the correction to the integrals, and its slope, both in `Descreening`'s scale."""
        distance = r - self.centre
        square = distance * distance
        fourth = square * square
        inverse = (fourth * square).mul_(3.0e5).add_(square, alpha=100.0).add_(1.0).reciprocal_()
        depth = inverse * self.height
        depth.masked_fill_(r > self.edge, 0.0)
        integral.add_(depth)
        steepness = fourth.mul_(1.8e6).add_(200.0).mul_(distance)
        integral_slope.add_(steepness.mul_(inverse).mul_(depth).mul_(r))


class OnufrievRadii(TableModule):
    """1/B = 1/rho - tanh(alpha psi - beta psi^2 + gamma psi^3)/R with psi = rho I (Onufriev, Bashford & Case 2004)."""

    alpha: Tensor
    beta: Tensor
    gamma: Tensor
    rho: Tensor
    inverse_rho: Tensor
    inverse_radius: Tensor

    def __init__(self, polynomial: np.ndarray, radius: np.ndarray, offset_radius: np.ndarray) -> None:
        super().__init__()
        for name, values in zip(("alpha", "beta", "gamma"), polynomial, strict=True):
            self.add_table(name, values[:, None])
        self.add_table("rho", offset_radius[:, None])
        self.add_table("inverse_rho", 1.0 / offset_radius[:, None])
        self.add_table("inverse_radius", 1.0 / radius[:, None])

    def forward(self, integral: Tensor) -> tuple[Tensor, Tensor]:
        """Born radii B (n, B) and d(ln B)/dI."""
        psi = integral * self.rho
        saturation = (psi * self.gamma).sub_(self.beta).mul_(psi).add_(self.alpha).mul_(psi).tanh_()
        born = torch.addcmul(self.inverse_rho, saturation, self.inverse_radius, value=-1.0).reciprocal_()
        inner = (psi * self.gamma).mul_(3.0).sub_(self.beta, alpha=2.0).mul_(psi).add_(self.alpha)
        outer = 1.0 - saturation * saturation
        return born, inner.mul_(outer).mul_(born).mul_(self.rho).mul_(self.inverse_radius)


class HawkinsRadii(TableModule):
    """1/B = 1/rho - I (Hawkins, Cramer & Truhlar 1996)."""

    inverse_rho: Tensor

    def __init__(self, offset_radius: np.ndarray) -> None:
        super().__init__()
        self.add_table("inverse_rho", 1.0 / offset_radius[:, None])

    def forward(self, integral: Tensor) -> tuple[Tensor, Tensor]:
        """Born radii B (n, B) and d(ln B)/dI."""
        born = (self.inverse_rho - integral).reciprocal_()
        return born, born.clone()
