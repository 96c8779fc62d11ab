"""Paths: their derivatives by autograd, and conversions against the closed forms of normal mixtures."""

from __future__ import annotations

import pytest
import torch

from nflib.continuous import (
    LinearPath,
    Path,
    TrigonometricPath,
    TwoSidedPath,
    VarianceExplodingPath,
    VariancePreservingPath,
)
from nflib.derivatives import jacobian
from tests.nflib.continuous.cases import NARROW, ONE_SIDED
from tests.nflib.continuous.gaussian_mixtures import Exact

CONVERSIONS = {
    "score_from_velocity": ("velocity", "score"),
    "velocity_from_score": ("score", "velocity"),
    "noise_from_score": ("score", "noise_given"),
    "score_from_noise": ("noise_given", "score"),
    "denoised_from_score": ("score", "denoised"),
    "score_from_denoised": ("denoised", "score"),
    "velocity_from_denoised": ("denoised", "velocity"),
    "velocity_from_noise": ("noise_given", "velocity"),
}


def times(number: int = 40) -> torch.Tensor:
    return torch.linspace(0.1, 0.9, number, dtype=torch.float64)


@pytest.mark.parametrize("path", [*ONE_SIDED, VarianceExplodingPath(), TwoSidedPath(), TwoSidedPath(0.3)], ids=repr)
def test_derivatives(path: Path) -> None:
    t = times().requires_grad_()
    c = path.coefficients(t)
    for value, derivative in ((c.alpha, c.alpha_dot), (c.beta, c.beta_dot), (c.gamma, c.gamma_dot)):
        (expected,) = torch.autograd.grad(value.sum() + 0 * t.sum(), t, retain_graph=True)
        torch.testing.assert_close(derivative, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(c.gamma_gamma_dot, c.gamma * c.gamma_dot, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("path", [*ONE_SIDED, TwoSidedPath()], ids=repr)
def test_velocity_is_the_derivative_of_the_interpolant(path: Path) -> None:
    x0, x1, z = torch.randn(3, 40, 2, 3, dtype=torch.float64)
    latent = None if path.one_sided else z
    _, derivative = torch.func.jvp(
        lambda t: path.interpolate(x0, x1, t, latent), (times(),), (torch.ones(40).double(),)
    )
    torch.testing.assert_close(path.velocity(x0, x1, times(), latent), derivative, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("path", ONE_SIDED, ids=repr)
@pytest.mark.parametrize("conversion", CONVERSIONS)
def test_conversions_on_a_mixture(path: Path, conversion: str) -> None:
    t, exact = times(), Exact(path, data=NARROW)
    x0 = torch.randn(len(t), 2, dtype=torch.float64)
    x = path.interpolate(x0, NARROW.sample(len(t), torch.Generator().manual_seed(0)), t)
    given, wanted = (getattr(exact, name)(x, t) for name in CONVERSIONS[conversion])
    found = getattr(path, conversion)(given, x, t)
    # What cancels: x and alpha^2 s in a denoiser, say, and what is then divided by.
    c = path.coefficients(t).like(x)
    scale = (1 + x.abs() + wanted.abs()) * (1 + c.alpha.square()) / torch.minimum(c.alpha.square(), c.beta).clamp(max=1)
    assert ((found - wanted).abs() < 1e-12 * scale).all()


def test_score_of_the_mixture_is_the_gradient() -> None:
    """The closed forms that conversions are held against are themselves right."""
    exact, t = Exact(LinearPath(), data=NARROW), times()
    x = torch.randn(len(t), 2, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(exact.log_prob(x, t).sum(), x)
    torch.testing.assert_close(exact.score(x, t), gradient, rtol=1e-12, atol=1e-12)


def test_velocity_of_the_mixture_carries_its_density() -> None:
    """The continuity equation: d log p / dt + v . score + div v = 0."""
    exact, t = Exact(LinearPath(), data=NARROW), times(10).requires_grad_()
    x = torch.randn(10, 2, dtype=torch.float64, requires_grad=True)
    (along_time,) = torch.autograd.grad(exact.log_prob(x, t).sum(), t)
    velocity, jacobians = jacobian(lambda x: exact.velocity(x, t), x)
    divergence = jacobians.diagonal(dim1=1, dim2=2).sum(1)
    total = along_time + (velocity * exact.score(x, t)).sum(1) + divergence
    assert total.abs().max() < 1e-10


@pytest.mark.parametrize("path", ONE_SIDED, ids=repr)
def test_ends(path: Path) -> None:
    """Data at t = 1, but for what is left of the noise."""
    x0, x1 = torch.randn(2, 3, 2, dtype=torch.float64)
    left = path.coefficients(torch.ones(1, dtype=torch.float64))
    assert left.beta == 1 and left.alpha < 0.06
    torch.testing.assert_close(path.interpolate(x0, x1, torch.ones(3).double()), x1 + left.alpha * x0)


def test_errors() -> None:
    with pytest.raises(ValueError, match="times run from 0"):
        LinearPath().coefficients(torch.tensor([0.5, 1.1]))
    with pytest.raises(ValueError, match="times run from 0"):
        LinearPath().coefficients(torch.tensor([torch.nan]))
    with pytest.raises(ValueError, match="learn both"):
        TwoSidedPath().score_from_velocity(torch.zeros(1, 2), torch.zeros(1, 2), torch.tensor([0.5]))


@pytest.mark.parametrize("path", [*ONE_SIDED, LinearPath(1e-5), TrigonometricPath(), VarianceExplodingPath()], ids=repr)
def test_single_precision_keeps_its_digits_near_the_data(path: Path) -> None:
    t = torch.tensor([1 - 1e-4, 1 - 1e-6, 1.0])
    found, expected = path.coefficients(t), path.coefficients(t.double())
    for name in ("alpha", "beta", "beta_dot"):
        torch.testing.assert_close(getattr(found, name).double(), getattr(expected, name), rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize(
    ("path", "values"),
    [
        (LinearPath, (-0.1,)),
        (LinearPath, (1.0,)),
        (VariancePreservingPath, (-1.0, 2.0)),
        (VariancePreservingPath, (2.0, 1.0)),
        (VarianceExplodingPath, (0.0, 5.0)),
        (VarianceExplodingPath, (5.0, 1.0)),
        (TwoSidedPath, (0.0,)),
        (TwoSidedPath, (float("nan"),)),
    ],
)
def test_widths_of_no_path(path, values) -> None:
    with pytest.raises(ValueError, match=path.__name__):
        path(*values)


@pytest.mark.parametrize("path", [*ONE_SIDED, TwoSidedPath()], ids=repr)
def test_one_number_is_the_time_of_all_rows(path: Path) -> None:
    x0, x1, z = torch.randn(3, 4, 2)
    for given, same in zip(
        path.pair(x0, x1, 0.3, z), path.pair(x0, x1, torch.full((4,), 0.3).double(), z), strict=True
    ):
        assert given.dtype == torch.float32
        torch.testing.assert_close(given, same)
    with pytest.raises(ValueError, match="times run from 0"):
        path.interpolate(x0, x1, 1.5, z)
    if path.one_sided:
        score = path.score_from_velocity(z, x1, 0.3)
        torch.testing.assert_close(score, path.score_from_velocity(z, x1, torch.full((4,), 0.3).double()))


def test_a_latent_is_not_left_out() -> None:
    x0, x1 = torch.randn(2, 4, 2)
    with pytest.raises(
        ValueError, match="TwoSidedPath has a latent.*pass z, or train an InterpolantFlow by InterpolantMatching"
    ):
        TwoSidedPath().interpolate(x0, x1, 0.5)
    torch.testing.assert_close(TwoSidedPath().interpolate(x0, x1, 0.0), x0)  # where there is none
