"""Everything that the metrics need to know about an ensemble, computed once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from molecular.analysis.divergence import angle_bins
from molecular.analysis.ensembles import WeightedConformations
from molecular.analysis.shares import independent_families
from molecular.analysis.tica import TICA, fit_tica, kmeans, nearest, torsion_features
from molecular.analysis.validity import intact_bonds, right_chirality
from molecular.molecule.geometry import dihedrals
from molecular.molecule.molecule import Molecule
from molecular.molecule.torsions import backbone_torsions, heavy_torsions, periods, ramachandran_torsions

_BATCH = 1024
_KMEANS_POINTS = 20_000


@dataclass(frozen=True)
class Descriptors:
    """What the metrics need to know of an ensemble of N conformations, computed once.

    Args:
        positions: (N, n, 3), nm.
        weights: (N,) float64.
        counts: (N,) float64, how often each conformation occurs: once in the data, 0, 1, 2 ... in a bootstrap resample.
        groups: (N,) of `independent_families`; None where all are independent.
        energy: (N,) float64, kT; +inf where it is not finite.
        torsions: (N, k) rad, every phi, then every psi.
        phi_psi: (N, r, 2) rad, of each residue with both.
        ramachandran: (N, r), cells of `phi_psi`.
        chirality: (N,) float64, 1 where every stereocentre has the right hand.
        bonds: (N,) float64, 1 where distances give the molecule's bonds.
        tica: (N, 2); (N, 0) where the reference has no trajectories.
        clusters: (N,), numbers of k-means clusters; zeros where the reference has no trajectories.
        num_clusters: how many there are.
        num_samples: of the ensemble, rejected ones included: not finite, or of a log-weight of -inf.
        num_rejected: how many of these.
    """

    positions: Tensor
    weights: Tensor
    counts: Tensor
    groups: Tensor | None
    energy: Tensor
    torsions: Tensor
    phi_psi: Tensor
    ramachandran: Tensor
    chirality: Tensor
    bonds: Tensor
    tica: Tensor
    clusters: Tensor
    num_clusters: int
    num_samples: int
    num_rejected: int

    @property
    def mass(self) -> Tensor:
        """Share (N,) of each conformation in the ensemble; sums to one."""
        mass = self.counts * self.weights
        return mass / mass.sum()

    @property
    def num_independent(self) -> int:
        """Conformations, or groups of them, that are independent; a few say nothing of their own spread."""
        return len(self.counts) if self.groups is None else len(self.groups.unique())

    def resampled(self, generator: torch.Generator) -> Descriptors:
        """One bootstrap resample of conformations, or of their groups, drawn with replacement; weights go with them.

        Of groups it draws one less than there are, so that the spread of few is not too small (Rao & Wu, J. Am. Stat.
        Assoc. 83 (1988) 231).
        """
        if self.groups is None:
            drawn = torch.randint(len(self.counts), (len(self.counts),), generator=generator)
            return self._recounted(torch.bincount(drawn, minlength=len(self.counts)))
        names, member = self.groups.unique(return_inverse=True)
        drawn = torch.randint(len(names), (len(names) - 1,), generator=generator)
        return self._recounted(torch.bincount(drawn, minlength=len(names))[member])

    def _recounted(self, counts: Tensor) -> Descriptors:
        # A draw of nothing but zero weights has no distribution; the data themselves stand in for it.
        return replace(self, counts=counts.double()) if (counts * self.weights).sum() > 0 else self


class Describe:
    """Computes the `Descriptors` of ensembles, always in the same way.

    Args:
        molecule: what they are of.
        energy: positions (B, n, 3) -> reduced energies (B,), kT.
        reference: whose slow coordinates and clusters are taken, where it has trajectories.
        tica_lag: lag time of TICA, in frames of the reference.
        num_clusters: of k-means.
        seed: of the clusters.
    """

    def __init__(
        self,
        molecule: Molecule,
        energy: Callable[[Tensor], Tensor],
        reference: WeightedConformations,
        tica_lag: int,
        num_clusters: int,
        seed: int,
    ) -> None:
        self.molecule = molecule
        self.energy = energy
        self.backbone = backbone_torsions(molecule.topology)
        self.pairs = ramachandran_torsions(molecule.topology)
        self.heavy = heavy_torsions(molecule.topology)
        self.periods = periods(molecule.topology, self.heavy)
        self.tica: TICA | None = None
        self.centres = torch.zeros(0, 2, dtype=torch.float64)
        trajectories = reference.trajectories()
        if trajectories is None or not len(self.heavy):
            return
        features = self._features(reference.positions)
        self.tica = fit_tica([features[index] for index in trajectories], tica_lag)
        coordinates = self.tica(features)
        step = -(-len(coordinates) // _KMEANS_POINTS)
        self.centres = kmeans(coordinates[::step], num_clusters, torch.Generator().manual_seed(seed))

    def _features(self, positions: Tensor) -> Tensor:
        # Times the period, so that it is all one which of two equivalent atoms a torsion names.
        return torsion_features(_angles(positions, self.heavy) * self.periods)

    @torch.no_grad()
    def __call__(self, ensemble: WeightedConformations) -> Descriptors:
        used = ensemble.usable()
        positions = used.positions.float()
        energy = torch.cat([self.energy(part).cpu().double() for part in positions.split(_BATCH)])
        pairs = _angles(positions, self.pairs.reshape(-1, 4)).reshape(len(positions), -1, 2)
        tica = torch.zeros(len(used), 0, dtype=torch.float64)
        if self.tica is not None:
            tica = self.tica(self._features(positions))
        return Descriptors(
            positions=positions,
            weights=used.weights(),
            counts=torch.ones(len(used), dtype=torch.float64),
            groups=independent_families(used, list(_angles(positions, self.heavy).T * self.periods[:, None])),
            energy=energy.where(torch.isfinite(energy), torch.inf),
            torsions=_angles(positions, self.backbone),
            phi_psi=pairs,
            ramachandran=angle_bins(pairs),
            chirality=right_chirality(positions, self.molecule).double(),
            bonds=intact_bonds(positions, self.molecule.topology).double(),
            tica=tica,
            clusters=torch.zeros(len(used), dtype=torch.int64) if self.tica is None else nearest(tica, self.centres),
            num_clusters=len(self.centres),
            num_samples=len(ensemble),
            num_rejected=len(ensemble) - used.num_weighted(),
        )


def _angles(positions: Tensor, quadruples: Tensor) -> Tensor:
    return torch.cat([dihedrals(part.double(), quadruples) for part in positions.split(_BATCH)])
