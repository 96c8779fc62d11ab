"""Torch's own generators, and bases that stay on a device of their own."""

import pytest
import torch
from nflows.transforms import LULinear

from nflib.flows import Flow
from nflib.random import seed_torch


def test_seeds_are_those_of_torch_and_none_is_remembered():
    with torch.random.fork_rng():
        torch.manual_seed(7)
        expected = torch.rand(3)
        seed_torch(7)
        assert torch.equal(torch.rand(3), expected)
        if torch.accelerator.is_available():
            pytest.skip("an accelerator is seeded at once")
        waiting = len(torch.cuda._queued_calls)
        seed_torch(8)
        assert len(torch.cuda._queued_calls) == waiting


@pytest.mark.cuda
def test_a_torch_distribution_is_a_base_on_a_device():
    """It stays where it is: draws and densities come from there."""
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    base = torch.distributions.Independent(torch.distributions.Normal(torch.zeros(6), torch.ones(6)), 1)
    flow = Flow(LULinear(6), base).eval().cuda()
    x, log_prob = flow.sample_and_log_prob(5, seed=0)
    assert x.device.type == log_prob.device.type == "cuda"
    torch.testing.assert_close(flow.log_prob(x), log_prob)


def test_noise_of_a_torch_distribution_goes_where_the_flow_is():
    base = torch.distributions.Independent(torch.distributions.Normal(torch.zeros(6), torch.ones(6)), 1)
    flow = Flow(LULinear(6), base).to("meta")
    assert flow._noise(5, None, None)[0].device.type == "meta"
