"""benchmarks/continuous.py: its densities are right, it runs without the other packages, and names what is missing."""

from __future__ import annotations

import math
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

from nflib.continuous import FlowMatching, Heun, MLPVelocity, ODEFlow

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


@pytest.mark.parametrize("name", ["eight_gaussians", "checkerboard", "spirals"])
def test_trained_densities_integrate_to_one(name, benchmark) -> None:
    torch.manual_seed(0)
    density, flow = getattr(benchmark, name)(), ODEFlow(MLPVelocity(2, channels=32), (2,), solver=Heun(8))
    generator, objective = torch.Generator().manual_seed(0), FlowMatching()
    optimizer = torch.optim.AdamW(flow.parameters(), lr=3e-3)
    for _ in range(200):
        loss, _ = objective(flow, {"inputs": density.sample(256, generator)}, generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    axis = (torch.arange(120).double() + 0.5) / 120 * 12 - 6
    with torch.no_grad():
        integral = flow.double().log_prob(torch.cartesian_prod(axis, axis)).exp().sum() * 0.1**2
    assert abs(float(integral) - 1) < 1e-4


def test_mean_weights(monkeypatch, capsys) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr(sys, "argv", ["continuous_densities.py", "--num_samples", "200", "--threads", "1"])
    import_module("continuous_densities").main()
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][1:]
    assert len(rows) == 13 and sum("refused: the map" in row for row in rows) == 1
    exact = next(row for row in rows if "RK4(num_steps=32)" in row and "trace" in row)
    assert float(exact.split("|")[3].split()[0]) == pytest.approx(1, abs=1e-3)
