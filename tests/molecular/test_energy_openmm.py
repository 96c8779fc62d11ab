"""OpenMM in worker processes: values, gradients, errors, and that no process is left behind."""

import gc
import logging
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import openmm
import pytest
import torch

from molecular import Molecule, Peptide
from molecular.dynamics import simulate
from molecular.energy import CompiledEnergy, OpenMMEnergy, UnsupportedForce, compile_system
from molecular.energy.reduced import ReducedEnergy
from tests.molecular.openmm_energies import periodic_nonbonded, random_positions, reference, system_of


@pytest.fixture(scope="module")
def peptide() -> Peptide:
    return Peptide("Ace-A-Nme")


@pytest.fixture(scope="module")
def x(peptide: Peptide) -> torch.Tensor:
    noise = np.random.default_rng(0).standard_normal((10, peptide.num_atoms, 3))
    return torch.from_numpy(peptide.positions + 0.005 * noise)


def processes(energy: OpenMMEnergy) -> list[subprocess.Popen]:
    assert energy._pool is not None
    return list(energy._pool.processes)


def ended(pid: int) -> bool:
    for _ in range(100):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


def test_energies_forces_and_gradients(peptide: Peptide, x: torch.Tensor) -> None:
    expected_energy, expected_force = reference(peptide.system, x.numpy())
    with OpenMMEnergy(peptide.system, platform="Reference", num_workers=2) as energy:
        u, force = energy.energy_and_force(x.view(5, 2, 22, 3))
        np.testing.assert_array_equal(u.flatten().numpy(), expected_energy)
        np.testing.assert_array_equal(force.flatten(0, 1).numpy(), expected_force)
        positions = x.float().requires_grad_()
        weight = torch.arange(1.0, 11.0, dtype=torch.float64)
        (gradient,) = torch.autograd.grad((weight * energy(positions)).sum(), positions)
        assert gradient.dtype == torch.float32
        torch.testing.assert_close(gradient.double(), -weight[:, None, None] * force.flatten(0, 1), rtol=1e-3, atol=1.0)
        assert energy.energy(x[:0]).shape == (0,)
        assert energy.energy(x[0]).item() == expected_energy[0]
        reduced = energy.reduced_energy(x, 300.0)
        torch.testing.assert_close(reduced, u.flatten() / (8.31446261815324e-3 * 300.0))
        assert energy.float().energy(x).dtype == torch.float32


def test_bad_conformations_stay_alone(peptide: Peptide, x: torch.Tensor) -> None:
    for platform in ("Reference", "CPU"):
        with OpenMMEnergy(peptide.system, platform=platform, num_workers=1) as energy:
            expected = energy.energy(x)
            bad = x.clone()
            bad[1, 3], bad[4, 0, 0], bad[6], bad[8, 2] = torch.nan, torch.inf, 0.0, bad[8, 9]
            u, force = energy.energy_and_force(bad)
            keep = [0, 2, 3, 5, 7, 9]
            torch.testing.assert_close(u[keep], expected[keep], rtol=1e-6, atol=1e-3)
            assert force[keep].isfinite().all()
            assert not (u[[1, 4, 6, 8]].abs() < 1e6).any()


def test_processes_end_with_the_block_the_object_and_close(peptide: Peptide, x: torch.Tensor) -> None:
    energy = OpenMMEnergy(peptide.system, num_workers=2)
    assert energy._pool is None
    energy.energy(x)
    first = processes(energy)
    energy.close()
    assert all(process.poll() == 0 for process in first)
    energy.energy(x)
    second = processes(energy)
    del energy
    gc.collect()
    assert all(process.poll() == 0 for process in second)


SCRIPT = """
import os, signal, torch
from molecular import Peptide
from molecular.energy import OpenMMEnergy
peptide = Peptide("Ace-A-Nme")
energy = OpenMMEnergy(peptide.system, num_workers=1)
energy.energy(torch.from_numpy(peptide.positions))
print(energy._pool.processes[0].pid, flush=True)
{end}
"""


@pytest.mark.parametrize("end", ["", "os.kill(os.getpid(), signal.SIGKILL)"], ids=["exit", "killed"])
def test_processes_end_with_the_one_that_started_them(end: str) -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT.format(end=end)], capture_output=True, text=True)
    assert done.returncode == (-signal.SIGKILL if end else 0), done.stderr
    assert ended(int(done.stdout))


def test_killed_worker_is_an_error_and_the_next_call_works(peptide: Peptide, x: torch.Tensor) -> None:
    with OpenMMEnergy(peptide.system, num_workers=2) as energy:
        expected = energy.energy(x)
        killed = processes(energy)[0]
        killed.kill()
        killed.wait()
        with pytest.raises(RuntimeError, match="worker process .* ended with exit code -9"):
            energy.energy(x)
        torch.testing.assert_close(energy.energy(x), expected, rtol=1e-6, atol=1e-3)


def test_pickled_energy_starts_its_own_processes(peptide: Peptide, x: torch.Tensor) -> None:
    with OpenMMEnergy(peptide.system, "Reference", num_workers=1) as energy:
        expected = energy.energy(x)
        with pickle.loads(pickle.dumps(energy)) as copy:
            torch.testing.assert_close(copy.energy(x), expected)


def test_mistakes_are_one_sentence(peptide: Peptide) -> None:
    with pytest.raises(ValueError, match="no platform 'Abacus' here; it has Reference, CPU"):
        OpenMMEnergy(peptide.system, platform="Abacus")
    with pytest.raises(ValueError, match="num_workers is 0"):
        OpenMMEnergy(peptide.system, num_workers=0)
    constrained = system_of(2)
    constrained.addConstraint(0, 1, 0.1)
    with pytest.raises(ValueError, match="constraints=None"):
        OpenMMEnergy(constrained)
    energy = OpenMMEnergy(peptide.system, num_workers=1, properties={"Colour": "blue"})
    with pytest.raises(RuntimeError, match="OpenMM's CPU platform: .*Colour"):
        energy.energy(torch.from_numpy(peptide.positions))
    with pytest.raises(ValueError, match=r"\(\.\.\., 22, 3\)"):
        energy.energy(torch.zeros(21, 3))


def custom_bond() -> openmm.Force:
    force = openmm.CustomBondForce("10*(r-0.1)^4")
    force.addBond(0, 1)
    return force


def test_fallback_only_if_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    reciprocal = periodic_nonbonded()
    reciprocal.setNonbondedMethod(openmm.NonbondedForce.NoCutoff)
    reciprocal.setIncludeDirectSpace(False)
    for force, name in (
        (custom_bond(), "CustomBondForce"),
        (periodic_nonbonded(), "NonbondedForce is periodic"),
        (reciprocal, "NonbondedForce leaves its direct space out"),
    ):
        system = system_of(8, force)
        system.setDefaultPeriodicBoxVectors([3, 0, 0], [0, 3, 0], [0, 0, 3])
        with pytest.raises(UnsupportedForce, match=name):
            compile_system(system)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            energy = compile_system(system, torch.float64, fallback=True)
        assert name in caplog.text
        assert isinstance(energy, OpenMMEnergy)
        x = random_positions(8, batch=2)
        with energy:
            np.testing.assert_allclose(
                energy.energy(torch.from_numpy(x)), reference(system, x)[0], rtol=1e-4, atol=1e-4
            )
    assert isinstance(compile_system(system_of(2), fallback=True), CompiledEnergy)
    constrained = system_of(2)
    constrained.addConstraint(0, 1, 0.1)
    with pytest.raises(ValueError, match="constraints=None"):
        compile_system(constrained, fallback=True)


def test_reduced_energies_of_any_force(peptide: Peptide, x: torch.Tensor, tmp_path: Path) -> None:
    system = openmm.XmlSerializer.deserialize(openmm.XmlSerializer.serialize(peptide.system))
    system.addForce(custom_bond())
    molecule = Molecule(peptide.topology, system, peptide.positions)
    energy = ReducedEnergy(molecule, dtype=torch.float64)
    with energy.energy:
        expected = reference(system, x.double().numpy())[0] / molecule.kT
        np.testing.assert_allclose(energy(x.double()).numpy(), expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match=r"has a CustomBondForce.* Simulate it with engine='openmm'\."):
        simulate(molecule, tmp_path, picoseconds=1.0)
