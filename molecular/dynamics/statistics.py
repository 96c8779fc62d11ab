"""Running statistics of a parallel-tempering simulation, kept on the device of the simulation."""

from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass
class Statistics:
    """Sums over the production part; L independent replica groups of K temperatures, W = L K walkers that swaps carry.

    events (), time (), time_squared () of measurements, ps; kinetic (L, K) kinetic temperatures, K; energy,
    energy_squared, energy_time (L, K), kJ/mol and ps; attempts, accepts (K - 1,) swaps of each neighbour pair;
    restarts (K,) replicas restarted, equilibration included; last_end (W,) 0 none, 1 bottom, 2 top; round_trips ()
    bottom to top and back to the bottom.
    """

    events: Tensor
    time: Tensor
    time_squared: Tensor
    kinetic: Tensor
    energy: Tensor
    energy_squared: Tensor
    energy_time: Tensor
    attempts: Tensor
    accepts: Tensor
    restarts: Tensor
    last_end: Tensor
    round_trips: Tensor

    @classmethod
    def zeros(cls, num_replica_groups: int, num_temperatures: int, device: torch.device) -> "Statistics":
        """Empty sums."""

        def real(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=device)

        def count(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.int64, device=device)

        k, table = num_temperatures, (num_replica_groups, num_temperatures)
        return cls(
            events=count(),
            time=real(),
            time_squared=real(),
            kinetic=real(*table),
            energy=real(*table),
            energy_squared=real(*table),
            energy_time=real(*table),
            attempts=count(k - 1),
            accepts=count(k - 1),
            restarts=count(k),
            last_end=count(num_replica_groups * k),
            round_trips=count(),
        )

    def tensors(self) -> dict[str, Tensor]:
        """The sums by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def measure(self, kinetic_temperature: Tensor, energy: Tensor, time: float) -> None:
        """Add one measurement of each replica: (replica groups, temperatures) in K and kJ/mol, at a time in ps."""
        energy = energy.double()
        self.events += 1
        self.time += time
        self.time_squared += time * time
        self.kinetic += kinetic_temperature.double()
        self.energy += energy
        self.energy_squared += energy.square()
        self.energy_time += energy * time

    def follow(self, walker: Tensor) -> None:
        """Update round trips from the walker (replica groups, temperatures) now at each temperature."""
        if walker.shape[1] < 2:
            return
        bottom, top = walker[:, 0], walker[:, -1]
        self.round_trips += (self.last_end[bottom] == 2).sum()
        self.last_end[bottom] = 1
        ends = self.last_end[top]
        self.last_end[top] = torch.where(ends == 1, 2, ends)

    def energy_drift(self) -> Tensor:
        """Least-squares slope (L, K) of energy against time, kJ/mol/ns."""
        covariance = self.events * self.energy_time - self.time * self.energy
        return 1000.0 * covariance / (self.events * self.time_squared - self.time.square())

    def summary(self) -> dict[str, object]:
        """Plain numbers for a report; None where nothing was measured.

        Errors are standard errors over replica groups, which are independent of each other; None for a single one.
        """
        n, groups = int(self.events), len(self.kinetic)
        mean = self.energy.mean(0) / max(n, 1)
        deviation = (self.energy_squared.mean(0) / max(n, 1) - mean.square()).clamp_min(0).sqrt()
        temperature, drift = self.kinetic / max(n, 1), self.energy_drift()
        attempts = self.attempts.tolist()
        return {
            "measurements_per_temperature": n * groups,
            "kinetic_temperature_K": temperature.mean(0).tolist() if n else None,
            "kinetic_temperature_error_K": _standard_error(temperature) if n else None,
            "energy_mean_kJ_per_mol": mean.tolist() if n else None,
            "energy_std_kJ_per_mol": deviation.tolist() if n else None,
            "energy_drift_kJ_per_mol_per_ns": drift.mean(0).tolist() if n > 1 else None,
            "energy_drift_error_kJ_per_mol_per_ns": _standard_error(drift) if n > 1 else None,
            "swap_acceptance": [
                accepted / tried if tried else None
                for accepted, tried in zip(self.accepts.tolist(), attempts, strict=True)
            ],
            "swap_attempts": attempts,
            "replicas_restarted": int(self.restarts.sum()),
            "replicas_restarted_per_temperature": self.restarts.tolist(),
            "round_trips": int(self.round_trips),
        }


def _standard_error(values: Tensor) -> list[float] | None:
    """Of the mean over the first dimension."""
    if len(values) < 2:
        return None
    return (values.std(0) / len(values) ** 0.5).tolist()
