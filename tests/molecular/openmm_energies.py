"""Energies of OpenMM's Reference platform, and what they are compared on."""

from __future__ import annotations

import copy
import functools

import numpy as np
import openmm
import torch

from molecular import Molecule, Peptide
from molecular.energy import compile_system


def system_of(num_atoms: int, *forces: openmm.Force) -> openmm.System:
    system = openmm.System()
    for _ in range(num_atoms):
        system.addParticle(12.0)
    for force in forces:
        system.addForce(copy.deepcopy(force))
    return system


def reference(system: openmm.System, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Energies and forces of OpenMM's double-precision platform."""
    platform = openmm.Platform.getPlatformByName("Reference")
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), platform)
    energies, forces = [], []
    for positions in x:
        context.setPositions(positions)
        state = context.getState(getEnergy=True, getForces=True)
        energies.append(state.getPotentialEnergy()._value)
        forces.append(state.getForces(asNumpy=True)._value)
    return np.array(energies), np.array(forces)


def assert_matches(system: openmm.System, x: np.ndarray, tolerance: float = 1e-9) -> None:
    """Energies relative to themselves, forces relative to the largest of their conformation."""
    expected_energy, expected_force = reference(system, x)
    energy, force = compile_system(system, torch.float64).energy_and_force(torch.from_numpy(x))
    np.testing.assert_allclose(energy.numpy(), expected_energy, rtol=tolerance, atol=tolerance)
    scale = np.maximum(np.abs(expected_force).max((1, 2)), 1e-3)
    assert (np.abs(force.numpy() - expected_force).max((1, 2)) / scale).max() < tolerance


def assert_energies_are_openmms(molecule: Molecule) -> None:
    """Of structures near the molecule's own."""
    noise = np.random.default_rng(0).standard_normal((4, molecule.num_atoms, 3))
    assert_matches(molecule.system, molecule.positions + 0.005 * noise, 1e-6)


def assert_same_energies(one: Molecule, two: Molecule) -> None:
    """Of the first one's structure."""
    x = torch.from_numpy(one.positions)[None]
    energies = [compile_system(molecule.system, torch.float64).energy(x) for molecule in (one, two)]
    torch.testing.assert_close(*energies, rtol=1e-9, atol=1e-6)


def random_positions(num_atoms: int, batch: int = 6, spread: float = 0.3, seed: int = 0) -> np.ndarray:
    return spread * np.random.default_rng(seed).standard_normal((batch, num_atoms, 3))


def nonbonded(
    num_atoms: int, cutoff: float | None, dielectric: float = 78.3, switch: float | None = None
) -> openmm.Force:
    rng = np.random.default_rng(5)
    force = openmm.NonbondedForce()
    for _ in range(num_atoms):
        force.addParticle(rng.normal(), rng.uniform(0.1, 0.3), rng.uniform(0.0, 1.0))
    force.addException(0, 1, 0.0, 0.1, 0.0)
    force.addException(5, 2, 0.0, 0.1, 0.0)
    force.addException(3, 0, 0.3, 0.2, 0.5)
    force.addException(1, 4, -0.5, 0.2, 0.0)
    if cutoff is not None:
        force.setNonbondedMethod(openmm.NonbondedForce.CutoffNonPeriodic)
        force.setCutoffDistance(cutoff)
        force.setReactionFieldDielectric(dielectric)
    if switch is not None:
        force.setUseSwitchingFunction(True)
        force.setSwitchingDistance(switch)
    return force


def periodic_nonbonded() -> openmm.Force:
    force = nonbonded(8, 0.6)
    force.setNonbondedMethod(openmm.NonbondedForce.PME)
    return force


@functools.cache
def peptide(sequence: str) -> Peptide:
    return Peptide(sequence)


@functools.cache
def thermal(sequence: str, count: int = 8, apart: int = 40) -> np.ndarray:
    """Conformations of a short Langevin simulation at 300 K, (count, n, 3) nm, so many steps apart."""
    integrator = openmm.LangevinMiddleIntegrator(300.0, 10.0, 0.001)
    integrator.setRandomNumberSeed(1)
    platform = openmm.Platform.getPlatformByName("CPU")
    context = openmm.Context(peptide(sequence).system, integrator, platform, {"Threads": "1"})
    context.setPositions(peptide(sequence).positions)
    context.setVelocitiesToTemperature(300.0, 1)
    integrator.step(200)
    frames = []
    for _ in range(count):
        integrator.step(apart)
        frames.append(context.getState(getPositions=True).getPositions(asNumpy=True)._value)
    return np.array(frames)
