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


def test_noise_of_a_torch_distribution_goes_where_the_flow_is():
    base = torch.distributions.Independent(torch.distributions.Normal(torch.zeros(6), torch.ones(6)), 1)
    flow = Flow(LULinear(6), base).to("meta")
    assert flow._noise(5, None, None)[0].device.type == "meta"
