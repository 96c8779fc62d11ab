"""Distances of two sets of features, as a network gives them of pictures: Fréchet, kernel, precision and recall."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from nflib.errors import is_whole
from nflib.metrics.samples import as_pair

# Rows of a distance or kernel matrix held at once: about 64 MB for 10,000 columns.
_CHUNK = 800


class PrecisionRecall(NamedTuple):
    """Precision and recall of generated samples, each from 0 to 1; see `precision_recall`.

    Attributes:
        precision: share of the generated samples that lie among the real ones.
        recall: share of the real samples that lie among the generated ones.
    """

    precision: float
    recall: float


@torch.no_grad()
def frechet_distance(x: Tensor, y: Tensor) -> float:
    """The Fréchet distance of the Gaussians that have the means and covariances of two sets of features.

    ``|m_x - m_y|² + tr(C_x + C_y - 2 (C_x C_y)^(1/2))``, the squared 2-Wasserstein distance of these Gaussians (Dowson
    and Landau 1982); on the features of an Inception network it is the FID (Heusel et al. 2017). The trace of the root
    is the sum of the singular values of ``A_xᵀ A_y`` with ``C = A Aᵀ``: no matrix root is taken, and singular
    covariances, of fewer samples than features, are as good as others. The distance of finite samples is too large on
    average, the more so the fewer they are: compare sets of one size.

    Args:
        x: features, ``(n, d)``, of two or more samples.
        y: features, ``(m, d)``, likewise.

    Raises:
        ValueError: another shape, a sample that is not finite, or a single one.

    >>> import torch
    >>> x = torch.randn(1000, 8, generator=torch.Generator().manual_seed(0))
    >>> round(frechet_distance(x, x + 1), 6)
    8.0
    """
    x, y = as_pair("frechet_distance", x, y)
    for name, points in (("x", x), ("y", y)):
        if len(points) < 2:
            raise ValueError(f"frechet_distance: {name} is a single sample, which has no covariance; give two or more.")
    means, roots = [points.mean(0) for points in (x, y)], [_covariance_root(points) for points in (x, y)]
    cross = torch.linalg.svdvals(roots[0] @ roots[1].mT).sum()
    spread = roots[0].square().sum() + roots[1].square().sum() - 2 * cross
    # Rounding may leave a little less than nothing.
    return float(((means[0] - means[1]).square().sum() + spread).clamp_min(0.0))


def _covariance_root(points: Tensor) -> Tensor:
    """A matrix R ``(at most d, d)`` with ``Rᵀ R`` the covariance of points ``(n, d)``."""
    centred = (points - points.mean(0)) / (len(points) - 1) ** 0.5
    return torch.linalg.qr(centred, mode="r").R if len(points) > points.shape[1] else centred


@torch.no_grad()
def kernel_distance(x: Tensor, y: Tensor, *, paired: bool = False) -> float:
    """The squared maximum mean discrepancy of two sets of features under the kernel ``(x·y / d + 1)³``, unbiased.

    On the features of an Inception network it is the KID (Bińkowski et al. 2018). Its mean over draws of the samples
    does not depend on how many there are, and so it may be negative where the sets are alike.

    Args:
        x: features, ``(n, d)``, of two or more samples.
        y: features, ``(m, d)``, likewise.
        paired: each row of y was made of the row of x at its place, as reconstructions are: a row and what was made of
            it are not compared, since they are not independent.

    Raises:
        ValueError: another shape, a sample that is not finite, a single one, or pairs of sets of different sizes.

    >>> import torch
    >>> x = torch.randn(500, 4, generator=torch.Generator().manual_seed(0))
    >>> kernel_distance(x, x + 1) > kernel_distance(x, x + 0.5) > 0
    True
    """
    x, y = as_pair("kernel_distance", x, y)
    if min(len(x), len(y)) < 2:
        raise ValueError("kernel_distance: x or y is a single sample; give two or more of each.")
    within = sum((_kernel_sum(one, one) - _kernel(one, one).sum()) / (len(one) * (len(one) - 1)) for one in (x, y))
    if not paired:
        return float(within - 2 * _kernel_sum(x, y) / (len(x) * len(y)))
    if len(x) != len(y):
        raise ValueError(f"kernel_distance: {len(x)} and {len(y)} samples are no pairs; leave paired out.")
    return float(within - 2 * (_kernel_sum(x, y) - _kernel(x, y).sum()) / (len(x) * (len(x) - 1)))


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    """Of one row with another."""
    return ((x * y).sum(-1) / x.shape[-1] + 1) ** 3


def _kernel_sum(x: Tensor, y: Tensor) -> Tensor:
    """Over all pairs."""
    sums = [((rows @ y.mT) / x.shape[1] + 1).pow(3).sum() for rows in x.split(_CHUNK)]
    return torch.stack(sums).sum()


@torch.no_grad()
def precision_recall(real: Tensor, generated: Tensor, neighbours: int = 3) -> PrecisionRecall:
    """Precision and recall of generated samples by nearest neighbours (Kynkäänniemi et al. 2019, arXiv:1904.06991).

    They are the share of generated samples that lie among the real ones, and that of real ones among the generated. A
    sample lies among others where it is no farther from one of them than that one's k-th nearest neighbour in its own
    set. Precision falls with samples that look wrong, recall where some kinds are never drawn.

    Args:
        real: features of real samples, ``(n, d)``, more than `neighbours`.
        generated: features of generated samples, ``(m, d)``, likewise.
        neighbours: k.

    Raises:
        ValueError: another shape, a sample that is not finite, or too few for so many neighbours.

    >>> import torch
    >>> real = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    >>> precision_recall(real, real[:100] * 0.1).recall < 0.5
    True
    """
    real, generated = as_pair("precision_recall", real, generated)
    if not is_whole(neighbours, 1) or neighbours >= min(len(real), len(generated)):
        raise ValueError(
            f"precision_recall: neighbours is {neighbours}; give an integer of 1 or more, and more "
            "samples than that in each set."
        )
    offset = real.median(dim=0).values  # which would cost the distances their precision
    real, generated = real - offset, generated - offset
    return PrecisionRecall(_share_among(generated, real, neighbours), _share_among(real, generated, neighbours))


def _share_among(points: Tensor, others: Tensor, neighbours: int) -> float:
    """The share of points within the k-th neighbour's distance of one of the others."""
    radii = torch.cat([torch.cdist(rows, others).kthvalue(neighbours + 1).values for rows in others.split(_CHUNK)])
    inside = [(torch.cdist(rows, others) <= radii).any(1) for rows in points.split(_CHUNK)]
    return float(torch.cat(inside).double().mean())
