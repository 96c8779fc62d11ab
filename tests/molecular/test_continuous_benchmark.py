"""The benchmark of a molecule by continuous flows runs on frames of a short simulation and prints every row."""

import runpy
import sys
from pathlib import Path

import pytest

from molecular.commands import main

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.slow
def test_continuous_flows_of_a_peptide(monkeypatch, capsys, tmp_path):
    options = ["--num_replica_groups", "8", "--num_temperatures", "1", "--hot_ps", "0", "--equilibration_ps", "0.1"]
    options += ["--picoseconds", "0.5", "--save_ps", "0.02", "--progress", "false"]
    main(["simulate", "--peptide", "GG", "--output", str(tmp_path / "GG"), *options])
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    arguments = ["--data", str(tmp_path / "GG"), "--seconds", "0.5", "--num_samples", "5", "--threads", "1"]
    monkeypatch.setattr(sys, "argv", ["continuous_molecule.py", *arguments])
    runpy.run_path(str(BENCHMARKS / "continuous_molecule.py"), run_name="__main__")
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][1:]
    names = ["autoregressive", "Heun(num_steps=4)", "Heun(num_steps=8)", "RK4(num_steps=8)", "flow map, 4 passes"]
    assert len(rows) == 5 and all(name in row for name, row in zip(names, rows, strict=True))
