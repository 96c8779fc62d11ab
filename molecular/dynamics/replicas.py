"""The replicas of a parallel-tempering simulation and what is done to them between stretches of dynamics."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from molecular.dynamics.frames import Frames
from molecular.dynamics.langevin import EnergyAndForce, Integrator, Langevin, maxwell_velocities
from molecular.dynamics.statistics import Statistics
from molecular.molecule.constants import MOLAR_GAS_CONSTANT
from nflib.errors import first_line
from nflib.threads import one_thread

MakeIntegrator = Callable[[Tensor, Tensor, float, float], Integrator]
"""An integrator from masses (n,), temperatures (B,), time step and friction."""


@dataclass(frozen=True)
class TemperingSettings:
    """Settings of `parallel_tempering` apart from its length; a checkpoint is only resumed with the same ones.

    Args:
        temperatures: of each replica group, K, increasing.
        num_replica_groups: independent groups of replicas, one replica at each temperature, that swap among themselves.
        timestep: ps.
        friction: of the Langevin thermostat, 1/ps.
        swap_interval: steps between attempts to swap neighbouring temperatures.
        save_interval: steps between saved frames.
        equilibration_steps: at all temperatures before production, not saved.
        saved_temperatures: how many, from the lowest on, have their frames saved.
        recentre: keep the centre of mass at the origin, for energies that do not depend on it.
        hot_steps: that all replicas first spend at the highest temperature, not saved.

    Raises:
        ValueError: numbers out of range, or temperatures that do not increase.
    """

    temperatures: tuple[float, ...]
    num_replica_groups: int = 32
    timestep: float = 0.001
    friction: float = 1.0
    swap_interval: int = 100
    save_interval: int = 1000
    equilibration_steps: int = 0
    saved_temperatures: int = 1
    recentre: bool = False
    hot_steps: int = 0

    def __post_init__(self) -> None:
        for name in ("num_replica_groups", "timestep", "swap_interval", "save_interval", "saved_temperatures"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}.")
        if min(self.friction, self.equilibration_steps, self.hot_steps) < 0:
            raise ValueError("friction, equilibration_steps and hot_steps must not be negative.")
        increasing = all(a < b for a, b in zip(self.temperatures, self.temperatures[1:], strict=False))
        if not self.temperatures or not increasing or self.temperatures[0] <= 0:
            raise ValueError(f"temperatures must be positive and increase, not {self.temperatures}.")
        if self.saved_temperatures > len(self.temperatures):
            raise ValueError(
                f"saved_temperatures is {self.saved_temperatures} but there are {len(self.temperatures)} temperatures."
            )


class Replicas:
    """The state of a simulation: B = replica groups * temperatures copies of one molecule.

    Replica ``group * K + k`` is at temperature k of its replica group.

    Args:
        energy: energies and forces of batches.
        masses: (n,) amu.
        start: positions (B, n, 3), nm.
        settings: temperatures, replica groups, time step and intervals.
        generator: of the random numbers.
        integrator: makes one from masses, temperatures (B,), time step and friction.
        degrees_of_freedom: that kinetic energy is spread over; by default 3n, since Langevin noise acts on every one.

    Raises:
        ValueError: energies or forces of the start that are not finite.
    """

    def __init__(
        self,
        energy: EnergyAndForce,
        masses: Tensor,
        start: Tensor,
        settings: TemperingSettings,
        generator: torch.Generator,
        integrator: MakeIntegrator = Langevin,
        degrees_of_freedom: int | None = None,
    ) -> None:
        self.energy, self.settings, self.generator, self.start = energy, settings, generator, start
        self.num_temperatures = len(settings.temperatures)
        shape = (settings.num_replica_groups, self.num_temperatures)
        device, dtype = start.device, start.dtype
        self.shape = shape
        self.masses = masses.to(device, dtype)
        self.mass_fraction = (self.masses / self.masses.sum())[:, None]
        of_group = torch.tensor(settings.temperatures, dtype=torch.float64, device=device)
        self.inverse_kt = 1.0 / (MOLAR_GAS_CONSTANT * of_group)
        self.root_temperature = of_group.sqrt().to(dtype).repeat(settings.num_replica_groups)
        self.temperatures = of_group.to(dtype).repeat(settings.num_replica_groups)
        self.integrator, self.hot_integrator = (
            integrator(self.masses, temperatures, settings.timestep, settings.friction)
            for temperatures in (self.temperatures, torch.full_like(self.temperatures, settings.temperatures[-1]))
        )
        # Laurent and Massart's bound: a sound replica's kinetic temperature exceeds so many times its own with
        # probability < e^-60.
        self.degrees_of_freedom = d = degrees_of_freedom or start[0].numel()
        self.hottest_ratio = (d + 2.0 * math.sqrt(60.0 * d) + 120.0) / d
        self.first = torch.arange(shape[0], device=device)[:, None] * shape[1]
        self.identity = torch.arange(shape[1], device=device).expand(shape)
        self.x = start.clone()
        self.v = maxwell_velocities(self.masses, self.temperatures, generator)
        potential, force = energy.energy_and_force(self.x)
        if not (torch.isfinite(potential).all() and torch.isfinite(force).all()):
            raise ValueError("the start has an energy or force that is not finite; relax the structure first.")
        self.potential, self.force = potential.detach(), force.detach()
        self.walker = torch.arange(len(start), device=device)
        self.statistics = Statistics.zeros(*shape, device)

    def advance(self, num_steps: int, hot: bool = False) -> None:
        """Integrate ``num_steps``, each replica at its own temperature, or all at the highest."""
        integrator = self.hot_integrator if hot else self.integrator
        self.potential, self.force = integrator.run(self.energy, self.x, self.v, self.force, num_steps, self.generator)
        if self.settings.recentre:
            with one_thread():
                self.x.sub_((self.x * self.mass_fraction).sum(dim=1, keepdim=True))

    def cool(self) -> None:
        """Give every replica velocities of its own temperature."""
        self.v = maxwell_velocities(self.masses, self.temperatures, self.generator)

    def kinetic_temperature(self) -> Tensor:
        """(B,) in K."""
        twice_kinetic = (self.v.square().sum(-1) * self.masses).sum(-1)
        return twice_kinetic / (MOLAR_GAS_CONSTANT * self.degrees_of_freedom)

    def restart_broken(self, check_heat: bool) -> None:
        """Give replicas that are not finite, or impossibly hot, the state of a sound one.

        One at the same temperature, else at any; where none is sound at all, the start.
        """
        kinetic = self.kinetic_temperature()
        total = kinetic + self.potential + self.force.sum(dim=(1, 2)) + self.x.sum(dim=(1, 2))
        sound = torch.isfinite(total)
        if check_heat:
            sound &= kinetic < self.hottest_ratio * self.temperatures
        if bool(sound.all()):
            return
        healthy = sound.view(self.shape)
        for replica in torch.nonzero(~sound).flatten().tolist():
            k = replica % self.num_temperatures
            donors = torch.nonzero(healthy[:, k]).flatten() * self.num_temperatures + k
            if not len(donors):
                donors = torch.nonzero(sound).flatten()
            if len(donors):
                pick = torch.randint(len(donors), (), generator=self.generator, device=self.x.device)
                self.x[replica] = self.x[donors[pick]]
            else:
                self.x[replica] = self.start[replica]
            self.statistics.restarts[k] += 1
            self.statistics.last_end[self.walker[replica]] = 0
        fresh = maxwell_velocities(self.masses, self.temperatures, self.generator)
        self.v = torch.where(sound[:, None, None], self.v, fresh)
        self.potential, self.force = self.energy.energy_and_force(self.x)

    def swap(self, parity: int, count: bool) -> None:
        """Propose to exchange the conformations of every second neighbour pair, from pair ``parity`` on."""
        if parity >= self.num_temperatures - 1:
            return
        low = torch.arange(parity, self.num_temperatures - 1, 2, device=self.x.device)
        energy = self.potential.double().view(self.shape)
        log_ratio = (self.inverse_kt[low] - self.inverse_kt[low + 1]) * (energy[:, low] - energy[:, low + 1])
        uniform = torch.rand(log_ratio.shape, generator=self.generator, dtype=torch.float64, device=self.x.device)
        accepted = (uniform.log() < log_ratio).long()
        source = self.identity.clone()
        source[:, low] += accepted
        source[:, low + 1] -= accepted
        source = (source + self.first).flatten()
        scale = (self.root_temperature / self.root_temperature[source])[:, None, None]
        # Rescaled where position and velocity belong to the same instant, hence independent in equilibrium.
        v = self.integrator.to_full_step(self.v, self.force)
        self.x, self.force, self.potential = self.x[source], self.force[source], self.potential[source]
        self.v = self.integrator.to_stored(v[source] * scale, self.force)
        self.walker = self.walker[source]
        if count:
            self.statistics.attempts[low] += self.shape[0]
            self.statistics.accepts[low] += accepted.sum(0)
            self.statistics.follow(self.walker.view(self.shape))

    def measure(self, time_ps: float) -> None:
        """Add temperatures and energies to the statistics."""
        self.statistics.measure(self.kinetic_temperature().view(self.shape), self.potential.view(self.shape), time_ps)

    def frames(self, time_ps: float) -> Frames:
        """The conformations at the temperatures that are saved."""
        groups, saved = self.settings.num_replica_groups, self.settings.saved_temperatures
        n = self.x.shape[1]
        x = self.x.view(*self.shape, n, 3)[:, :saved].reshape(-1, n, 3).float().cpu().numpy()
        # where all temperatures are saved, reshape is a view of the running state, which goes on changing
        return Frames(
            positions=x.copy(),
            energies=self.potential.view(self.shape)[:, :saved].reshape(-1).double().cpu().numpy().copy(),
            temperature_index=np.tile(np.arange(saved, dtype=np.int16), groups),
            replica_group=np.repeat(np.arange(groups, dtype=np.int32), saved),
            time=np.full(groups * saved, time_ps),
        )

    def tensors(self) -> dict[str, Tensor]:
        """Everything a checkpoint needs."""
        state = {
            "x": self.x,
            "v": self.v,
            "force": self.force,
            "potential": self.potential,
            "walker": self.walker,
        }
        statistics = {f"statistics.{name}": value for name, value in self.statistics.tensors().items()}
        return state | statistics | {"generator": self.generator.get_state()}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take over `tensors` of a checkpoint; raises ValueError where walkers or generator are in no state."""
        device = self.x.device
        if not torch.equal(tensors["walker"].sort().values, torch.arange(len(self.x))):
            raise ValueError("its walkers are not all different ones.")
        for name in ("x", "v", "force", "potential", "walker"):
            setattr(self, name, tensors[name].to(device))
        values = {name: tensors[f"statistics.{name}"].to(device) for name in self.statistics.tensors()}
        self.statistics = Statistics(**values)
        try:
            self.generator.set_state(tensors["generator"])
        except RuntimeError as error:
            raise ValueError(f"{first_line(error)}.") from error
