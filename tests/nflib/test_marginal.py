"""Elementwise transforms fitted from data: inverses, log-determinants, normality of the marginals."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from nflib.transforms.marginal import GaussianizeMarginals, Standardize
from nflib.transforms.marginal_by_kind import GaussianizeByKind

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


@pytest.mark.parametrize("count", [64, 300, 3000])
def test_what_an_interval_has_no_data_in_is_uniform_alone(count):
    angles = 0.1 * torch.randn(count, 1, generator=torch.Generator().manual_seed(count), dtype=torch.float64)
    fraction = 1e-4
    transform = GaussianizeMarginals.fit(angles, {(0,): (-PI, PI)}, num_bins=32, uniform_fraction=fraction)
    # The data end at four standard deviations or before, and as far beyond as the outermost quantile is within.
    ends = torch.tensor([[-0.7], [0.7]], dtype=torch.float64)
    below, up_to = torch.special.ndtr(transform(ends)[0]).flatten().tolist()
    expected = fraction * (PI - 0.7) / (2 * PI)
    # Nearly: a smooth density falls to that level a little way beyond.
    assert 0.5 * expected < below < 1.1 * expected
    assert 0.5 * expected < 1 - up_to < 1.1 * expected
    # Angles that leave no end empty keep the knots at their quantiles.
    everywhere = PI * (2 * torch.rand(count, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 1)
    z, logabsdet = GaussianizeMarginals.fit(everywhere, {(0,): (-PI, PI)}, num_bins=32)(everywhere)
    log_prob = logabsdet - 0.5 * z.flatten() ** 2 - 0.5 * math.log(2 * PI)
    assert log_prob.mean().item() == pytest.approx(-math.log(2 * PI), abs=4 / math.sqrt(count))


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
    with pytest.raises(ValueError, match="expected inputs of shape"):
        gaussianize(data.reshape(-1, 6))


def test_standardize_statistics(data):
    z, logabsdet = Standardize.fit(data)(data)
    assert z.mean(0).abs().max() < 1e-5 and (z.std(0) - 1).abs().max() < 1e-5
    assert torch.equal(logabsdet, logabsdet[:1].expand(len(data)))
    shared = Standardize.fit(data, event_dims=-1)
    assert torch.equal(shared.mean[0], shared.mean[1]) and shared.mean.shape == (2, 3)
    assert torch.allclose(shared.std[0].double(), data.reshape(-1, 3).std(0), rtol=1e-6)


# --- closed intervals, whatever the dtype of the data


def by_kind(fitted_from: torch.Tensor, interval: tuple[float, float] | None) -> GaussianizeByKind:
    transform = GaussianizeByKind(1, lambda kinds: kinds)
    transform.fit_kind(0, fitted_from[:, 0], interval)
    return transform


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("interval", [(-PI, PI), (0.1, 0.7), (-1 / 3, 1e-3), (0.0, 2 * PI)], ids=str)
def test_ends_of_an_interval_lie_inside_as_every_dtype_rounds_them(dtype, interval):
    ends = torch.tensor(interval, dtype=torch.float64)
    x = (ends[0] + (ends[1] - ends[0]) * torch.linspace(0, 1, 101, dtype=torch.float64)[:, None]).to(dtype)
    assert x[0].item() == ends.to(dtype)[0].item()
    kinds = torch.zeros(x.shape, dtype=torch.int64)
    marginals, shared = GaussianizeMarginals.fit(x, {0: interval}), by_kind(x, interval)
    for transform, context in ((marginals, None), (shared, kinds)):
        z, logabsdet = transform(x, context)
        assert torch.isfinite(z).all() and torch.isfinite(logabsdet).all()
        assert z[0] < -3 and z[-1] > 3
        back, _ = transform.inverse(z, context)
        # The closed ends themselves are evaluated a rounding error inside.
        span = 1e-6 if z.dtype == torch.float32 else 1e-12
        wide = ends.to(dtype).to(back.dtype)
        limit = span * (1 + wide.abs().max()) + (wide - ends.to(back.dtype)).abs().max()
        assert ((back - x.to(back.dtype)).abs() <= limit).all()
        with pytest.raises(ValueError, match=r"coordinate \(0,\) of sample 3 is .*, outside its interval"):
            beyond = x.clone()
            beyond[3] += 10
            transform(beyond, context)
    for fit in (lambda data: GaussianizeMarginals.fit(data, {0: interval}), lambda data: by_kind(data, interval)):
        with pytest.raises(ValueError, match=r"outside \["):
            fit(torch.cat([x, x[-1:] + 0.1 * (x[-1:] - x[:1])]))


def test_float32_pi_is_an_angle():
    """atan2(0, -1) is float32 pi, which is larger than pi; float64 copies of it are as good."""
    angles = torch.atan2(torch.linspace(-1, 1, 65), torch.full((65,), -1.0))[:, None]
    angles[0], angles[1] = torch.atan2(torch.tensor(0.0), torch.tensor(-1.0)), -PI
    assert angles[0].item() > PI and angles[1].item() < -PI
    for data in (angles, angles.double()):
        transform = GaussianizeMarginals.fit(data, {0: (-PI, PI)})
        assert (transform.inverse(transform(data)[0])[0] - data).abs().max() < 1e-6
    just_beyond = torch.nextafter(angles[:1], torch.tensor(4.0))
    with pytest.raises(ValueError, match="outside its interval"):
        transform(just_beyond)
    with pytest.raises(ValueError, match=r"outside \["):
        GaussianizeMarginals.fit(torch.cat([angles, just_beyond]), {0: (-PI, PI)})


def test_compiled_points_outside_are_nan_and_the_others_as_ever(gaussianize, data):
    """No branch on the data in a traced program."""
    x = data[:8].float()
    kinds = torch.zeros(8, 1, dtype=torch.int64)
    shared = by_kind(data[:, :1, 1], (-PI, PI))
    inside = x[:, 0, 1:2].clone()
    for transform, points, context in ((gaussianize, x, None), (shared, inside, kinds)):
        expected = transform(points, context)
        outside = points.clone()
        (outside if context is not None else outside[:, 0])[2, -2 if context is None else 0] = 3.5
        compiled = torch.compile(lambda x, t=transform, c=context: t(x, c), fullgraph=True, backend="eager")
        for result, value in zip(compiled(points), expected, strict=True):
            torch.testing.assert_close(result, value)
        z, logabsdet = compiled(outside)
        assert z.isnan().sum() == 1 and z[2].isnan().any()
        assert logabsdet.isnan().tolist() == [row == 2 for row in range(8)]
    program = torch.export.export(gaussianize, (x,)).module()
    torch.testing.assert_close(program(x)[0], gaussianize(x)[0])


# --- scales that float32 holds, and those it does not


@pytest.mark.parametrize("scale", [1e-28, 1e-21, 1e-10, 1e10, 1e25, 1e29])
def test_scale_does_not_matter(scale):
    unit = make_data(2000).reshape(-1, 6)[:, [0, 2, 4]] - 1
    for dtype, tolerance in ((torch.float32, 3e-5), (torch.float64, 1e-10)):
        x = (scale * unit).to(dtype)
        for fit in (GaussianizeMarginals.fit, Standardize.fit):
            transform, reference = fit(x), fit(unit)
            z, logabsdet = transform(x)
            back, inverse_logabsdet = transform.inverse(z)
            assert ((back - x).abs().amax(0) / x.std(0)).max() < tolerance
            assert (logabsdet + inverse_logabsdet).abs().max() < 1e-3
            # the same map but for the rounding of its float32 knots
            expected, expected_logabsdet = reference(unit)
            assert (z - expected).abs().max() < 2e-3
            shift = logabsdet.double() + 3 * math.log(scale) - expected_logabsdet
            assert shift.abs().max() < 2e-2


@pytest.mark.parametrize("scale", [1e-300, 1e-50, 1e-40, 1e-33, 1e33, 1e37, 1e200])
def test_scales_beyond_float32_are_told_at_fit(scale):
    x = scale * make_data(500).reshape(-1, 6)[:, [4]]
    for fit in (GaussianizeMarginals.fit, lambda data: by_kind(data, None)):
        with pytest.raises(ValueError, match=r"(coordinate \(0,\)|kind 0) is of scale .*rescale"):
            fit(x)
    with pytest.raises(ValueError, match=r"coordinate \(0,\) (is of scale .*rescale|has no positive finite)"):
        Standardize.fit(x)
    with pytest.raises(ValueError, match=r"coordinate \(0,\) is of scale .*rescale"):
        GaussianizeMarginals.fit(x, {0: (-20 * scale, 20 * scale)})
    if scale < 1e-45 or scale > 1e38:
        with pytest.raises(ValueError, match="no positive finite standard deviation"):
            Standardize(torch.zeros(1), torch.tensor([scale], dtype=torch.float64))


def test_small_spread_at_a_large_offset_is_told_or_exact():
    noise = torch.randn(2000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for fit in (GaussianizeMarginals.fit, Standardize.fit, lambda data: by_kind(data, None)):
        with pytest.raises(ValueError, match=r"(\(0,\)|kind 0).*(subtract its mean|constant|no positive finite)"):
            fit(1e6 + 1e-3 * noise)
    with pytest.raises(ValueError, match=r"coordinate \(0,\)"):
        GaussianizeMarginals.fit((1e6 + 1e-3 * noise).float())
    x = 1e6 + 100 * noise
    for transform in (GaussianizeMarginals.fit(x), Standardize.fit(x)):
        z, _ = transform(x)
        assert abs(z.mean()) < 0.05 and abs(z.std() - 1) < 0.05
        assert (transform.inverse(z)[0] - x).abs().max() < 1e-8
        rounded = x.float()
        assert (transform.inverse(transform(rounded)[0])[0] - rounded).abs().max() <= 0.0625  # one float32 step there


def test_ties_nan_and_near_constants():
    nearly = torch.zeros(50_000, 1)
    nearly[7] = 1.0
    with pytest.raises(ValueError, match=r"coordinate \(0,\) has nearly all values equal"):
        GaussianizeMarginals.fit(nearly)
    within = GaussianizeMarginals.fit(nearly, {0: (-1.0, 1.0)})
    assert (within.inverse(within(nearly)[0])[0] - nearly).abs().max() < 1e-6
    subnormal = torch.linspace(-1e-40, 1e-40, 100)[:, None]
    with pytest.raises(ValueError, match="rescale"):
        GaussianizeMarginals.fit(subnormal)
    spoiled = torch.randn(100, 2)
    spoiled[3, 1] = torch.nan
    with pytest.raises(ValueError, match=r"coordinate \(1,\) has non-finite data"):
        GaussianizeMarginals.fit(spoiled)
    with pytest.raises(ValueError, match=r"coordinate \(1,\)"):
        Standardize.fit(spoiled)
    z, logabsdet = within(torch.tensor([[torch.nan], [0.0]]))
    assert z.isnan().flatten().tolist() == logabsdet.isnan().tolist() == [True, False]
    counts = torch.randint(0, 3, (500, 1), generator=torch.Generator().manual_seed(0))
    for transform in (GaussianizeMarginals.fit(counts), Standardize.fit(counts)):
        assert (transform.inverse(transform(counts)[0])[0] - counts).abs().max() < 1e-6
