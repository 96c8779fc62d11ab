"""Torch's own generators."""

import pytest
import torch

from nflib.devices import seed_torch


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
