"""OpenMM's own dynamics for the replicas of a simulation: the reference beside the batched integrator."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import openmm
import torch
from openmm import unit
from torch import Tensor

from molecular.dynamics.langevin import EnergyAndForce, Langevin
from molecular.energy.unsupported import MOTION_ONLY, refuse_unknown_platform

CONSTRAINT_TOLERANCE = 1e-6
MINIMISER_STEPS = 500


class OpenMMEngine:
    """Energies, minimisation and Langevin dynamics of batches by OpenMM, one conformation after the other.

    Its `LangevinMiddleIntegrator` does what `Langevin` does, in the same order, with velocities that belong to the same
    half step, so that checkpoints, swaps and statistics are the same for both engines. Constraints are kept.

    Args:
        system: any OpenMM System.
        platform: "CPU", "Reference", "CUDA", "OpenCL" ...
        num_workers: contexts that work side by side in threads (OpenMM releases Python's lock); by default torch's
            number of threads on "CPU" and "Reference", one elsewhere. Each has one thread on "CPU".

    Raises:
        ValueError: a platform that this OpenMM lacks.
    """

    def __init__(self, system: openmm.System, platform: str = "CPU", num_workers: int | None = None) -> None:
        refuse_unknown_platform(platform)
        self.system = _without_other_motion(system)
        self.platform = openmm.Platform.getPlatformByName(platform)
        self.properties = {"Threads": "1"} if platform == "CPU" else {}
        on_host = platform in ("CPU", "Reference")
        self.num_workers = num_workers or (torch.get_num_threads() if on_host else 1)
        self.degrees_of_freedom = 3 * system.getNumParticles() - system.getNumConstraints()
        self._contexts: list[openmm.Context] | None = None

    def context(self, integrator: openmm.Integrator) -> openmm.Context:
        """A new context of the system on the platform."""
        return openmm.Context(self.system, integrator, self.platform, self.properties)

    def energy_and_force(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Energies (B,) in kJ/mol and forces (B, n, 3) in kJ/mol/nm of positions (B, n, 3) in nm."""
        potential, force = x.new_empty(len(x)), torch.empty_like(x)

        def evaluate(context: openmm.Context, b: int) -> None:
            context.setPositions(x[b].double().cpu().numpy())
            potential[b], force[b] = _energy_and_force(context)

        self._for_each(evaluate, len(x))
        return potential, force

    def minimise(self, x: Tensor) -> Tensor:
        """Local minima (B, n, 3) near positions (B, n, 3) in nm, which satisfy the constraints."""
        minima = torch.empty_like(x)

        def descend(context: openmm.Context, b: int) -> None:
            context.setPositions(x[b].double().cpu().numpy())
            openmm.LocalEnergyMinimizer.minimize(context, maxIterations=MINIMISER_STEPS)
            minima[b] = torch.from_numpy(_array(context.getState(positions=True).getPositions(asNumpy=True)))

        self._for_each(descend, len(x))
        return minima

    def integrator(self, masses: Tensor, temperatures: Tensor, timestep: float, friction: float) -> "OpenMMLangevin":
        """Langevin dynamics of a batch of replicas.

        Args:
            masses: (n,) amu, those of the system.
            temperatures: (B,) K, one a replica.
            timestep: ps.
            friction: 1/ps.
        """
        return OpenMMLangevin(self, masses, temperatures, timestep, friction)

    def _for_each(self, work: Callable[[openmm.Context, int], None], number: int) -> None:
        if self._contexts is None:
            self._contexts = [self.context(openmm.VerletIntegrator(0.001)) for _ in range(self.num_workers)]
        share_out(work, self._contexts, number)


class OpenMMLangevin:
    """`openmm.LangevinMiddleIntegrator` for a batch of replicas at temperatures (B,) K; see `Integrator`."""

    def __init__(
        self, engine: OpenMMEngine, masses: Tensor, temperatures: Tensor, timestep: float, friction: float
    ) -> None:
        self.engine, self.timestep, self.friction = engine, timestep, friction
        self.temperatures = [float(value) for value in temperatures]
        self.constrained = engine.system.getNumConstraints() > 0
        self._convention = Langevin(masses, temperatures, timestep, friction)
        self._contexts: list[openmm.Context] | None = None

    def run(
        self, energy: EnergyAndForce, x: Tensor, v: Tensor, force: Tensor, num_steps: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Advance ``x``, ``v`` in place; a replica whose coordinates stop being finite gets NaN everywhere.

        OpenMM's random numbers are seeded from ``generator`` at the first call: a resumed simulation draws others than
        an uninterrupted one.
        """
        if self._contexts is None:
            self._contexts = self._make_contexts(generator)
        potential, end_force = x.new_empty(len(x)), torch.empty_like(x)

        def advance(context: openmm.Context, b: int) -> None:
            context.getIntegrator().setTemperature(self.temperatures[b])
            context.setPositions(x[b].double().cpu().numpy())
            context.setVelocities(v[b].double().cpu().numpy())
            if self.constrained:
                context.applyConstraints(CONSTRAINT_TOLERANCE)
                context.applyVelocityConstraints(CONSTRAINT_TOLERANCE)
            try:
                context.getIntegrator().step(num_steps)
                state = context.getState(positions=True, velocities=True)
                potential[b], end_force[b] = _energy_and_force(context)
            except openmm.OpenMMException as error:
                if "nan" not in str(error).lower():
                    raise
                x[b], v[b], potential[b], end_force[b] = (torch.nan,) * 4
                return
            x[b] = torch.from_numpy(_array(state.getPositions(asNumpy=True)))
            v[b] = torch.from_numpy(_array(state.getVelocities(asNumpy=True)))

        share_out(advance, self._contexts, len(x))
        return potential, end_force

    def to_full_step(self, v: Tensor, force: Tensor) -> Tensor:
        return self._convention.to_full_step(v, force)

    def to_stored(self, v: Tensor, force: Tensor) -> Tensor:
        return self._convention.to_stored(v, force)

    def _make_contexts(self, generator: torch.Generator) -> list[openmm.Context]:
        contexts = []
        for _ in range(self.engine.num_workers):
            integrator = openmm.LangevinMiddleIntegrator(self.temperatures[0], self.friction, self.timestep)
            # OpenMM takes 0 for "choose one yourself".
            seed = torch.randint(1, 2**31 - 1, (), generator=generator, device=generator.device)
            integrator.setRandomNumberSeed(int(seed))
            contexts.append(self.engine.context(integrator))
        return contexts


def share_out(work: Callable[[openmm.Context, int], None], contexts: list[openmm.Context], number: int) -> None:
    """``work(context, index)`` for each index below ``number``, each context in a thread of its own."""

    def serve(worker: int) -> None:
        for index in range(worker, number, len(contexts)):
            work(contexts[worker], index)

    if len(contexts) == 1:
        serve(0)
        return
    with ThreadPoolExecutor(len(contexts)) as threads:
        for served in [threads.submit(serve, worker) for worker in range(len(contexts))]:
            served.result()


def _energy_and_force(context: openmm.Context) -> tuple[float, Tensor]:
    state = context.getState(energy=True, forces=True)
    force = torch.from_numpy(_array(state.getForces(asNumpy=True)))
    return state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole), force


def _array(quantity: unit.Quantity) -> np.ndarray:
    """The numbers in OpenMM's own units: nm, ps, kJ/mol."""
    return np.asarray(quantity.value_in_unit_system(unit.md_unit_system))


def _without_other_motion(system: openmm.System) -> openmm.System:
    """A copy that the integrator's thermostat alone heats, the centre of mass too, as the batched engine has it."""
    copied = openmm.XmlSerializer.clone(system)
    for index in reversed(range(copied.getNumForces())):
        if isinstance(copied.getForce(index), MOTION_ONLY):
            copied.removeForce(index)
    return copied
