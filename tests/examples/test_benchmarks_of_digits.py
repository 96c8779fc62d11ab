"""The benchmarks of continuous flows on digits run, at toy size, and print every row."""

import runpy
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
TOY = ("--num_seeds", 1, "--samples", 100, "--bits", 2, "--channels", 16)
COUPLINGS = [
    "training pictures",
    "the same, there and back",
    "TARFlow itself",
    "independent",
    "optimal transport",
    "TARFlow",
]


def table(name, monkeypatch, capsys, *options):
    """The cells of the last table that a benchmark prints."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--threads", "1", "--seconds", "0.5", *map(str, options)])
    runpy.run_path(str(BENCHMARKS / f"{name}.py"), run_name="__main__")
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_couplings(monkeypatch, capsys):
    rows = table("continuous_digits", monkeypatch, capsys, *TOY)
    assert [row[0] for row in rows] == COUPLINGS
    assert rows[0][3] == rows[1][3]  # Gaussianised, pixels lose nothing
    # Real pictures are nearer to real ones than those of flows that are hardly trained.
    assert all(float(rows[0][3]) < float(row[3].split()[0]) for row in rows[2:])


def test_latents(monkeypatch, capsys):
    rows = table("continuous_digits", monkeypatch, capsys, *TOY, "--latents", "--autoencoder_seconds", 1)
    assert [row[0] for row in rows] == COUPLINGS
    of_a_latent, of_a_pixel = ([float(row[column].split()[0]) for row in rows[2:]] for column in (6, 7))
    # On one autoencoder the two differ by what does not depend on the flow: 32 latents stand for 64 pixels.
    rest = [bits - 0.5 * latent for bits, latent in zip(of_a_pixel, of_a_latent, strict=True)]
    assert rest == pytest.approx([rest[0]] * len(rest), abs=2e-3)  # they are printed to a thousandth


def test_masses_of_levels_sum_to_one(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from digit_spaces import log_mass

    levels, mean = torch.arange(17.0)[:, None], torch.tensor([0.0, 3.2, 16.0])
    for width in (0.05, 1.0, 20.0):
        assert log_mass(mean, levels, torch.tensor(width)).exp().sum(0) == pytest.approx([1.0, 1.0, 1.0])


def test_from_a_tarflow_to_a_map(monkeypatch, capsys):
    rows = table("continuous_bridge", monkeypatch, capsys, "--num_samples", 20, "--num_pairs", 50)
    assert [row[1] for row in rows] == ["TARFlow", "map, 1", "map, 2", "map, 4"] * 2


@pytest.mark.slow
def test_restoration(monkeypatch, capsys, tmp_path):
    options = ["--output", tmp_path, "--pictures", 1, "--seeds", 2, "--particles", 4, "--moves", 1, "--blocks", 1]
    rows = table("restoration", monkeypatch, capsys, *options)
    assert [row[0] for row in rows] == ["lower half missing", "blurred", "4 × 4 pixels"]
    assert (tmp_path / "restored.png").stat().st_size > 1000
