"""Whitening by a fitted triangular map: white data, an exact density, and errors."""

import pytest
import torch
from torch.autograd.functional import jacobian

from nflib.transforms import Whiten


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    return (torch.randn(4000, 6, generator=generator, dtype=torch.float64) @ mixing).view(-1, 2, 3)


def test_data_become_white_and_come_back(data):
    whiten = Whiten.fit(data)
    z, logabsdet = whiten(data)
    covariance = torch.cov(z.flatten(1).T)
    # The uncorrelated data that are counted in show where the covariance is nearly singular.
    torch.testing.assert_close(covariance, torch.eye(6, dtype=z.dtype), atol=0.05, rtol=0)
    x, back = whiten.inverse(z)
    torch.testing.assert_close(x, data, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(back, -logabsdet)


def test_the_covariance_is_that_of_the_data_with_as_many_uncorrelated_ones(data):
    few = data[:12]
    covariance = torch.cov(few.flatten(1).T)
    wanted = torch.where(torch.eye(6, dtype=torch.bool), covariance, covariance * 12 / 18)
    factor = Whiten.fit(few).factor.double()
    torch.testing.assert_close(factor @ factor.T, wanted, atol=1e-5, rtol=1e-5)


def test_the_log_determinant_is_that_of_the_jacobian_and_the_map_is_causal(data):
    whiten = Whiten.fit(data)
    full = jacobian(lambda x: whiten(x[None])[0][0], data[0]).view(6, 6)
    torch.testing.assert_close(whiten(data[:1])[1][0], full.det().abs().log())
    assert torch.equal(full.triu(1), torch.zeros_like(full))


def test_fewer_data_than_dimensions_leave_it_regular():
    data = torch.randn(3, 10, generator=torch.Generator().manual_seed(0))
    z, logabsdet = Whiten.fit(data)(data)
    assert z.isfinite().all() and logabsdet.isfinite().all()


def test_a_new_one_is_the_identity_and_takes_a_fitted_ones_state(data):
    inputs = data[:5].float()
    new = Whiten((2, 3))
    assert torch.equal(new(inputs)[0], inputs) and torch.equal(new(inputs)[1], torch.zeros(5))
    fitted = Whiten.fit(data)
    new.load_state_dict(fitted.state_dict())
    assert torch.equal(new(inputs)[0], fitted(inputs)[0])


def test_errors(data):
    with pytest.raises(ValueError, match="N >= 2"):
        Whiten.fit(data[:1])
    constant = data.clone()
    constant[:, 1, 1] = 3
    with pytest.raises(ValueError, match="coordinate 4 of the flattened event is constant"):
        Whiten.fit(constant)
    with pytest.raises(ValueError, match="not finite"):
        Whiten.fit(torch.full((5, 2), torch.nan))
    with pytest.raises(ValueError, match="expected inputs of shape"):
        Whiten((2, 3))(torch.zeros(4, 3, 2))
    # The mean of these has a rounding error, from which all of them differ.
    constant[:, 1, 1] = 0.1
    with pytest.raises(ValueError, match="coordinate 4 of the flattened event is constant"):
        Whiten.fit(constant)


@pytest.mark.parametrize("scale", [1e-40, 1e40])
def test_a_scale_that_float32_does_not_hold_is_an_error(data, scale):
    with pytest.raises(ValueError, match="coordinate 0 of the flattened event is .* beyond the range of float32"):
        Whiten.fit(data * scale)


def test_the_inverse_under_autocast():
    data = torch.randn(500, 6, generator=torch.Generator().manual_seed(0))
    whiten = Whiten.fit(data)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(whiten.inverse(whiten(data)[0])[0], data, rtol=0, atol=1e-5)
