"""benchmarks/continuous.py: its densities are right, it runs without the other packages, and names what is missing."""

from __future__ import annotations

import math
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return import_module("continuous")


@pytest.mark.parametrize("name", ["eight_gaussians", "checkerboard"])
def test_densities(name, benchmark) -> None:
    density = getattr(benchmark, name)()
    axis = torch.linspace(-4, 4, 801)[:-1].double() + 0.005
    log_prob = density.log_prob(torch.cartesian_prod(axis, axis))
    assert abs(log_prob.exp().sum() * 0.01**2 - 1) < 1e-6
    x = density.sample(20_000, torch.Generator().manual_seed(0))
    entropy = torch.where(log_prob.isfinite(), log_prob.exp() * log_prob, 0.0).sum() * 0.01**2
    assert abs(density.log_prob(x).mean() - entropy) < 4 / math.sqrt(20_000)


def test_the_table(benchmark, monkeypatch, capsys) -> None:
    find = benchmark.importlib.util.find_spec
    monkeypatch.setattr(benchmark.importlib.util, "find_spec", lambda name: None if name == "zuko" else find(name))
    options = ["--densities", "8 Gaussians", "spirals", "--models", "nflib", "zuko", "--channels", "8"]
    options += ["--seconds", "0.2", "--samples", "20", "--threads", "1"]
    for name, value in {"NUM_HELD_OUT": 20, "NUM_ALONE": 2, "NUM_FINE": 4}.items():
        monkeypatch.setattr(benchmark, name, value)
    monkeypatch.setattr(sys, "argv", ["continuous.py", *options])
    benchmark.main()
    out = capsys.readouterr().out
    assert "zuko is left out: install it with pip install zuko." in out
    table = [line for line in out.splitlines() if line.startswith("|")]
    assert len(table) == 2 + 3 + 2 and sum("nflib, map" in line for line in table) == 2
