"""Time-lagged independent components of a reference simulation, and clusters in their plane."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Directions whose variance is below this share of the largest carry rounding, not dynamics.
_RANK_TOLERANCE = 1e-8
# So does everything where no feature moves by more than this share of its size.
_STILL = 1e-12


@dataclass(frozen=True)
class TICA:
    """A linear projection of features onto slow coordinates (time-lagged independent component analysis).

    Args:
        mean: (k,) float64, of the features.
        components: (k, dim) float64.
        eigenvalues: (dim,) float64, each coordinate's autocorrelation at the lag time.
    """

    mean: Tensor
    components: Tensor
    eigenvalues: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """Features (N, k) to coordinates (N, dim)."""
        return (features.double() - self.mean) @ self.components


def fit_tica(trajectories: Sequence[Tensor], lag: int, dim: int = 2) -> TICA:
    """Fit TICA to trajectories of features: time-reversible estimator, kinetic-map scaling.

        C_tau v = lambda C_0 v,   C_0 = sum_t (x_t x_t' + x_(t+lag) x_(t+lag)') / 2,
        C_tau = sum_t (x_t x_(t+lag)' + x_(t+lag) x_t') / 2

    Coordinates have unit variance times their eigenvalue, so that distances weigh slow motions more (Noé &
    Clementi, J. Chem. Theory Comput. 11, 5002, 2015). Signs are fixed by the largest component.

    Args:
        trajectories: each (T_i, k).
        lag: frames.
        dim: how many coordinates.

    Raises:
        ValueError: a lag below one frame, no trajectory longer than the lag, or features that do not move.
    """
    if lag < 1:
        raise ValueError(f"fit_tica: the lag is {lag} frames; give 1 or more.")
    long_enough = [trajectory.double() for trajectory in trajectories if len(trajectory) > lag]
    if not long_enough:
        longest = max((len(trajectory) for trajectory in trajectories), default=0)
        raise ValueError(
            f"fit_tica: the lag is {lag} frames and the longest trajectory {longest}; choose a smaller lag."
        )
    now = torch.cat([trajectory[:-lag] for trajectory in long_enough])
    later = torch.cat([trajectory[lag:] for trajectory in long_enough])
    mean = 0.5 * (now.mean(dim=0) + later.mean(dim=0))
    now, later = now - mean, later - mean
    covariance = (now.T @ now + later.T @ later) / (2 * len(now))
    lagged = (now.T @ later + later.T @ now) / (2 * len(now))
    variances, axes = torch.linalg.eigh(covariance)
    kept = variances > _RANK_TOLERANCE * variances[-1]
    if not variances[-1] > _STILL**2 * (mean.square().sum() + variances[-1]):
        raise ValueError("fit_tica: the features do not move; there is nothing to project on.")
    whiten = axes[:, kept] / variances[kept].sqrt()
    eigenvalues, rotation = torch.linalg.eigh(whiten.T @ lagged @ whiten)
    eigenvalues, rotation = eigenvalues.flip(0)[:dim], rotation.flip(1)[:, :dim]
    components = whiten @ rotation * eigenvalues
    largest = components.gather(0, components.abs().argmax(dim=0, keepdim=True))
    return TICA(mean, components * torch.where(largest < 0, -1.0, 1.0), eigenvalues)


def torsion_features(angles: Tensor) -> Tensor:
    """Cosines and sines (N, 2k) of angles (N, k): what moves without jumps."""
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def kmeans(points: Tensor, num_clusters: int, generator: torch.Generator, num_iterations: int = 100) -> Tensor:
    """Centres (num_clusters, d) float64 of k-means clusters: k-means++ starts, then Lloyd's iteration.

    Args:
        points: (N, d).
        num_clusters: how many.
        generator: of the starts.
        num_iterations: at most so many; fewer where no centre moves any more.

    Raises:
        ValueError: fewer points than clusters.
    """
    if not 1 <= num_clusters <= len(points):
        raise ValueError(f"kmeans: {num_clusters} clusters of {len(points)} points; ask for 1 to {len(points)}.")
    points = points.double()
    centres = points[torch.randint(len(points), (1,), generator=generator)]
    squared = (points - centres).square().sum(dim=1)
    for _ in range(num_clusters - 1):
        # Where all remaining points coincide with centres any choice is as good.
        chance = squared if squared.sum() > 0 else torch.ones_like(squared)
        new = points[torch.multinomial(chance, 1, generator=generator)]
        centres = torch.cat([centres, new])
        squared = torch.minimum(squared, (points - new).square().sum(dim=1))
    for _ in range(num_iterations):
        assignment = nearest(points, centres)
        counts = torch.bincount(assignment, minlength=num_clusters)
        sums = torch.zeros_like(centres).index_add_(0, assignment, points)
        moved = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], centres)
        if torch.equal(moved, centres):
            break
        centres = moved
    return centres


def nearest(points: Tensor, centres: Tensor) -> Tensor:
    """Index (N,) of the nearest centre."""
    return torch.cat([torch.cdist(part.double(), centres).argmin(dim=1) for part in points.split(65536)])
