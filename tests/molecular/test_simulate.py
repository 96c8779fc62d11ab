"""Langevin dynamics, parallel tempering, the simulation folder and its reader, against closed forms."""

import json
import math
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import openmm
import pytest
import torch
from torch import Tensor

from molecular.data.ensembles import Ensemble, load_ensemble, save_reference, split_by_replica_group
from molecular.dynamics import (
    Frames,
    FrameWriter,
    Langevin,
    TemperingSettings,
    Trajectories,
    geometric_temperatures,
    list_shards,
    maxwell_velocities,
    parallel_tempering,
    relax,
    simulate,
    torsion_statistics,
)
from molecular.molecule.constants import MOLAR_GAS_CONSTANT
from molecular.molecule.molecule import Molecule
from molecular.molecule.topology import Residue, Topology


class Harmonic:
    """k x^2 / 2 for every coordinate, kJ/mol and nm."""

    def __init__(self, stiffness: float = 1000.0) -> None:
        self.stiffness = stiffness

    def energy_and_force(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return 0.5 * self.stiffness * x.square().sum(dim=(1, 2)), -self.stiffness * x


class TiltedDoubleWell:
    """h (x^2 - 1)^2 + s x along the first coordinate of one particle, harmonic along the others."""

    height, tilt, stiffness = 30.0, 1.5, 50.0

    def profile(self, x: np.ndarray) -> np.ndarray:
        return self.height * (x**2 - 1.0) ** 2 + self.tilt * x

    def energy_and_force(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a, b = x[:, 0, 0], x[:, 0, 1:]
        energy = self.height * (a.square() - 1.0).square() + self.tilt * a + 0.5 * self.stiffness * b.square().sum(-1)
        along = -4.0 * self.height * a * (a.square() - 1.0) - self.tilt
        return energy, torch.cat([along[:, None], -self.stiffness * b], dim=-1)[:, None]

    def share_right(self, temperature: float) -> float:
        grid = np.linspace(-2.5, 2.5, 20001)
        weight = np.exp(-self.profile(grid) / (MOLAR_GAS_CONSTANT * temperature))
        return float(weight[grid > 0].sum() / weight.sum())


class Poisoned(Harmonic):
    """Harmonic, but NaN (or a blow-up that stays finite) for chosen replicas from chosen calls on."""

    def __init__(self, calls: dict[int, list[int]], value: float = math.nan) -> None:
        super().__init__()
        self.calls, self.value, self.call = calls, value, 0

    def energy_and_force(self, x: Tensor) -> tuple[Tensor, Tensor]:
        energy, force = super().energy_and_force(x)
        self.call += 1
        for replica in self.calls.get(self.call, []):
            force[replica] = self.value
        return energy, force


class Killed(Harmonic):
    """Harmonic, but the process dies at a given call."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.left = after

    def energy_and_force(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return super().energy_and_force(x)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


MASSES = torch.tensor([1.0, 12.0, 16.0])


def short_run(energy, folder: Path | None = None, seed: int = 0, **changes) -> Trajectories:
    num_steps = changes.pop("num_steps", 400)
    options = {
        "temperatures": (300.0, 400.0, 550.0),
        "num_replica_groups": 4,
        "timestep": 0.005,
        "swap_interval": 10,
        "save_interval": 15,
        "equilibration_steps": 50,
        "saved_temperatures": 2,
    } | changes
    return parallel_tempering(
        energy,
        MASSES,
        torch.zeros(3, 3),
        TemperingSettings(**options),
        num_steps=num_steps,
        generator=generator(seed),
        checkpoint=folder,
        checkpoint_seconds=0.0,
        progress=False,
    )


def assert_same_frames(a: Frames | None, b: Frames | None) -> None:
    assert a is not None and b is not None
    for name, array in a.arrays().items():
        np.testing.assert_array_equal(array, b.arrays()[name], err_msg=name)


# The integrator


def test_maxwell_velocities_have_the_variance_of_their_mass_and_temperature():
    temperatures = torch.tensor([300.0, 900.0]).repeat_interleave(20000)
    v = maxwell_velocities(MASSES, temperatures, generator())
    for k, temperature in enumerate((300.0, 900.0)):
        measured = v[k * 20000 : (k + 1) * 20000].var(dim=(0, 2))
        torch.testing.assert_close(measured, MOLAR_GAS_CONSTANT * temperature / MASSES, rtol=0.03, atol=0.0)


def test_step_is_baoab():
    """Against BAOAB written out, one half kick at a time, in float64 and with the same noise."""
    masses, temperatures = MASSES.double(), torch.tensor([300.0, 600.0], dtype=torch.float64)
    energy, dt, friction = Harmonic(700.0), 0.004, 3.0
    x = torch.randn(2, 3, 3, generator=generator(1), dtype=torch.float64) * 0.05
    v = maxwell_velocities(masses, temperatures, generator(2))
    integrator = Langevin(masses, temperatures, dt, friction)
    force = energy.energy_and_force(x)[1]
    x_ours, v_ours = x.clone(), integrator.to_stored(v, force)
    _, force_ours = integrator.run(energy, x_ours, v_ours, force, 7, generator(3))
    noise, m = generator(3), masses[:, None]
    c = math.exp(-friction * dt)
    for _ in range(7):
        v = v + 0.5 * dt * energy.energy_and_force(x)[1] / m
        x = x + 0.5 * dt * v
        xi = torch.randn(v.shape, generator=noise, dtype=v.dtype)
        v = c * v + torch.sqrt((1 - c * c) * MOLAR_GAS_CONSTANT * temperatures[:, None, None] / m) * xi
        x = x + 0.5 * dt * v
        v = v + 0.5 * dt * energy.energy_and_force(x)[1] / m
    torch.testing.assert_close(x_ours, x, rtol=0, atol=1e-13)
    torch.testing.assert_close(integrator.to_full_step(v_ours, force_ours), v, rtol=0, atol=1e-11)


@pytest.mark.parametrize("swap_interval", [10, 10**9])
def test_harmonic_variances_are_exact_at_every_temperature(swap_interval):
    """Even at omega dt = 0.95 for the lightest atom, where a plain leapfrog variance would be 29 % off."""
    temperatures = (300.0, 500.0, 800.0)
    result = parallel_tempering(
        Harmonic(1000.0),
        MASSES,
        torch.zeros(3, 3),
        TemperingSettings(
            temperatures,
            num_replica_groups=64,
            timestep=0.03,
            friction=5.0,
            swap_interval=swap_interval,
            save_interval=20,
            equilibration_steps=400,
            saved_temperatures=3,
        ),
        num_steps=6000,
        generator=generator(),
        progress=False,
    )
    assert result.frames is not None
    for k, temperature in enumerate(temperatures):
        x = result.frames.positions[result.frames.temperature_index == k]
        assert len(x) == 64 * 300
        ratio = (x.astype(np.float64) ** 2).mean(axis=(0, 2)) / (MOLAR_GAS_CONSTANT * temperature / 1000.0)
        np.testing.assert_allclose(ratio, 1.0, atol=0.04)
    kinetic = result.report["kinetic_temperature_K"]
    np.testing.assert_allclose(np.array(kinetic) / temperatures, 1.0, atol=0.02)
    expected = 4.5 * MOLAR_GAS_CONSTANT * np.array(temperatures)
    np.testing.assert_allclose(np.array(result.report["energy_mean_kJ_per_mol"]) / expected, 1.0, atol=0.03)
    deviation = math.sqrt(4.5) * MOLAR_GAS_CONSTANT * np.array(temperatures)
    np.testing.assert_allclose(np.array(result.report["energy_std_kJ_per_mol"]) / deviation, 1.0, atol=0.05)


def test_relax_never_raises_the_energy_and_finds_the_minimum():
    start = torch.randn(5, 3, 3, generator=generator())
    energy = Harmonic()
    end = relax(energy, start, num_steps=2000)
    assert (energy.energy_and_force(end)[0] < 1e-3 * energy.energy_and_force(start)[0]).all()


# Parallel tempering


def double_well(temperatures: tuple[float, ...], num_steps: int) -> Trajectories:
    start = torch.tensor([[-1.0, 0.0, 0.0]])
    return parallel_tempering(
        TiltedDoubleWell(),
        torch.tensor([12.0]),
        start,
        TemperingSettings(
            temperatures,
            num_replica_groups=128,
            timestep=0.02,
            friction=2.0,
            swap_interval=10,
            save_interval=50,
            equilibration_steps=2000,
        ),
        num_steps=num_steps,
        generator=generator(),
        progress=False,
    )


def test_tempering_crosses_a_barrier_and_finds_the_boltzmann_ratio():
    well = TiltedDoubleWell()
    alone = double_well((300.0,), 2000)
    assert alone.frames is not None
    assert (alone.frames.positions[:, 0, 0] > 0).mean() < 0.02
    together = double_well(geometric_temperatures(300.0, 4000.0, 6), 8000)
    assert together.frames is not None
    right = (together.frames.positions[:, 0, 0] > 0).astype(np.float64)
    shares = np.array([right[together.frames.replica_group == i].mean() for i in range(128)])
    error = shares.std(ddof=1) / math.sqrt(128)
    assert 0.2 < well.share_right(300.0) < 0.3
    assert error < 0.02
    assert abs(shares.mean() - well.share_right(300.0)) < 4 * error
    assert together.report["round_trips"] > 100
    assert all(0.2 < rate < 0.95 for rate in together.report["swap_acceptance"])


def test_swap_acceptance_matches_the_closed_form():
    """Energies of d harmonic coordinates are Gamma(d/2) distributed; the acceptance follows by quadrature."""
    result = short_run(
        Harmonic(), num_replica_groups=64, num_steps=6000, friction=5.0, timestep=0.02, saved_temperatures=1
    )
    rng = np.random.default_rng(0)
    temperatures = (300.0, 400.0, 550.0)
    for pair, measured in enumerate(result.report["swap_acceptance"]):
        kt = MOLAR_GAS_CONSTANT * np.array(temperatures[pair : pair + 2])
        e = rng.gamma(4.5, size=(400000, 2)) * kt
        expected = np.minimum(1.0, np.exp((1 / kt[0] - 1 / kt[1]) * (e[:, 0] - e[:, 1]))).mean()
        assert measured == pytest.approx(expected, abs=0.02)


def test_saved_frames_carry_their_own_energy_time_and_place():
    result = short_run(Harmonic())
    frames = result.frames
    assert frames is not None and frames.positions.dtype == np.float32
    assert len(frames) == (400 // 15) * 4 * 2
    energy = Harmonic().energy_and_force(torch.from_numpy(frames.positions))[0].numpy()
    np.testing.assert_allclose(frames.energies, energy, rtol=1e-5)
    np.testing.assert_allclose(np.unique(frames.time), 0.005 * 15 * np.arange(1, 27))
    assert sorted(set(zip(frames.replica_group.tolist(), frames.temperature_index.tolist(), strict=True))) == [
        (group, k) for group in range(4) for k in range(2)
    ]


def test_replicas_in_float64_on_request():
    result = parallel_tempering(
        Harmonic(), MASSES, torch.zeros(3, 3, dtype=torch.float64),
        TemperingSettings((300.0, 400.0), num_replica_groups=2, save_interval=10), num_steps=20,
        generator=generator(), progress=False,
    )  # fmt: skip
    assert result.frames is not None and result.frames.positions.dtype == np.float32


def test_recentre_keeps_the_centre_of_mass_at_the_origin():
    class Free:
        def energy_and_force(self, x):
            return torch.zeros(len(x)), torch.zeros_like(x)

    for recentre in (True, False):
        frames = short_run(Free(), recentre=recentre).frames
        assert frames is not None
        centre = (frames.positions * MASSES.numpy()[:, None]).sum(1) / MASSES.sum().item()
        assert (np.abs(centre).max() < 1e-4) == recentre


def test_replicas_are_at_the_highest_temperature_before_they_are_at_their_own():
    """A hot stage, and the first frames after it: of a harmonic oscillator, whose energies tell temperatures."""
    common = {
        "num_replica_groups": 400,
        "num_steps": 1,
        "save_interval": 1,
        "saved_temperatures": 3,
        "swap_interval": 10_000,
    }
    common |= {"equilibration_steps": 0, "friction": 5.0, "timestep": 0.001}
    hot = short_run(Harmonic(), hot_steps=2000, **common).frames
    settled = short_run(Harmonic(), hot_steps=2000, **common | {"equilibration_steps": 2000}).frames
    assert hot is not None and settled is not None

    def temperatures(frames: Frames) -> list[float]:
        means = [frames.energies[frames.temperature_index == k].mean() for k in range(3)]
        return [float(mean / (4.5 * MOLAR_GAS_CONSTANT)) for mean in means]  # of nine coordinates

    assert temperatures(hot) == pytest.approx([550.0] * 3, rel=0.08)
    assert temperatures(settled) == pytest.approx([300.0, 400.0, 550.0], rel=0.08)


# Broken replicas


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e7])
def test_broken_replica_is_restarted_and_counted(value):
    result = short_run(Poisoned({94: [4], 203: [0, 3, 6, 9]}, value))
    assert result.frames is not None and np.isfinite(result.frames.positions).all()
    assert np.abs(result.frames.positions).max() < 1.0
    assert result.report["replicas_restarted"] == 5
    assert result.report["replicas_restarted_per_temperature"] == [4, 1, 0]
    assert np.isfinite(result.report["energy_mean_kJ_per_mol"]).all()


def test_all_replicas_broken_at_once_go_back_to_the_start():
    result = short_run(Poisoned({150: list(range(12))}))
    assert result.report["replicas_restarted"] == 12
    assert result.frames is not None and np.isfinite(result.frames.positions).all()


def test_sound_replicas_are_never_restarted():
    assert short_run(Harmonic(), num_steps=4000).report["replicas_restarted"] == 0


# Checkpoints


@pytest.mark.parametrize("hot_steps", [0, 97])
@pytest.mark.parametrize("after", [3, 60, 217, 449])
def test_resumed_run_equals_uninterrupted_bit_for_bit(tmp_path, after, hot_steps):
    whole = short_run(Harmonic(), hot_steps=hot_steps)
    with pytest.raises(KeyboardInterrupt):
        short_run(Killed(after), tmp_path, hot_steps=hot_steps)
    resumed = short_run(Harmonic(), tmp_path, hot_steps=hot_steps)
    assert_same_frames(whole.frames, resumed.frames)
    for name in (
        "kinetic_temperature_K",
        "energy_mean_kJ_per_mol",
        "swap_acceptance",
        "round_trips",
        "steps",
    ):
        assert resumed.report[name] == whole.report[name], name


def test_shard_written_after_the_last_checkpoint_is_not_counted_twice(tmp_path):
    whole = short_run(Harmonic())
    with pytest.raises(KeyboardInterrupt):
        short_run(Killed(300), tmp_path)
    last = list_shards(tmp_path)[-1]
    orphan = tmp_path / f"frames-{len(list_shards(tmp_path)):06d}.npz"
    orphan.write_bytes(last.read_bytes())
    (tmp_path / "frames-000001.npz.partial").write_bytes(b"half a file")
    assert_same_frames(whole.frames, short_run(Harmonic(), tmp_path).frames)


def test_finished_run_is_not_run_again_and_can_be_extended(tmp_path):
    whole = short_run(Harmonic(), num_steps=600)
    first = short_run(Harmonic(), tmp_path)
    # One call is the energy of the start; a second one would be a step.
    again = short_run(Killed(1), tmp_path)
    assert_same_frames(first.frames, again.frames)
    assert_same_frames(whole.frames, short_run(Harmonic(), tmp_path, num_steps=600).frames)


def test_frames_without_a_checkpoint_are_left_alone(tmp_path):
    short_run(Harmonic(), tmp_path)
    (tmp_path / "checkpoint.npz").unlink()
    before = list_shards(tmp_path)
    with pytest.raises(ValueError, match="holds frames but no checkpoint"):
        short_run(Harmonic(), tmp_path)
    assert list_shards(tmp_path) == before


def test_checkpoint_of_other_settings_is_refused(tmp_path):
    short_run(Harmonic(), tmp_path)
    with pytest.raises(ValueError, match=r"timestep 0\.005 then, 0\.002 now"):
        short_run(Harmonic(), tmp_path, timestep=0.002)


def test_damaged_checkpoint_and_missing_shard_are_named(tmp_path):
    short_run(Harmonic(), tmp_path)
    (tmp_path / "frames-000000.npz").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks frames-000000\.npz"):
        short_run(Harmonic(), tmp_path)
    (tmp_path / "checkpoint.npz").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match=r"checkpoint\.npz cannot be read"):
        short_run(Harmonic(), tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_replica_groups": 0}, "num_replica_groups must be positive"),
        ({"swap_interval": 0}, "swap_interval must be positive"),
        ({"friction": -1.0}, "must not be negative"),
        ({"saved_temperatures": 4}, "saved_temperatures is 4 but there are 3 temperatures"),
    ],
)
def test_impossible_settings(changes, message):
    with pytest.raises(ValueError, match=message):
        short_run(Harmonic(), **changes)


def test_impossible_replica_groups_and_starts():
    with pytest.raises(ValueError, match="positive and increase"):
        TemperingSettings((400.0, 300.0))
    with pytest.raises(ValueError, match=r"start has shape \(2, 4, 3\)"):
        settings = TemperingSettings((300.0,))
        parallel_tempering(Harmonic(), MASSES, torch.zeros(2, 4, 3), settings, num_steps=1, generator=generator())
    with pytest.raises(ValueError, match="relax the structure first"):
        short_run(Poisoned({1: [0]}))
    with pytest.raises(ValueError, match="0 < lowest < highest"):
        geometric_temperatures(900.0, 300.0, 4)
    assert geometric_temperatures(300.0, 900.0, 3) == pytest.approx((300.0, math.sqrt(300.0 * 900.0), 900.0))


# The folder and its reader


class Bead:
    """What `simulate` asks of a molecule, for four beads in harmonic wells."""

    name, temperature, num_atoms = "beads", 300.0, 4
    positions = np.array([[0.0, 0.0, 0.0], [0.13, 0.0, 0.0], [0.17, 0.13, 0.0], [0.3, 0.13, 0.05]])
    topology = Topology(
        ("C", "N", "CA", "C"),
        tuple("CNCC"),
        (Residue("ACE"), Residue("ALA", "2")),
        (0, 1, 1, 1),
        ((0, 1), (1, 2), (2, 3)),
    )

    def __init__(self, constraints: int = 0) -> None:
        self.system = openmm.System()
        for _ in range(4):
            self.system.addParticle(12.0)
        for _ in range(constraints):
            self.system.addConstraint(0, 1, 0.1)

    def pdb_string(self) -> str:
        return "END\n"

    def difference(self, other: Molecule, masses: bool = False) -> str | None:
        return None


def simulate_beads(folder: Path, peptide: Bead | None = None, **changes) -> Trajectories:
    options = {
        "picoseconds": 0.4,
        "hot_ps": 0.0,
        "highest_temperature": 900.0,
        "equilibration_ps": 0.1,
        "num_replica_groups": 6,
        "num_temperatures": 3,
        "timestep_ps": 0.002,
        "swap_ps": 0.02,
        "save_ps": 0.04,
        "progress": False,
        "energy": Harmonic(),
    } | changes
    return simulate(peptide or Bead(), folder, **options)


def test_simulate_writes_the_folder(tmp_path):
    result = simulate_beads(tmp_path, seed=7)
    names = {path.name for path in tmp_path.iterdir()}
    molecule = {"molecule.json", "system.xml", "topology.pdb"}
    assert names == molecule | {"settings.json", "report.json", "checkpoint.npz", "frames-000000.npz"}
    settings = json.loads((tmp_path / "settings.json").read_text())
    assert settings["seed"] == 7 and settings["timestep"] == 0.002 and settings["save_interval"] == 20
    assert settings["temperatures"] == pytest.approx([300.0, math.sqrt(300.0 * 900.0), 900.0])
    report = json.loads((tmp_path / "report.json").read_text())
    assert report == result.report
    assert report["simulated_ns"] == pytest.approx(18 * 0.5e-3)
    torsion = report["torsions"][0]
    assert torsion["torsion"] == "phi 1" and torsion["frames"] == 60 and 0 <= torsion["share_in_basin"] <= 1
    ensemble = load_ensemble(tmp_path, num_atoms=4)
    assert ensemble.positions.shape == (60, 4, 3) and ensemble.positions.dtype == torch.float32
    assert result.frames is not None
    np.testing.assert_array_equal(ensemble.positions.numpy(), result.frames.positions)
    assert len(load_ensemble(tmp_path, start_ps=0.3)) == 6 * 3


def test_a_simulation_that_would_save_no_frame_is_refused(tmp_path):
    """It ran to its end, and `train` then asked for it."""
    with pytest.raises(ValueError, match="no frame would be saved: picoseconds is 0.4, less than save_ps, 0.5"):
        simulate_beads(tmp_path, save_ps=0.5)


def test_fewer_picoseconds_than_there_are_leave_a_simulation_as_it_is(tmp_path, caplog):
    """settings.json then told the smaller number beside the frames of the larger one."""
    simulate_beads(tmp_path)
    settings = json.loads((tmp_path / "settings.json").read_text())
    report = simulate_beads(tmp_path, picoseconds=0.2).report
    assert json.loads((tmp_path / "settings.json").read_text()) == settings and report["steps"] == 250
    assert "holds 0.4 ps already, more than the 0.2 asked for; all of them stay." in caplog.text
    assert simulate_beads(tmp_path, picoseconds=0.6).report["steps"] == 350
    assert json.loads((tmp_path / "settings.json").read_text())["picoseconds"] == 0.6


def test_counts_of_numpy_are_taken_and_others_refused(tmp_path):
    of_numpy = simulate_beads(tmp_path / "numpy", num_replica_groups=np.int64(6), seed=np.int64(1))
    assert_same_frames(of_numpy.frames, simulate_beads(tmp_path / "plain", seed=1).frames)
    for wrong, words in (
        ({"num_replica_groups": 2.5}, "num_replica_groups must be an integer"),
        ({"seed": 10**25}, "64 bits"),
    ):
        with pytest.raises(ValueError, match=words):
            simulate_beads(tmp_path / "wrong", **wrong)
    assert not (tmp_path / "wrong").exists()


def test_a_simulation_of_an_earlier_version_is_read_and_goes_on(tmp_path):
    """Replica groups were ladders once."""
    whole, earlier = simulate_beads(tmp_path / "whole", picoseconds=0.6), tmp_path / "earlier"
    simulate_beads(earlier)
    (earlier / "settings.json").write_text(
        (earlier / "settings.json").read_text().replace("num_replica_groups", "num_ladders")
    )
    for path in (earlier / "checkpoint.npz", earlier / "frames-000000.npz"):
        arrays = dict(np.load(path))
        if "settings" in arrays:
            arrays["settings"] = np.array(str(arrays["settings"]).replace("num_replica_groups", "num_ladders"))
        if "replica_group" in arrays:
            arrays["ladder"] = arrays.pop("replica_group")
        np.savez(path, **arrays)
    assert len(load_ensemble(earlier).replica_group.unique()) == 6
    with pytest.raises(ValueError, match="num_replica_groups 6, not 5"):
        simulate_beads(earlier, num_replica_groups=5)
    assert_same_frames(simulate_beads(earlier, picoseconds=0.6).frames, whole.frames)


def test_simulate_depends_on_the_seed_alone(tmp_path):
    a, b, c = (simulate_beads(tmp_path / name, seed=s).frames for name, s in (("a", 1), ("b", 1), ("c", 2)))
    assert_same_frames(a, b)
    assert a is not None and c is not None and not np.array_equal(a.positions, c.positions)


def test_torsion_statistics_count_jumps_inside_a_replica_group_only(tmp_path):
    def quadruple(phi: float) -> np.ndarray:
        return np.array([[1.0, 0, 0], [0, 0, 0], [0, 0, 1.0], [math.cos(phi), math.sin(phi), 1.0]])

    # Two replica groups, interleaved in time as the simulation writes them: the first jumps twice, the second never.
    left, right = quadruple(math.radians(60.0)), quadruple(math.radians(-80.0))
    steps = [[left, right], [right, right], [left, right]]
    writer = FrameWriter(tmp_path)
    for t, pair in enumerate(steps):
        writer.add(
            Frames(
                positions=np.array(pair, dtype=np.float32),
                energies=np.zeros(2),
                temperature_index=np.zeros(2, dtype=np.int16),
                replica_group=np.arange(2, dtype=np.int32),
                time=np.full(2, float(t)),
            )
        )
        writer.flush()
    (row,) = torsion_statistics(tmp_path, {"phi 1": np.array([0, 1, 2, 3])})
    assert row["jumps"] == 2 and row["frames"] == 6
    assert row["autocorrelation_ps"] is None and not row["resolved"]  # too few frames to tell
    assert row["share_in_basin"] == pytest.approx(1 / 3)
    assert row["standard_error_over_replica_groups"] == pytest.approx(np.std([2 / 3, 0], ddof=1) / math.sqrt(2))


def test_simulate_refuses_what_it_cannot_do(tmp_path):
    with pytest.raises(ValueError, match="5 constraints"):
        simulate_beads(tmp_path / "a", Bead(constraints=5))
    with pytest.raises(ValueError, match=r"swap_ps is 0\.003 ps"):
        simulate_beads(tmp_path / "a", swap_ps=0.003)
    assert not (tmp_path / "a").exists()
    simulate_beads(tmp_path / "a", seed=1)
    with pytest.raises(ValueError, match="with seed 1, not 2"):
        simulate_beads(tmp_path / "a", seed=2)
    with pytest.raises(ValueError, match=r"with friction 1\.0, not 2\.0"):
        simulate_beads(tmp_path / "a", seed=1, friction=2.0)
    assert json.loads((tmp_path / "a" / "settings.json").read_text())["friction"] == 1.0
    assert len(simulate_beads(tmp_path / "a", seed=1, picoseconds=0.8).frames or []) == 2 * 60


def test_a_simulation_without_settings_goes_on_under_its_own_molecule_alone(tmp_path):
    class Other(Bead):
        def difference(self, other: Molecule, masses: bool = False) -> str | None:
            return "its bonds are others"

    simulate_beads(tmp_path)
    (tmp_path / "settings.json").unlink()
    with pytest.raises(ValueError, match="holds a simulation of another molecule: its bonds are others; use another"):
        simulate_beads(tmp_path, Other(), picoseconds=0.8)
    assert len(simulate_beads(tmp_path, picoseconds=0.8).frames or []) == 2 * 60


def test_simulate_leaves_frames_of_another_temperature_alone(tmp_path):
    simulate_beads(tmp_path)
    (tmp_path / "checkpoint.npz").unlink()  # as a folder of imported frames
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    hotter = Bead()
    hotter.temperature = 400.0
    with pytest.raises(ValueError, match="holds frames, whose molecule must stay with them"):
        simulate_beads(tmp_path, hotter)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def write(folder: Path, **changes) -> None:
    frames = Frames(
        positions=np.zeros((5, 4, 3), dtype=np.float32),
        energies=np.zeros(5),
        temperature_index=np.array([0, 1, 0, 1, 0], dtype=np.int16),
        replica_group=np.arange(5, dtype=np.int32),
        time=np.arange(5.0),
    )
    writer = FrameWriter(folder)
    writer.add(replace(frames, **changes))
    writer.flush()


def test_a_reference_is_evenly_spaced_frames_of_the_lowest_temperature(tmp_path):
    places = np.arange(60, dtype=np.float32).reshape(5, 4, 3)
    write(tmp_path, positions=places)
    save_reference(tmp_path, 2, tmp_path / "new" / "reference.npz")
    with np.load(tmp_path / "new" / "reference.npz") as arrays:
        np.testing.assert_array_equal(arrays["positions"], places[[0, 4]])
        assert arrays["positions"].dtype == np.float32
    save_reference(tmp_path, 2, tmp_path / "later.npz", start_ps=1.0)
    np.testing.assert_array_equal(np.load(tmp_path / "later.npz")["positions"], places[[2, 4]])
    with pytest.raises(ValueError, match="has 3 frames, so a reference cannot have 4 of them"):
        save_reference(tmp_path, 4, tmp_path / "more.npz")


def test_reader_names_the_mistake(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        load_ensemble(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="holds no frames"):
        load_ensemble(tmp_path)
    write(tmp_path)
    assert len(load_ensemble(tmp_path)) == 3
    assert load_ensemble(tmp_path, temperature_index=None).temperature_index.tolist() == [0, 1, 0, 1, 0]
    with pytest.raises(ValueError, match=r"frames-000000\.npz holds positions of shape \(5, 4, 3\).*22, 3"):
        load_ensemble(tmp_path, num_atoms=22)
    with pytest.raises(ValueError, match=r"none at temperature index 3 from 0\.0 ps"):
        load_ensemble(tmp_path, temperature_index=3)
    bad = np.zeros((5, 4, 3), dtype=np.float32)
    bad[3, 1, 2] = np.nan
    write(tmp_path, positions=bad)
    with pytest.raises(ValueError, match=r"frames-000000\.npz: positions of frame 3 are not finite"):
        load_ensemble(tmp_path)
    write(tmp_path, energies=np.zeros(4))
    with pytest.raises(ValueError, match="arrays of different lengths"):
        load_ensemble(tmp_path)
    (tmp_path / "frames-000000.npz").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match=r"frames-000000\.npz is not a shard"):
        load_ensemble(tmp_path)


def make_ensemble(num_replica_groups: int, frames_each: int = 3) -> Ensemble:
    n = num_replica_groups * frames_each
    group = torch.arange(num_replica_groups).repeat(frames_each)
    return Ensemble(
        positions=torch.arange(float(n)).view(n, 1, 1).expand(n, 2, 3),
        energies=torch.arange(float(n)),
        replica_group=group,
        time=torch.zeros(n),
        temperature_index=torch.zeros(n, dtype=torch.long),
    )


@pytest.mark.parametrize(
    ("num_replica_groups", "fractions", "expected"),
    [(32, (0.8, 0.1, 0.1), [26, 3, 3]), (10, (0.9, 0.05, 0.05), [8, 1, 1]), (10, (0.5, 0.0, 0.5), [5, 0, 5])],
)
def test_split_divides_whole_replica_groups(num_replica_groups, fractions, expected):
    ensemble = make_ensemble(num_replica_groups)
    parts = split_by_replica_group(ensemble, fractions, seed=3)
    assert [len(part.replica_group.unique()) for part in parts] == expected
    assert sorted(torch.cat([part.energies for part in parts]).tolist()) == ensemble.energies.tolist()
    for part in parts:
        torch.testing.assert_close(part.positions[:, 0, 0], part.energies)
        assert len(part) == 3 * len(part.replica_group.unique())
    again = split_by_replica_group(ensemble, fractions, seed=3)
    assert all(
        torch.equal(getattr(a, f.name), getattr(b, f.name))
        for a, b in zip(parts, again, strict=True)
        for f in fields(Ensemble)
    )


def test_split_depends_on_the_seed_and_refuses_nonsense():
    ensemble = make_ensemble(32)
    first, other = (split_by_replica_group(ensemble, (0.5, 0.5), seed=s)[0].replica_group.unique() for s in (0, 1))
    assert not torch.equal(first, other)
    with pytest.raises(ValueError, match="must sum to 1"):
        split_by_replica_group(ensemble, (0.5, 0.4))
    with pytest.raises(ValueError, match="2 frames cannot be split into 3 parts"):
        split_by_replica_group(make_ensemble(2, frames_each=1), (0.8, 0.1, 0.1))


@pytest.mark.parametrize(("lengths", "expected"), [([1000], [800, 100, 100]), ([450, 450, 100], [818, 91, 91])])
def test_split_cuts_few_replica_groups_into_blocks_of_time(lengths, expected):
    group = torch.cat([torch.full((length,), number) for number, length in enumerate(lengths)])
    time = torch.cat([torch.arange(float(length)) for length in lengths])
    shuffled = torch.randperm(len(time), generator=torch.Generator().manual_seed(0))
    ensemble = Ensemble(torch.zeros(len(time), 2, 3), time, group, time, torch.zeros_like(group)).select(shuffled)
    parts = split_by_replica_group(ensemble, (0.8, 0.1, 0.1), seed=1)
    for part, size in zip(parts, expected, strict=True):
        assert abs(len(part) - size) <= 20
    assert sum(map(len, parts)) == len(ensemble)
    for part in parts[1:]:  # each a block or two, without gaps
        jumps = [part.time[part.replica_group == group].sort().values.diff() for group in part.replica_group.unique()]
        assert sum(int((jump > 1).sum()) for jump in jumps) + len(jumps) <= 2
    again = split_by_replica_group(ensemble, (0.8, 0.1, 0.1), seed=1)
    assert all(torch.equal(one.time, two.time) for one, two in zip(parts, again, strict=True))
    assert not torch.equal(split_by_replica_group(ensemble, (0.8, 0.1, 0.1), seed=3)[1].time, parts[1].time)
