"""Correction maps (CMAP): a bicubic surface over two dihedral angles."""

import math

import numpy as np
import openmm
import torch
from scipy.interpolate import CubicSpline
from torch import Tensor

from molecular.energy.dihedrals import AtomTerm, Dihedrals
from molecular.energy.sums import total
from molecular.energy.units import KILOJOULE

# Bicubic interpolation of a unit cell: powers of (s, t) from values and derivatives at its corners are H F H^T.
_HERMITE = np.array([[1, 0, 0, 0], [0, 0, 1, 0], [-3, 3, -2, -1], [2, -2, 1, 1]], dtype=np.float64)


class CorrectionMaps(AtomTerm):
    """`CMAPTorsionForce`: E = map(phi, psi), bicubic between grid points, its derivatives those of periodic splines.

    MacKerell, Feig & Brooks (2004). The maps of all sizes are one table of cells, 16 coefficients each.
    """

    coefficients: Tensor
    size: Tensor
    start: Tensor

    def __init__(self, force: openmm.CMAPTorsionForce) -> None:
        super().__init__()
        maps = [_cells(*force.getMapParameters(index)) for index in range(force.getNumMaps())]
        sizes = np.array([len(cells) for cells in maps], dtype=np.int64)
        starts = np.concatenate(([0], np.cumsum(sizes**2)))
        torsions = [force.getTorsionParameters(index) for index in range(force.getNumTorsions())]
        used = np.array([torsion[0] for torsion in torsions], dtype=np.int64)
        self.count = len(torsions)
        cells = [table.reshape(-1, 16) for table in maps]
        # (power of t, power of s, cell)
        self.add_table("coefficients", np.concatenate([np.zeros((0, 16)), *cells]).T.reshape(4, 4, -1))
        self.add_index("size", sizes[used])
        self.add_index("start", starts[used])
        # All first angles, then all second ones.
        self.dihedrals = Dihedrals([torsion[1:5] for torsion in torsions] + [torsion[5:9] for torsion in torsions])

    def energy_and_force(self, x: Tensor, force: Tensor | None) -> Tensor:
        """Energies (B,) for coordinates x (3n, B); adds the forces to `force` (3, n, B) unless it is None."""
        frame = self.dihedrals.measure(x, with_sine=True)
        assert frame.sine_length is not None
        length = frame.middle_squared.sqrt()
        angle = torch.atan2(frame.sine_length, frame.cosine * length).view(2, self.count, x.shape[1])
        size = self.size[:, None]
        cells_per_radian = size.to(x.dtype) / (2.0 * math.pi)
        place = angle * cells_per_radian
        corner = place.floor()
        s, t = (place - corner).unbind()
        # An undefined angle has its energy undefined by s, t; the cell must only exist.
        i, j = corner.nan_to_num(0.0).long().remainder(size).unbind()
        rows = self.coefficients.index_select(2, (self.start[:, None] + i * size + j).flatten())
        powers = rows.view(4, 4, *s.shape)
        along_s = _cubic(powers.unbind(1), s)
        energy = _cubic(along_s.unbind(), t)
        if force is not None:
            slope_s = _cubic(_cubic_slope(powers.unbind(1), s).unbind(), t)
            slope_t = _cubic_slope(along_s.unbind(), t)
            slope = torch.stack((slope_s, slope_t)) * cells_per_radian
            self.dihedrals.push(frame, -slope.flatten(0, 1) * length, force)
        return total(energy)


def _cubic(c: tuple[Tensor, ...], u: Tensor) -> Tensor:
    return c[0] + u * (c[1] + u * (c[2] + u * c[3]))


def _cubic_slope(c: tuple[Tensor, ...], u: Tensor) -> Tensor:
    return c[1] + u * (2.0 * c[2] + u * (3.0 * c[3]))


def _cells(size: int, energies: object) -> np.ndarray:
    """Coefficients (cell of phi, cell of psi, power of psi, power of phi) of a map, the grid spacing as unit."""
    quantity = energies.value_in_unit(KILOJOULE) if hasattr(energies, "value_in_unit") else energies
    value = np.array(quantity, dtype=np.float64).reshape(size, size).T  # phi runs fastest in OpenMM's list
    by_phi, by_psi = _derivative(value, 0), _derivative(value, 1)
    corners = np.empty((size, size, 4, 4))
    for row, (plain, slope) in enumerate(((value, by_psi), (by_phi, _derivative(by_phi, 1)))):
        for edge in range(2):
            there = np.roll(plain, -edge, 0), np.roll(slope, -edge, 0)
            for column, table in enumerate(there):
                corners[..., 2 * row + edge, 2 * column] = table
                corners[..., 2 * row + edge, 2 * column + 1] = np.roll(table, -1, 1)
    return np.einsum("ak,xykl,bl->xyba", _HERMITE, corners, _HERMITE)


def _derivative(values: np.ndarray, axis: int) -> np.ndarray:
    """Derivatives of the periodic cubic splines through `values` along an axis, at the grid points."""
    closed = np.concatenate((values, values.take([0], axis)), axis)
    spline = CubicSpline(np.arange(closed.shape[axis]), closed, axis=axis, bc_type="periodic")
    return spline.derivative()(np.arange(values.shape[axis]))
