"""The equilibration report: autocorrelation times of known processes, drifts and temperatures with their errors."""

import math

import numpy as np
import pytest
import torch

from molecular.dynamics import TemperingSettings, concerns, parallel_tempering, report_lines
from molecular.dynamics.autocorrelation import mixing
from molecular.dynamics.report import POSITIVE_PHI, ROTAMERS, _drift
from molecular.dynamics.statistics import Statistics


def autoregressive(num_series: int, length: int, correlation: float, seed: int = 0) -> np.ndarray:
    """x_t = c x_{t-1} + noise, stationary, of variance 0.01: its autocorrelation is c^t."""
    rng = np.random.default_rng(seed)
    x = np.empty((num_series, length))
    x[:, 0] = rng.normal(size=num_series)
    for t in range(1, length):
        x[:, t] = correlation * x[:, t - 1] + math.sqrt(1 - correlation**2) * rng.normal(size=num_series)
    return 0.1 * x


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.9])
def test_autocorrelation_time_of_a_known_process(correlation):
    measured = mixing(autoregressive(32, 2000, correlation))
    expected = 0.5 * (1 + correlation) / (1 - correlation)
    assert measured is not None and measured.resolved
    # Three standard errors of a sum over lags up to 5 tau (Madras and Sokal, J. Stat. Phys. 50, 109, 1988).
    error = 3 * math.sqrt(2 * (10 * expected + 1) / 64000)
    assert measured.time == pytest.approx(expected, rel=error)
    assert measured.effective_sample_size == pytest.approx(64000 / (2 * measured.time))


def test_effective_sample_size_is_that_of_the_mean():
    """The variance of a mean over N correlated angles is that of one over its effective sample size."""
    series = autoregressive(4000, 200, 0.8, seed=1)
    measured = mixing(series)
    assert measured is not None
    independent = series.var() / series.mean(axis=1).var()
    assert measured.effective_sample_size / 4000 == pytest.approx(independent, rel=0.1)


def test_a_slow_part_beneath_fast_motion_is_seen():
    """A tenth of the variance that relaxes in 32 frames: rho(t) = 0.1 c^t from the first frame on."""
    correlation, share = math.exp(-1 / 32), 0.1
    fast = autoregressive(4, 10000, 0.0)
    slow = autoregressive(4, 10000, correlation, seed=1)
    measured = mixing(math.sqrt(1 - share) * fast + math.sqrt(share) * slow)
    assert measured is not None and measured.resolved
    whole = 0.5 * (1 + correlation) / (1 - correlation)
    assert measured.time == pytest.approx((1 - share) * 0.5 + share * whole, rel=0.25)
    assert 0.6 * whole < measured.slowest < 1.5 * whole


def test_angles_around_180_degrees_do_not_jump():
    series = autoregressive(8, 1000, 0.7)
    here, there = mixing(series), mixing((series + math.pi + math.pi) % (2 * math.pi) - math.pi)
    assert here is not None and there is not None
    assert here.time == pytest.approx(there.time, rel=1e-6)


def test_series_that_stay_in_different_places_are_not_independent():
    series = autoregressive(8, 500, 0.0) + np.repeat([0.0, 2.0], 4)[:, None]
    measured = mixing(series)
    assert measured is not None and not measured.resolved
    assert measured.effective_sample_size < 16


def test_no_autocorrelation_of_what_never_moves_or_is_too_short():
    assert mixing(np.zeros((4, 100))) is None
    assert mixing(np.random.default_rng(0).normal(size=(4, 3))) is None


def test_drift_is_the_slope_of_the_energy():
    statistics = Statistics.zeros(3, 2, torch.device("cpu"))
    slopes = torch.tensor([[1.0, -2.0], [2.0, -2.0], [3.0, -2.0]], dtype=torch.float64)  # kJ/mol/ps
    for step in range(50):
        time = 0.1 * step
        statistics.measure(torch.tensor([[300.0, 400.0], [301.0, 400.0], [302.0, 400.0]]), -500 + slopes * time, time)
    summary = statistics.summary()
    assert summary["energy_drift_kJ_per_mol_per_ns"] == pytest.approx([2000.0, -2000.0])
    assert summary["energy_drift_error_kJ_per_mol_per_ns"] == pytest.approx([1000 / math.sqrt(3), 0.0], abs=1e-6)
    assert summary["kinetic_temperature_K"] == pytest.approx([301.0, 400.0])
    assert summary["kinetic_temperature_error_K"] == pytest.approx([1 / math.sqrt(3), 0.0])
    assert summary["measurements_per_temperature"] == 150


class Harmonic:
    def energy_and_force(self, x):
        return 500.0 * x.square().sum(dim=(1, 2)), -1000.0 * x


def run(num_steps: int, equilibration_steps: int, num_replica_groups: int = 16):
    settings = TemperingSettings(
        (300.0, 400.0), num_replica_groups=num_replica_groups, timestep=0.005, friction=5.0, swap_interval=10,
        save_interval=20, equilibration_steps=equilibration_steps,
    )  # fmt: skip
    return parallel_tempering(
        Harmonic(), torch.tensor([12.0, 16.0]), torch.zeros(2, 3), settings, num_steps=num_steps,
        generator=torch.Generator().manual_seed(0), progress=False,
    ).report  # fmt: skip


def test_equilibrated_run_has_no_drift_and_one_from_the_minimum_has():
    calm = run(4000, 1000)
    for drift, error in zip(
        calm["energy_drift_kJ_per_mol_per_ns"], calm["energy_drift_error_kJ_per_mol_per_ns"], strict=True
    ):
        assert abs(drift) < 4 * error
    assert concerns(calm) == []
    cold = run(60, 0, num_replica_groups=64)  # begins at the minimum
    assert any("drifts by" in sentence for sentence in concerns(cold))


def jumping(num_series: int, length: int, shares: np.ndarray, seed: int = 0) -> np.ndarray:
    """Angles of two states, 60 and -80 degrees, that are left one frame in 20; shares: of the first, frame by frame."""
    rng = np.random.default_rng(seed)
    inside = rng.random((num_series, length)) < shares
    for t in range(1, length):
        stays = rng.random(num_series) > 0.05
        inside[stays, t] = inside[stays, t - 1]
    return np.deg2rad(np.where(inside, 60.0, -80.0))


def test_a_rare_torsion_that_drifts_is_told():
    """From 11 to 2 % of phi > 0, as where replicas begin with random torsions; a constant share raises no alarm."""
    length = 1600
    falling = 0.02 + 0.09 * np.exp(-np.arange(length) / 600)
    assert _drift(jumping(64, length, falling), [POSITIVE_PHI])["p_value"] < 1e-4
    assert _drift(jumping(64, length, falling), ROTAMERS)["p_value"] < 1e-4
    alarms = [_drift(jumping(64, length, np.full(length, 0.03), seed), ROTAMERS)["p_value"] for seed in range(40)]
    assert np.mean(np.array(alarms) < 0.05) <= 0.15
    assert _drift(jumping(3, length, falling), ROTAMERS) is None
    row = {"torsion": "phi 1", "frames": 25600, "effective_sample_size": 900.0, "resolved": True}
    row["drift"] = {"first_half": 0.08, "second_half": 0.03, "p_value": 1e-5}
    (sentence,) = concerns(run(4000, 1000) | {"torsions": [row]})
    assert "phi 1 drifts: 8.0% of the first half and 3.0% of the second" in sentence


def test_report_is_a_short_table():
    report = run(400, 100) | {
        "torsions": [
            {"torsion": "phi 1", "frames": 320, "autocorrelation_ps": 0.21, "effective_sample_size": 30.0,
             "resolved": True, "jumps": 4},
            {"torsion": "CA-CB of VAL 2", "frames": 320, "autocorrelation_ps": None, "effective_sample_size": None,
             "resolved": False},
        ]
    }  # fmt: skip
    lines = list(report_lines(report))
    earlier = {name.replace("replica_groups", "ladders"): value for name, value in report.items()}
    assert list(report_lines(earlier)) == lines
    assert lines[0].startswith("2 temperatures x 16 replica groups, 0.08 ns")
    assert lines[2].split()[0] == "300.0" and "±" in lines[2]
    assert "phi 1" in lines[5] and "0.21" in lines[5]
    assert lines[-1].startswith("Note: ") and any("phi 1 has 30 independent samples" in line for line in lines)
    single = list(report_lines(run(40, 0, num_replica_groups=1)))
    assert "±" not in "".join(single)
    assert len(list(report_lines(run(0, 10)))) == 4  # nothing was measured


def test_a_drift_that_all_replica_groups_share_is_one():
    angle = np.where(np.arange(40) < 20, -1.0, 1.0) * np.ones((32, 1))
    drift = _drift(angle, [(0.0, math.pi)])
    assert drift == {"first_half": 0.0, "second_half": 1.0, "p_value": 0.0}
    assert _drift(np.ones((32, 40)), [(0.0, math.pi)])["p_value"] == 1.0
