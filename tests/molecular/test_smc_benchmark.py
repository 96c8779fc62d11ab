"""The weaker proposals of benchmarks/smc_molecule.py: their densities are exact."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest
import torch

from molecular.molecule.peptide import Peptide
from molecular.sampling import load_flow


def test_widened_flow(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    flow = load_flow(Peptide("Ace-A-Nme")).flow
    widened = import_module("smc_molecule").WidenedFlow(flow, 1.25)
    x, log_prob = widened.sample_and_log_prob(6, seed=0)
    torch.testing.assert_close(widened.log_prob(x), log_prob, atol=2e-3, rtol=1e-5)
    noise = flow.transform_to_noise(x)
    size = noise[0].numel()
    assert size == 60
    narrow = -0.5 * noise.square().flatten(1).sum(1)
    expected = flow.log_prob(x) - narrow + narrow / 1.25**2 - size * torch.tensor(1.25).log()
    torch.testing.assert_close(log_prob, expected, atol=2e-3, rtol=1e-5)
    fixed, rest = widened.split_coordinates()
    with torch.no_grad():
        y, logabsdet = fixed(x)
        torch.testing.assert_close(rest.log_prob(y) + logabsdet, log_prob, atol=2e-3, rtol=1e-5)
    with pytest.raises(ValueError):
        import_module("smc_molecule").WidenedFlow(flow, 0.0)
