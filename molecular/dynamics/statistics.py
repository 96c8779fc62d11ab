"""Running statistics of a parallel-tempering simulation, kept on the device of the simulation."""

from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass
class Statistics:
    """Sums over the production part; K temperatures, W = B walkers (a walker is what swaps carry around).

    samples () number of measurements; kinetic (K,) sum of kinetic temperatures, K; energy, energy_squared
    (K,) kJ/mol; attempts, accepts (K - 1,) swaps of each neighbour pair; restarts (K,) replicas restarted,
    equilibration included; last_end (W,) 0 none, 1 bottom, 2 top; round_trips () bottom to top and back to
    the bottom.
    """

    samples: Tensor
    kinetic: Tensor
    energy: Tensor
    energy_squared: Tensor
    attempts: Tensor
    accepts: Tensor
    restarts: Tensor
    last_end: Tensor
    round_trips: Tensor

    @classmethod
    def zeros(cls, num_temperatures: int, num_walkers: int, device: torch.device) -> "Statistics":
        """Empty sums."""

        def real(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=device)

        def count(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.int64, device=device)

        k, pairs = num_temperatures, num_temperatures - 1
        return cls(
            count(),
            real(k),
            real(k),
            real(k),
            count(pairs),
            count(pairs),
            count(k),
            count(num_walkers),
            count(),
        )

    def tensors(self) -> dict[str, Tensor]:
        """The sums by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def measure(self, kinetic_temperature: Tensor, energy: Tensor) -> None:
        """Add one measurement of each replica: (ladders, temperatures) in K and kJ/mol."""
        energy = energy.double()
        self.samples += kinetic_temperature.shape[0]
        self.kinetic += kinetic_temperature.double().sum(0)
        self.energy += energy.sum(0)
        self.energy_squared += energy.square().sum(0)

    def follow(self, walker: Tensor) -> None:
        """Update round trips from the walker (ladders, temperatures) now at each temperature."""
        if walker.shape[1] < 2:
            return
        bottom, top = walker[:, 0], walker[:, -1]
        self.round_trips += (self.last_end[bottom] == 2).sum()
        self.last_end[bottom] = 1
        ends = self.last_end[top]
        self.last_end[top] = torch.where(ends == 1, 2, ends)

    def summary(self) -> dict[str, object]:
        """Plain numbers for a report; None where nothing was measured."""
        n = int(self.samples)
        mean = self.energy / max(n, 1)
        deviation = (self.energy_squared / max(n, 1) - mean.square()).clamp_min(0).sqrt()
        attempts = self.attempts.tolist()
        return {
            "measurements_per_temperature": n,
            "kinetic_temperature_K": (self.kinetic / n).tolist() if n else None,
            "energy_mean_kJ_per_mol": mean.tolist() if n else None,
            "energy_std_kJ_per_mol": deviation.tolist() if n else None,
            "swap_acceptance": [
                accepted / tried if tried else None
                for accepted, tried in zip(self.accepts.tolist(), attempts, strict=True)
            ],
            "swap_attempts": attempts,
            "replicas_restarted": int(self.restarts.sum()),
            "replicas_restarted_per_temperature": self.restarts.tolist(),
            "round_trips": int(self.round_trips),
        }
