"""Elementwise transforms fitted from data: inverses, log-determinants, normality of the marginals."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from nflib.transforms.marginal import GaussianizeMarginals, Standardize

PI = math.pi
INTERVALS = {(0, 1): (-PI, PI), (1, 0): (-PI, PI), (1, 2): (0.0, 1.0)}


def make_data(count: int = 6000, seed: int = 0) -> torch.Tensor:
    """Event (2, 3): skewed, bimodal angle, narrow; angle at the cut, bimodal real, beta in (0, 1)."""
    rng = np.random.default_rng(seed)
    mode = rng.random(count) < 0.3
    bimodal = np.where(mode, rng.normal(1.0, 0.2, count), rng.normal(-1.5, 0.4, count))
    cut = (rng.normal(0.0, 0.2, count) + 2 * PI) % (2 * PI) - PI
    columns = [
        rng.gamma(2.0, 1.0, count),
        (bimodal + PI) % (2 * PI) - PI,
        rng.normal(0.15, 0.003, count),
        -np.sign(cut) * PI + cut,
        np.where(mode, rng.normal(4.0, 0.3, count), rng.normal(0.0, 1.0, count)),
        rng.beta(0.7, 2.0, count),
    ]
    return torch.from_numpy(np.stack(columns, axis=-1).reshape(count, 2, 3))


@pytest.fixture(scope="module")
def data() -> torch.Tensor:
    return make_data()


@pytest.fixture(scope="module")
def gaussianize(data: torch.Tensor) -> GaussianizeMarginals:
    return GaussianizeMarginals.fit(data, INTERVALS)


@pytest.fixture(scope="module")
def transforms(data: torch.Tensor, gaussianize: GaussianizeMarginals) -> dict[str, torch.nn.Module]:
    return {"standardize": Standardize.fit(data), "gaussianize": gaussianize}


@pytest.mark.parametrize("name", ["standardize", "gaussianize"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_inverse_undoes_forward(transforms, data, name, dtype, tolerance):
    transform, x = transforms[name], data.to(dtype)
    z, logabsdet = transform(x)
    back, inverse_logabsdet = transform.inverse(z)
    assert z.dtype == logabsdet.dtype == dtype
    assert torch.isfinite(z).all()
    # Between the modes of a coordinate z hardly changes with x: there the rounding of z itself limits x.
    point = data.clone().requires_grad_(True)
    (slope,) = torch.autograd.grad(transform(point)[0].sum(), point)
    limit = 4 * torch.finfo(dtype).eps * z.abs().clamp(min=1.0) / slope
    assert ((back - x).abs() <= limit.clamp(min=tolerance)).all()
    assert (back - x).abs().max() <= 3 * tolerance
    assert (logabsdet + inverse_logabsdet).abs().max() <= (1e-4 if dtype == torch.float32 else 1e-10)


@pytest.mark.parametrize("name", ["standardize", "gaussianize"])
def test_logabsdet_matches_autograd(transforms, data, name):
    transform = transforms[name]
    x = data[:300].clone()
    x[0, 0, 0], x[0, 0, 2], x[1, 1, 1], x[2, 1, 1] = 40.0, 0.0, 30.0, -30.0  # the straight tails
    for function, point in ((transform.forward, x), (transform.inverse, transform(x)[0].detach())):
        point = point.clone().requires_grad_(True)
        outputs, logabsdet = function(point)
        (gradient,) = torch.autograd.grad(outputs.sum(), point)  # elementwise: the Jacobian is diagonal
        expected = gradient.abs().log().sum(dim=(1, 2))
        assert (logabsdet - expected).abs().max() <= 1e-8


def test_outputs_do_not_mix_coordinates(gaussianize, data):
    jacobian = torch.autograd.functional.jacobian(lambda x: gaussianize(x[None])[0][0], data[7])
    jacobian = jacobian.reshape(6, 6)
    assert torch.equal(jacobian, torch.diag(jacobian.diagonal()))
    assert (jacobian.diagonal() > 0).all()


def test_marginals_become_normal(gaussianize):
    z, _ = gaussianize(make_data(6000, seed=1))
    statistics = [kstest(column, "norm").statistic for column in z.reshape(6000, 6).T.numpy()]
    assert max(statistics) < 0.035, statistics  # the 1 % critical value at N = 6000 is 0.021
    assert (z.mean(0).abs() < 0.06).all()
    assert ((z.std(0) - 1).abs() < 0.08).all()


def test_monotone_and_continuously_differentiable(gaussianize):
    grid = torch.linspace(-0.5, 0.5, 40001, dtype=torch.float64)[:, None, None]
    low, high = gaussianize.knots_x[:, 0].double(), gaussianize.knots_x[:, -1].double()
    stretch = torch.where(gaussianize.is_interval, 1.0, 1.3)
    x = ((low + high) / 2).reshape(2, 3) + (stretch * (high - low)).reshape(2, 3) * grid * (1 - 1e-12)
    x.requires_grad_(True)
    z, _ = gaussianize(x)
    assert (z.diff(dim=0) > 0).all()
    # C1: one-sided slopes at every knot agree
    knots = gaussianize.knots_x.double().t()[1:-1].reshape(-1, 2, 3)
    step = 1e-9 * (high - low).reshape(2, 3)
    slopes = []
    for point in (knots - step, knots + step):
        point.requires_grad_(True)
        slopes.append(torch.autograd.grad(gaussianize(point)[0].sum(), point)[0])
    assert torch.allclose(slopes[0], slopes[1], rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_interval_ends_are_finite_and_accurate(gaussianize, data, dtype):
    x = data[:40].to(dtype).clone()
    low, high = torch.tensor(-PI, dtype=dtype), torch.tensor(PI, dtype=dtype)
    for row in range(20):
        x[2 * row, 0, 1], x[2 * row + 1, 0, 1] = low, high
        low, high = torch.nextafter(low, high), torch.nextafter(high, low)
    x.requires_grad_(True)
    z, logabsdet = gaussianize(x)
    assert torch.isfinite(z).all() and torch.isfinite(logabsdet).all()
    assert (z[0::2, 0, 1] < -3).all() and (z[1::2, 0, 1] > 3).all()
    assert (z[0::2, 0, 1].diff() > 0).all() and (z[1::2, 0, 1].diff() < 0).all()
    (gradient,) = torch.autograd.grad(logabsdet.sum(), x)
    assert torch.isfinite(gradient).all()
    exact, exact_logabsdet = gaussianize(x.detach().double())
    inner = slice(2, None)  # the closed ends themselves are evaluated a rounding error inside
    assert (z.detach() - exact)[inner].abs().max() < 1e-4
    assert (logabsdet.detach() - exact_logabsdet)[inner].abs().max() < 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_inverse_is_finite_far_out(gaussianize, dtype):
    z = torch.tensor([-40.0, -9.0, -6.0, 6.0, 9.0, 40.0], dtype=dtype)[:, None, None].expand(6, 2, 3)
    x, logabsdet = gaussianize.inverse(z)
    assert torch.isfinite(x).all() and torch.isfinite(logabsdet).all()
    gaussianize(x)  # still inside the intervals


def test_density_integrates_to_one(gaussianize):
    """Density of the pulled-back normal over one interval coordinate, by quadrature."""
    x = gaussianize.inverse(torch.zeros(1, 2, 3, dtype=torch.float64))[0].repeat(40001, 1, 1)
    x[:, 0, 1] = torch.linspace(-PI, PI, 40001, dtype=torch.float64)
    x.requires_grad_(True)
    z, _ = gaussianize(x)
    slope = torch.autograd.grad(z.sum(), x)[0][:, 0, 1]
    density = torch.exp(-0.5 * z[:, 0, 1].detach() ** 2) / math.sqrt(2 * PI) * slope
    assert density[1:-1].min() > 1e-4
    assert abs(torch.trapezoid(density[1:-1], x.detach()[1:-1, 0, 1]).item() - 1) < 1e-3


def test_gradients_flow_to_inputs_not_to_buffers(gaussianize, data):
    x = data[:5].float().requires_grad_(True)
    z, logabsdet = gaussianize(x)
    (z.sum() + logabsdet.sum()).backward()
    assert torch.isfinite(x.grad).all() and (x.grad != 0).all()
    assert not list(gaussianize.parameters())


def test_state_dict_round_trip_from_empty(gaussianize, data):
    empty = GaussianizeMarginals((2, 3), num_bins=24)
    x = data[:50]
    identity, logabsdet = empty(x)
    assert torch.allclose(identity, x) and torch.allclose(logabsdet, torch.zeros(50, dtype=torch.float64), atol=1e-6)
    empty.load_state_dict(gaussianize.state_dict())
    assert torch.equal(empty(x)[0], gaussianize(x)[0])
    assert torch.equal(empty(x)[1], gaussianize(x)[1])


def test_mask_and_mapping_agree(data):
    mask = torch.zeros(2, 3, dtype=torch.bool)
    mask[0, 1] = mask[1, 0] = True
    by_mask = GaussianizeMarginals.fit(data, mask, bounds=(-PI, PI), num_bins=16)
    by_mapping = GaussianizeMarginals.fit(data, {(0, 1): (-PI, PI), (1, 0): (-PI, PI)}, num_bins=16)
    assert torch.equal(by_mask.knots_x, by_mapping.knots_x)
    assert torch.equal(by_mask.is_interval, mask.flatten())


def test_ties_and_one_dimensional_events():
    ties = torch.cat([torch.zeros(500), torch.linspace(0, 1, 500)])[:, None].double()
    transform = GaussianizeMarginals.fit(ties, {0: (-1.0, 2.0)})
    z, _ = transform(ties)
    assert (transform.inverse(z)[0] - ties).abs().max() < 1e-9
    real = GaussianizeMarginals.fit(ties)
    assert (real.inverse(real(ties)[0])[0] - ties).abs().max() < 1e-9


def test_user_mistakes_are_named(gaussianize, data):
    outside = data[:4].clone()
    outside[2, 0, 1] = 3.5
    with pytest.raises(ValueError, match=r"coordinate \(0, 1\) of sample 2"):
        gaussianize(outside)
    with pytest.raises(ValueError, match=r"coordinate \(0, 1\)"):
        GaussianizeMarginals.fit(torch.cat([data, outside]), INTERVALS)
    constant = data.clone()
    constant[:, 1, 1] = 2.0
    with pytest.raises(ValueError, match=r"coordinate \(1, 1\)"):
        GaussianizeMarginals.fit(constant, INTERVALS)
    with pytest.raises(ValueError, match=r"coordinate \(1, 1\)"):
        Standardize.fit(constant)
    with pytest.raises(ValueError, match="with N >="):
        GaussianizeMarginals.fit(data[:10])
    with pytest.raises(ValueError, match="no index"):
        GaussianizeMarginals.fit(data, {(2, 0): (0.0, 1.0)})
    with pytest.raises(ValueError, match="bounded interval"):
        GaussianizeMarginals.fit(data, {(0, 1): (0.0, math.inf)})
    with pytest.raises(ValueError, match="expected as"):
        gaussianize(data.reshape(-1, 6))


def test_standardize_statistics(data):
    z, logabsdet = Standardize.fit(data)(data)
    assert z.mean(0).abs().max() < 1e-5 and (z.std(0) - 1).abs().max() < 1e-5
    assert torch.equal(logabsdet, logabsdet[:1].expand(len(data)))
    shared = Standardize.fit(data, event_dims=-1)
    assert torch.equal(shared.mean[0], shared.mean[1]) and shared.mean.shape == (2, 3)
    assert torch.allclose(shared.std[0].double(), data.reshape(-1, 3).std(0), rtol=1e-6)
