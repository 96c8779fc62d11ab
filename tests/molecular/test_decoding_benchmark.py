"""The benchmark of decoding runs: all its decoders give the same conformations, of splines and of affine maps."""

import runpy
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_decoders_agree(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    options = ["--flows", "Ace-A-Nme", "Prose, small", "--batch", "2", "--rounds", "1", "--threads", "1"]
    decoders = ["sequential", "re-concatenated", "Jacobi"]
    monkeypatch.setattr(sys, "argv", ["decoding.py", *options, "--decoders", *decoders, "--processor_time"])
    runpy.run_path(str(BENCHMARKS / "decoding.py"), run_name="__main__")
    rows = [line.split("|") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    cells = [dict(zip(map(str.strip, rows[0]), map(str.strip, row), strict=True)) for row in rows]
    found = {(cell["flow"], cell["decoder"]): cell for cell in cells if cell["flow"] != "flow"}
    for flow, tokens in {"Ace-A-Nme": 20, "Prose, small": 33}.items():
        assert float(found[flow, "sequential"]["sweeps a map"]) == tokens
        assert float(found[flow, "re-concatenated"]["error"]) < 1e-5
        assert float(found[flow, "Jacobi"]["error"]) < 1e-2 and float(found[flow, "Jacobi"]["sweeps a map"]) < tokens
