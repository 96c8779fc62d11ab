"""The parameters of a generalized Born model."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class NeckParameters:
    """The neck correction of GBn (Mongan et al. 2007): scale height_ij / (1 + 100 d^2 + 3e5 d^6), d = r - distance_ij.

    It is added to the descreening integral of atom i by atom j where r <= radius_i + radius_j + window.
    `height` (1/nm) and `distance` (nm) are (n, n), the descreened atom first.
    """

    scale: float
    window: float
    height: np.ndarray
    distance: np.ndarray


@dataclass(frozen=True)
class BornParameters:
    """What a model is made of, whichever OpenMM force it was read from (nm, kJ/mol, elementary charges).

    `solute` and `solvent` are 1 / (4 pi eps0 eps) of the two media, `kappa` is the inverse Debye length, `shift` is
    subtracted from 1/f of each pair, `surface` is 4 pi times the surface tension. `polynomial` (3, n) holds alpha,
    beta, gamma of each atom; None stands for the radii of Hawkins, Cramer & Truhlar. `swallowed` says whether an atom
    wholly inside another one has its extra descreening (`GBSAOBCForce` has it, the `CustomGBForce` models have not).
    """

    charge: np.ndarray
    radius: np.ndarray
    offset_radius: np.ndarray
    scaled_radius: np.ndarray
    polynomial: np.ndarray | None
    neck: NeckParameters | None
    solute: float
    solvent: float
    kappa: float
    surface: float
    cutoff: float | None
    shift: float
    swallowed: bool
