"""Densities of times: samples follow them, they integrate to one, and numbers of Stable Diffusion 3's convention."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from nflib.continuous import LogitNormalTimes, ModeTimes, UniformTimes, UShapedTimes, cosmap

DENSITIES = [
    UniformTimes(),
    LogitNormalTimes(),
    LogitNormalTimes(0.5, 0.7),
    UShapedTimes(4.0),
    UShapedTimes(0.5),
]


@pytest.mark.parametrize("times", DENSITIES, ids=repr)
def test_the_density_integrates_to_one_and_is_that_of_the_samples(times):
    grid = torch.linspace(0, 1, 4001, dtype=torch.float64)
    middle = 0.5 * (grid[1:] + grid[:-1])
    below = torch.cat([torch.zeros(1), times.log_prob(middle).exp().cumsum(0) / 4000])
    assert float(below[-1]) == pytest.approx(1, abs=1e-5)
    t = times.sample(2000, torch.Generator().manual_seed(0))
    assert bool(((t >= 0) & (t <= 1)).all())

    def distribution(values):
        return below[(torch.as_tensor(values) * 4000).round().long()].numpy()

    assert stats.kstest(t.numpy(), distribution).pvalue > 0.01


@pytest.mark.parametrize("times", DENSITIES, ids=repr)
def test_no_density_outside(times):
    assert bool(torch.isneginf(times.log_prob(torch.tensor([-0.1, 1.1]))).all())


def test_a_logit_normal_has_no_density_at_the_ends():
    assert bool(torch.isneginf(LogitNormalTimes().log_prob(torch.tensor([0.0, 1.0]))).all())


def test_closed_forms():
    t = torch.tensor([0.1, 0.6], dtype=torch.float64)
    a = 4.0
    expected = (torch.exp(a * t) + torch.exp(a * (1 - t))) * a / (2 * (math.exp(a) - 1))
    torch.testing.assert_close(UShapedTimes(a).log_prob(t).exp(), expected)
    normal = torch.distributions.Normal(torch.tensor(0.5, dtype=torch.float64), 0.7)
    expected = normal.log_prob(torch.logit(t)) - torch.log(t * (1 - t))
    torch.testing.assert_close(LogitNormalTimes(0.5, 0.7).log_prob(t), expected)


@pytest.mark.parametrize("scale", [1.29, -0.8])
def test_mode_times_are_distributed_as_their_map_of_a_uniform_number_has_it(scale):
    u = torch.linspace(1, 0, 4001, dtype=torch.float64)
    mapped = ModeTimes(scale)._time(u)
    assert bool((mapped.diff() > 0).all())
    t = ModeTimes(scale).sample(2000, torch.Generator().manual_seed(0))
    assert bool(((t >= 0) & (t <= 1)).all())
    assert stats.kstest(t.numpy(), lambda values: np.interp(values, mapped, 1 - u)).pvalue > 0.01


def test_numbers_of_the_convention_of_stable_diffusion():
    # u -> 1 - u - 1.29 (cos(pi u / 2)^2 - 1 + u) at u = 0.1 and 0.9: they sum to one, so that time may be reversed.
    u = torch.tensor([0.1, 0.9], dtype=torch.float64)
    expected = torch.tensor([0.80256855, 0.19743145], dtype=torch.float64)
    torch.testing.assert_close(ModeTimes(1.29)._time(u), expected, atol=1e-7, rtol=0)
    torch.testing.assert_close(cosmap(torch.tensor([0.0, 0.25, 0.5])), torch.tensor([2.0, 3.2, 4.0]) / math.pi)
    # A logit-normal of the other direction of time has the other mean.
    t = torch.tensor([0.3], dtype=torch.float64)
    torch.testing.assert_close(LogitNormalTimes(0.4).log_prob(t), LogitNormalTimes(-0.4).log_prob(1 - t))


def test_times_and_weights_are_those_of_diffusers():
    """Its weights are of noise levels, which are 1 - t here."""
    from diffusers import training_utils as peer

    def drawn(scheme, **settings):
        return peer.compute_density_for_timestep_sampling(
            scheme, 1000, generator=torch.Generator().manual_seed(0), **settings
        )

    for times, theirs in (
        (ModeTimes(1.29), drawn("mode", mode_scale=1.29)),
        (LogitNormalTimes(0.2, 0.7), drawn("logit_normal", logit_mean=0.2, logit_std=0.7)),
    ):
        torch.testing.assert_close(times.sample(1000, torch.Generator().manual_seed(0)), theirs)
    noise = torch.linspace(0, 1, 11)
    torch.testing.assert_close(cosmap(1 - noise), peer.compute_loss_weighting_for_sd3("cosmap", noise))


@pytest.mark.parametrize(
    "make",
    [lambda: LogitNormalTimes(0.0, 0.0), lambda: ModeTimes(1.8), lambda: ModeTimes(-1.1), lambda: UShapedTimes(0.0)],
)
def test_settings_without_a_density_are_refused(make):
    with pytest.raises(ValueError, match="must"):
        make()
