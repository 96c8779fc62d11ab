"""Noise of other widths: densities against torch.distributions, moments of draws, padding, and flows on it."""

from __future__ import annotations

import math

import pytest
import torch
from nflows.distributions import ConditionalDiagonalNormal
from torch import nn
from torch.distributions import Categorical, MixtureSameFamily, Normal

from nflib.distributions import NormalsAndAngles, PaddedNormal, ScaledNoise, StandardNormal
from nflib.flows import Flow, TARFlow
from nflib.montecarlo import BoltzmannDensity, Mixture, importance_sample
from tests.nflib.cases import FirstTokens
from tests.perturb import perturb

SCALES, WEIGHTS = (1.0, 1.5), (0.9, 0.1)


def peer(x: torch.Tensor) -> torch.Tensor:
    weights, scales = torch.tensor(WEIGHTS), torch.tensor(SCALES)
    mixture = MixtureSameFamily(Categorical(weights.expand(*x.shape, 2)), Normal(0.0, scales.expand(*x.shape, 2)))
    return mixture.log_prob(x).flatten(1).sum(dim=1)


def test_density_and_draws():
    noise = ScaledNoise(StandardNormal((50, 2)), SCALES, WEIGHTS)
    x = noise.draw(2000, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(noise.log_prob(x), peer(x))
    second, fourth = (sum(w * s**k for w, s in zip(WEIGHTS, SCALES, strict=True)) for k in (2, 4))
    error = 1 / math.sqrt(x.numel())
    assert abs(x.square().mean() - second) < 4 * error * math.sqrt(3 * fourth - second**2)
    assert abs(x.pow(4).mean() - 3 * fourth) < 0.05 * 3 * fourth
    assert torch.equal(x, noise.draw(2000, generator=torch.Generator().manual_seed(0)))
    # Each number has a scale of its own: squares within an event are no more alike than those of different events.
    assert abs(x.square().mean(dim=(1, 2)).var() * 100 / (3 * fourth - second**2) - 1) < 0.2


def test_one_scale_is_a_temperature():
    noise, x = ScaledNoise(StandardNormal((3,)), [1.2]), torch.randn(5, 3, dtype=torch.float64)
    torch.testing.assert_close(noise.log_prob(x), Normal(0.0, 1.2).log_prob(x).sum(dim=1), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("scales", "weights"), [((50.0,), None), ((0.5, 50.0), (0.75, 0.25)), ((0.015625,), None)])
def test_single_precision_loses_no_digits(scales, weights):
    noise = ScaledNoise(StandardNormal((64,)), scales, weights)
    x = torch.cat([noise.draw(20, generator=torch.Generator().manual_seed(0)), torch.full((1, 64), 1e4)])
    wide = noise.log_prob(x.double())
    torch.testing.assert_close(noise.log_prob(x).double(), wide, rtol=1e-6, atol=1e-4)
    assert not noise.log_prob(torch.full((1, 64), 1e25)).isnan().any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_in_the_dtype_of_a_flow(dtype):
    noise = ScaledNoise(StandardNormal((50, 2)), SCALES, WEIGHTS).to(dtype)
    x = noise.draw(4, generator=torch.Generator().manual_seed(0))
    assert x.dtype == torch.promote_types(dtype, torch.float32)
    torch.testing.assert_close(noise.log_prob(x).float(), peer(x.float()), rtol=0, atol=1e-3)


def test_padding_has_no_density():
    noise = ScaledNoise(PaddedNormal(2, FirstTokens()), SCALES, WEIGHTS)
    lengths = torch.tensor([6, 1])
    x = noise.draw(6, lengths, torch.Generator().manual_seed(0))
    assert (x[1, :, 1:] == 0).all() and (x[1, :, :1] != 0).all()
    x = x[:, 0]
    expected = torch.stack([peer(x[:1]), peer(x[1:, :1])]).flatten()
    torch.testing.assert_close(
        noise.log_prob(x + torch.tensor([0.0, 1.0])[:, None, None] * (x == 0), lengths), expected
    )


@torch.no_grad()
def test_a_flow_on_it_is_exact_and_shares_weights():
    torch.manual_seed(0)
    flow = perturb(TARFlow((6,), 2, 16, 2, 1, head_dim=8, conditional="spline", num_bins=4), 0.2)
    flow.double()  # maps of random weights are stiff
    wide = flow.with_scaled_noise(*SCALES, weights=WEIGHTS)
    assert type(wide) is TARFlow and isinstance(flow._distribution, StandardNormal)
    assert all(one is other for one, other in zip(flow.parameters(), wide.parameters(), strict=True))
    x, log_prob = wide.sample_and_log_prob(500, seed=0)
    torch.testing.assert_close(log_prob, wide.log_prob(x), rtol=0, atol=1e-6)
    noise = flow.encode(x)
    ratio = peer(noise) - flow._distribution.log_prob(noise)
    torch.testing.assert_close(log_prob - flow.log_prob(x), ratio, rtol=0, atol=1e-6)
    # As a proposal, alone and with the flow itself: the normaliser of a normal.
    target = BoltzmannDensity(lambda x: 0.5 * x.double().square().sum(dim=-1))
    for proposal in (wide, Mixture([flow, flow.with_scaled_noise(1.3)], [0.8, 0.2])):
        samples = importance_sample(proposal, target, 4000, seed=1)
        assert abs(samples.log_normalizer - 3 * math.log(2 * math.pi)) < 4 * samples.log_normalizer_standard_error


def test_a_saved_flow_does_not_lose_its_noise(tmp_path):
    flow = TARFlow((6,), 2, 16, 1, 1, head_dim=8).with_scaled_noise(1.1)
    flow.save_pretrained(tmp_path / "flow")
    with pytest.raises(ValueError, match="holds no configuration"):
        TARFlow.from_pretrained(tmp_path / "flow")


def test_mistakes():
    for scales, weights in [((), None), ((1.0, -1.0), None), ((1.0,), (0.5, 0.5)), ((1.0, math.nan), None)]:
        with pytest.raises(ValueError, match="must be positive"):
            ScaledNoise(StandardNormal((2,)), scales, weights)
    with pytest.raises(ValueError, match="sum to 1"):
        ScaledNoise(StandardNormal((2,)), SCALES, (0.5, 0.4))
    with pytest.raises(ValueError, match="only normal noise"):
        Flow(nn.Identity(), ConditionalDiagonalNormal([2])).with_scaled_noise(1.1)  # type: ignore[arg-type]


def test_angles_are_not_scaled():
    with pytest.raises(ValueError, match="only normal noise can be scaled"):
        ScaledNoise(NormalsAndAngles((4, 2), [False, True]), [1.5])
