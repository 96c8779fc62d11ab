"""Distances of features against closed forms of Gaussians, other formulas, and brute force."""

import math
from functools import partial

import numpy as np
import pytest
import scipy.linalg
import torch

from nflib.metrics import frechet_distance, kernel_distance, precision_recall


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def with_moments(mean: torch.Tensor, covariance: torch.Tensor, number: int, seed: int) -> torch.Tensor:
    """Samples whose mean and unbiased covariance are these, exactly."""
    noise = torch.randn(number, len(mean), generator=generator(seed), dtype=torch.float64)
    noise = noise - noise.mean(0)
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(noise.T.cov()), noise.T, upper=False).T
    return mean + white @ torch.linalg.cholesky(covariance).T


def random_covariance(size: int, seed: int) -> torch.Tensor:
    root = torch.randn(size, 2 * size, generator=generator(seed), dtype=torch.float64)
    return root @ root.T / size


def test_frechet_distance_is_that_of_the_gaussians():
    """Commuting covariances: the sum over axes of differences of means and of standard deviations, squared."""
    axes = torch.linalg.qr(torch.randn(6, 6, generator=generator(1), dtype=torch.float64)).Q
    variances = torch.tensor([[0.1, 1, 2, 3, 4, 9], [4, 0.5, 2, 1, 1e-3, 16]], dtype=torch.float64)
    means = torch.randn(2, 6, generator=generator(2), dtype=torch.float64)
    x, y = (
        with_moments(mean, axes @ variance.diag() @ axes.T, 40 + 30 * seed, seed)
        for seed, (mean, variance) in enumerate(zip(means, variances, strict=True))
    )
    expected = (means[0] - means[1]).square().sum() + (variances[0].sqrt() - variances[1].sqrt()).square().sum()
    assert frechet_distance(x, y) == pytest.approx(float(expected), abs=1e-10)


def test_frechet_distance_of_covariances_that_do_not_commute():
    """Against the formula with a matrix root, as public codes have it."""
    covariances = [random_covariance(10, seed) for seed in (3, 4)]
    means = torch.randn(2, 10, generator=generator(5), dtype=torch.float64)
    x, y = (with_moments(mean, one, 60, seed) for seed, (mean, one) in enumerate(zip(means, covariances, strict=True)))
    root = scipy.linalg.sqrtm((covariances[0] @ covariances[1]).numpy())
    expected = (means[0] - means[1]).square().sum() + (covariances[0] + covariances[1]).trace()
    assert frechet_distance(x, y) == pytest.approx(float(expected) - 2 * float(np.trace(root).real), abs=1e-8)


def test_frechet_distance_of_fewer_samples_than_features():
    """Two sets in different planes of 50 dimensions: nothing overlaps, and the traces alone remain."""
    x, y = torch.zeros(5, 50), torch.zeros(7, 50)
    x[:, :2], y[:, 2:4] = torch.randn(5, 2, generator=generator()), torch.randn(7, 2, generator=generator())
    expected = x.double().var(0).sum() + y.double().var(0).sum() + (x.double().mean(0) - y.double().mean(0)).norm() ** 2
    assert frechet_distance(x, y) == pytest.approx(float(expected), abs=1e-10)
    assert frechet_distance(x, x) == pytest.approx(0.0, abs=1e-10)


def test_kernel_distance_of_gaussians():
    """Points that have the moments of normal distributions up to the third order, which is all the kernel sees.

    E[(x·y/d + 1)³] = 1 + 3 E[s] + 3 E[s²] + E[s³] with s = x·y/d; of x, y ~ N(m, I) and N(n, I): E[s] = m·n/d,
    E[s²] d² = d + m² + n² + (m·n)², E[s³] d³ = (m·n)³ + 3 (m·n)(m² + n² + d) + 6 m·n. The estimate leaves pairs of a
    point with itself out; these are put back here.
    """
    d = 4
    points = torch.cat([torch.eye(d), -torch.eye(d)]).double() * math.sqrt(d)
    means = torch.tensor([[0.3, -0.2, 0.5, 0.1], [-0.4, 0.6, 0.2, 0.9]], dtype=torch.float64)
    x, y = (points + mean for mean in means)

    def expected(m: torch.Tensor, n: torch.Tensor) -> float:
        dot, squares = float(m @ n), float(m @ m + n @ n)
        return 1 + 3 * dot / d + 3 * (d + squares + dot**2) / d**2 + (dot**3 + 3 * dot * (squares + d) + 6 * dot) / d**3

    def unbiased(mean: torch.Tensor, own: torch.Tensor) -> float:
        diagonal = float((own.square().sum(1) / d + 1).pow(3).sum())
        return (len(own) ** 2 * expected(mean, mean) - diagonal) / (len(own) * (len(own) - 1))

    value = unbiased(means[0], x) + unbiased(means[1], y) - 2 * expected(*means)
    assert kernel_distance(x, y) == pytest.approx(value, abs=1e-12)


def test_kernel_distance_is_unbiased():
    """Its mean over many small sets of one distribution is zero."""
    draws = torch.randn(2000, 2, 5, 3, generator=generator(), dtype=torch.float64)
    values = torch.tensor([kernel_distance(x, y) for x, y in draws])
    assert abs(float(values.mean())) < 4 * float(values.std()) / math.sqrt(len(values))


def test_kernel_distance_of_pairs_is_unbiased():
    """Where each row comes back as it was, it is zero, and where noise is added, the distance of independent sets."""
    x = torch.randn(30, 4, generator=generator(), dtype=torch.float64)
    assert kernel_distance(x, x, paired=True) == pytest.approx(0.0, abs=1e-12)
    assert kernel_distance(x, x) < -0.1
    draws = torch.randn(2000, 2, 5, 3, generator=generator(), dtype=torch.float64)
    pairs = torch.tensor([kernel_distance(x, x + y, paired=True) for x, y in draws])
    apart = torch.tensor([kernel_distance(x, x.roll(1, 0) + y, paired=False) for x, y in draws])
    alone = torch.tensor(
        [kernel_distance(x, other + y) for (x, y), (other, _) in zip(draws, draws.roll(1, 0), strict=True)]
    )
    error = float((pairs.var() + alone.var()) ** 0.5) / math.sqrt(len(draws))
    assert abs(float(pairs.mean() - alone.mean())) < 4 * error < abs(float(apart.mean() - alone.mean()))
    with pytest.raises(ValueError, match="30 and 29 samples are no pairs"):
        kernel_distance(x, x[1:], paired=True)


@pytest.mark.parametrize("neighbours", [1, 3])
def test_precision_and_recall_by_brute_force(neighbours):
    real = torch.randn(60, 2, generator=generator(7), dtype=torch.float64)
    generated = 0.5 * torch.randn(40, 2, generator=generator(8), dtype=torch.float64) + 0.3

    def share(points: torch.Tensor, others: torch.Tensor) -> float:
        found = 0
        for point in points:
            for other in others:
                radius = sorted(float((other - another).norm()) for another in others)[neighbours]
                if float((point - other).norm()) <= radius:
                    found += 1
                    break
        return found / len(points)

    measured = precision_recall(real, generated, neighbours)
    assert measured.precision == pytest.approx(share(generated, real))
    assert measured.recall == pytest.approx(share(real, generated))
    assert measured.precision > measured.recall
    assert precision_recall(real, real, neighbours) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("function", "x", "y", "words"),
    [
        (frechet_distance, torch.randn(1, 3), torch.randn(5, 3), "x is a single sample"),
        (frechet_distance, torch.randn(5, 3), torch.randn(5, 4), "3 dimensions and y 4"),
        (frechet_distance, torch.full((5, 3), torch.nan), torch.randn(5, 3), "5 of the 5 samples in x are not finite"),
        (kernel_distance, torch.randn(5, 3), torch.randn(1, 3), "a single sample"),
        (precision_recall, torch.randn(3, 3), torch.randn(9, 3), "neighbours is 3"),
        (partial(precision_recall, neighbours=2.5), torch.randn(9, 3), torch.randn(9, 3), "neighbours is 2.5"),
        (precision_recall, torch.randn(9), torch.randn(9, 2, 2), r"shape \(9, 2, 2\)"),
    ],
)
def test_mistakes(function, x, y, words):
    with pytest.raises(ValueError, match=words):
        function(x, y)


@pytest.mark.parametrize("function", [frechet_distance, kernel_distance, precision_recall])
def test_arrays_of_numpy_are_taken(function):
    x, y = torch.randn(2, 20, 3, generator=generator())
    assert function(x.numpy(), y.numpy()) == function(x, y)


@pytest.mark.parametrize("offset", [0.0, 1e9])
def test_precision_and_recall_do_not_mind_an_offset(offset):
    real = torch.randn(100, 4, generator=generator(), dtype=torch.float64)
    generated = torch.randn(100, 4, generator=generator(1), dtype=torch.float64) + 1
    assert precision_recall(real + offset, generated + offset) == precision_recall(real, generated)
