"""The Student noise of PFGM++ against scipy's density and its normal limit."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from nflib import Flow
from nflib.continuous import Heun, ODEFlow
from nflib.distributions import StandardNormal, StudentNoise
from nflib.transforms import Reverse


@pytest.mark.parametrize("freedom", [0.7, 3.0, 128.0])
def test_density_is_scipys(freedom) -> None:
    x = torch.randn(20, 3, 2, dtype=torch.float64) * 2
    expected = stats.multivariate_t(np.zeros(6), 1.7**2 * np.eye(6), df=freedom).logpdf(x.flatten(1).numpy())
    found = StudentNoise((3, 2), freedom, sigma=1.7).log_prob(x)
    torch.testing.assert_close(found, torch.as_tensor(expected), rtol=1e-12, atol=1e-10)


def test_density_has_the_kernel_of_pfgm() -> None:
    noise, x = StudentNoise((5,), 8.0, sigma=0.4), torch.randn(2, 5, dtype=torch.float64)
    square = x.square().sum(1) + 0.4**2 * 8
    found, expected = noise.log_prob(x).diff(), -(5 + 8) / 2 * square.log().diff()
    torch.testing.assert_close(found, expected)


def test_infinite_dimensions_are_normal() -> None:
    x = torch.randn(50, 4, dtype=torch.float64)
    normal = StandardNormal((4,)).log_prob(x)
    gaps = [float((StudentNoise((4,), freedom).log_prob(x) - normal).abs().max()) for freedom in (1e4, 1e6)]
    assert gaps[0] < 1e-2 and gaps[1] < 1e-4
    assert StudentNoise((4,), 1e6).log_prob(x.float()).allclose(normal.float(), atol=1e-3)


@pytest.mark.parametrize("freedom", [2.5, 40.0])
def test_draws_have_the_radii_of_the_beta(freedom) -> None:
    noise = StudentNoise((3,), freedom, sigma=1.3)
    generator = torch.Generator().manual_seed(0)
    x = noise.draw(20_000, generator=generator)
    square = x.double().square().sum(1) / (1.3**2 * freedom)
    assert stats.kstest((square / (1 + square)).numpy(), stats.beta(1.5, freedom / 2).cdf).pvalue > 1e-3
    directions = (x / x.norm(dim=1, keepdim=True)).mean(0)
    assert (directions.abs() < 4 / math.sqrt(3 * 20_000)).all()
    assert torch.equal(noise.draw(20_000, generator=torch.Generator().manual_seed(0)), x)


def test_base_of_a_flow() -> None:
    for flow in (
        Flow(Reverse(), StudentNoise((2, 2), 3.0)),
        ODEFlow(lambda x, t: -x, (4,), solver=Heun(4), distribution=StudentNoise((4,), 3.0)),
    ):
        x, log_prob = flow.sample_and_log_prob(30, seed=0)
        torch.testing.assert_close(flow.log_prob(x), log_prob, rtol=1e-4, atol=1e-4)
    assert StudentNoise((2,), 3.0).sample(3, context=torch.zeros(4, 1)).shape == (4, 3, 2)


def test_numbers_that_are_not_positive() -> None:
    for arguments in ({"degrees_of_freedom": 0.0}, {"degrees_of_freedom": 2.0, "sigma": -1.0}):
        with pytest.raises(ValueError, match="pass positive numbers"):
            StudentNoise((2,), **arguments)
    with pytest.raises(ValueError, match="expected inputs of shape"):
        StudentNoise((2,), 1.0).log_prob(torch.zeros(3, 4))


@pytest.mark.parametrize("freedom", [1e6, 1e12, 1e18])
def test_many_degrees_of_freedom_are_nearly_the_normal(freedom):
    x = torch.randn(3, 4, dtype=torch.float64)
    expected = StandardNormal((4,)).log_prob(x)
    torch.testing.assert_close(StudentNoise((4,), freedom).log_prob(x), expected, rtol=0, atol=100 / freedom + 1e-12)
