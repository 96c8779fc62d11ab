"""The OpenMM engine beside the batched one: the same energies, temperatures, folder and way to resume."""

import json

import numpy as np
import openmm
import pytest
import torch

from molecular.data.ensembles import load_ensemble
from molecular.dynamics import Langevin, TemperingSettings, maxwell_velocities, parallel_tempering, simulate
from molecular.dynamics.openmm_engine import OpenMMEngine
from molecular.molecule.constants import MOLAR_GAS_CONSTANT
from molecular.molecule.peptide import Peptide
from molecular.molecule.storage import save_molecule
from molecular.molecule.torsions import reported_torsions
from molecular.training.fit_molecule import train_on_ensemble
from nflib.training import TrainingConfig

STIFFNESS = 1000.0


def wells(masses: tuple[float, ...] = (12.0, 16.0), constraint: float | None = None) -> openmm.System:
    """Particles in harmonic wells around the origin; with a constraint, the first two are kept at a distance."""
    system = openmm.System()
    force = openmm.CustomExternalForce(f"{0.5 * STIFFNESS}*(x*x+y*y+z*z)")
    for index, mass in enumerate(masses):
        system.addParticle(mass)
        force.addParticle(index)
    system.addForce(force)
    if constraint is not None:
        system.addConstraint(0, 1, constraint)
    return system


def run(engine: OpenMMEngine, start: torch.Tensor, seed: int = 0, **changes):
    num_steps, checkpoint = changes.pop("num_steps", 2000), changes.pop("checkpoint", None)
    options = {
        "num_replica_groups": 8, "timestep": 0.01, "friction": 5.0, "swap_interval": 25,
        "save_interval": 25, "equilibration_steps": 250, "saved_temperatures": 2,
    } | changes  # fmt: skip
    masses = torch.tensor([12.0, 16.0], dtype=torch.float64)
    return parallel_tempering(
        engine, masses, start, TemperingSettings((300.0, 400.0), **options), num_steps=num_steps,
        generator=torch.Generator().manual_seed(seed), progress=False, checkpoint=checkpoint,
        integrator=engine.integrator, degrees_of_freedom=engine.degrees_of_freedom,
    )  # fmt: skip


def test_without_noise_both_integrators_take_the_same_steps():
    engine = OpenMMEngine(wells(), "Reference")
    masses = torch.tensor([12.0, 16.0], dtype=torch.float64)
    temperatures = torch.full((3,), 300.0, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    x = 0.05 * torch.randn(3, 2, 3, generator=generator, dtype=torch.float64)
    v = maxwell_velocities(masses, temperatures, generator)
    results = []
    for make in (Langevin, engine.integrator):
        integrator = make(masses, temperatures, 0.005, 0.0)
        position, velocity = x.clone(), v.clone()
        force = engine.energy_and_force(position)[1]
        potential, force = integrator.run(engine, position, velocity, force, 40, torch.Generator().manual_seed(1))
        results.append((position, velocity, potential, force, integrator.to_full_step(velocity, force)))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_ensemble_of_harmonic_wells():
    result = run(OpenMMEngine(wells(), "Reference"), torch.zeros(2, 3, dtype=torch.float64))
    frames = result.frames
    assert frames is not None and frames.positions.dtype == np.float32 and result.report["replicas_restarted"] == 0
    for k, temperature in enumerate((300.0, 400.0)):
        measured = frames.positions[frames.temperature_index == k].var()
        assert measured == pytest.approx(MOLAR_GAS_CONSTANT * temperature / STIFFNESS, rel=0.1)
    assert result.report["kinetic_temperature_K"] == pytest.approx([300.0, 400.0], rel=0.05)
    energy = 0.5 * STIFFNESS * (frames.positions.astype(np.float64) ** 2).sum(axis=(1, 2))
    np.testing.assert_allclose(frames.energies, energy, rtol=1e-4)


@pytest.mark.parametrize("force", [openmm.CMMotionRemover(), openmm.AndersenThermostat(100.0, 50.0)])
def test_what_acts_on_motion_leaves_the_temperature_as_it_is(force):
    """OpenMM's createSystem adds a remover by default; the thermostat acts on the centre of mass all the same."""
    system = wells()
    system.addForce(openmm.XmlSerializer.clone(force))
    result = run(OpenMMEngine(system, "Reference"), torch.zeros(2, 3, dtype=torch.float64))
    assert result.report["kinetic_temperature_K"] == pytest.approx([300.0, 400.0], rel=0.05)
    assert system.getNumForces() == 2


def test_constraints_are_kept_and_their_degrees_of_freedom_counted():
    engine = OpenMMEngine(wells(constraint=0.1), "Reference")
    assert engine.degrees_of_freedom == 5
    start = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 0.1]], dtype=torch.float64)
    result = run(engine, start)
    frames = result.frames
    assert frames is not None
    distance = np.linalg.norm(frames.positions[:, 0] - frames.positions[:, 1], axis=-1)
    np.testing.assert_allclose(distance, 0.1, atol=1e-5)
    assert result.report["kinetic_temperature_K"] == pytest.approx([300.0, 400.0], rel=0.05)
    moved = engine.minimise(start[None] + 1.0)[0]
    assert float((moved[0] - moved[1]).norm()) == pytest.approx(0.1, abs=1e-4)


def test_a_replica_that_breaks_is_restarted():
    system = wells()
    # A cliff: beyond it the energy is not a number.
    cliff = openmm.CustomExternalForce("sqrt(0.25 - x)")
    cliff.addParticle(0)
    system.addForce(cliff)
    engine = OpenMMEngine(system, "Reference")
    start = torch.zeros(16, 2, 3, dtype=torch.float64)
    integrator = engine.integrator(torch.ones(2), torch.full((16,), 300.0), 0.01, 1.0)
    velocity = torch.zeros_like(start)
    velocity[3, 0, 0] = 100.0
    potential, force = integrator.run(engine, start, velocity, velocity, 5, torch.Generator().manual_seed(0))
    sound = torch.isfinite(potential + force.sum(dim=(1, 2)) + start.sum(dim=(1, 2)))
    assert sound.tolist() == [index != 3 for index in range(16)]


def test_resumed_run_has_every_frame_once(tmp_path):
    engine = OpenMMEngine(wells(), "Reference", num_workers=2)
    start = torch.zeros(2, 3, dtype=torch.float64)
    run(engine, start, num_steps=500, checkpoint=tmp_path)
    frames = run(engine, start, num_steps=1000, checkpoint=tmp_path).frames
    assert frames is not None and len(frames) == 40 * 8 * 2
    rows = set(zip(frames.time.tolist(), frames.replica_group.tolist(), frames.temperature_index.tolist(), strict=True))
    assert len(rows) == len(frames)
    assert len(np.unique(frames.energies)) == len(frames)  # the noise does not begin again either


def test_frames_of_constrained_bonds_train_no_flow(tmp_path):
    save_molecule(Peptide("Ace-G-Nme", constraints="HBonds"), tmp_path)
    with pytest.raises(ValueError, match="has constraints, under which conformations have no density"):
        train_on_ensemble(tmp_path, tmp_path / "flow", TrainingConfig(max_steps=1))


def test_unknown_platform_and_engine(tmp_path):
    with pytest.raises(ValueError, match="no platform 'Abacus' here; it has Reference"):
        OpenMMEngine(wells(), "Abacus")
    with pytest.raises(ValueError, match="there is no engine 'gromacs'; the engines are batched, openmm"):
        simulate(Peptide("Ace-G-Nme"), tmp_path, picoseconds=0.01, engine="gromacs")


def test_simulate_with_either_engine_writes_the_same_kind_of_folder(tmp_path):
    peptide = Peptide("Ace-A-Nme")
    options = {
        "picoseconds": 0.1, "hot_ps": 0.01, "equilibration_ps": 0.02, "num_replica_groups": 2, "num_temperatures": 2,
        "swap_ps": 0.01, "save_ps": 0.02, "progress": False,
    }  # fmt: skip
    first: dict[str, np.ndarray] = {}
    for engine in ("batched", "openmm"):
        result = simulate(peptide, tmp_path / engine, engine=engine, platform="Reference", **options)
        ensemble = load_ensemble(tmp_path / engine, num_atoms=22)
        assert len(ensemble) == 10
        report = json.loads((tmp_path / engine / "report.json").read_text())
        assert report == result.report and report["engine"] == engine
        assert [row["torsion"] for row in report["torsions"]] == ["phi 1", "psi 1"]
        first[engine] = ensemble.positions[ensemble.time == ensemble.time.min()].numpy()
        # The replica groups start from different structures.
        assert np.abs(first[engine][0] - first[engine][1]).max() > 0.05
    reference = OpenMMEngine(peptide.system, "Reference")
    energies = reference.energy_and_force(ensemble.positions.double())[0]
    torch.testing.assert_close(energies, ensemble.energies, rtol=0, atol=0.05)
    with pytest.raises(ValueError, match="with engine batched, not openmm"):
        simulate(peptide, tmp_path / "batched", engine="openmm", platform="Reference", **options)


def test_side_chain_torsions_have_names():
    peptide = Peptide("VS")
    named = reported_torsions(peptide)
    assert list(named)[:2] == ["phi 2", "psi 1"]
    assert {"CA-CB of VAL 1", "CA-CB of SER 2", "CA-C of SER 2"} == set(named) - {"phi 2", "psi 1"}
    atoms = [peptide.topology.atom_names[i] for i in named["CA-CB of VAL 1"]]
    assert atoms[1:3] == ["CA", "CB"] and "H" not in {peptide.topology.elements[i] for i in named["CA-CB of VAL 1"]}
