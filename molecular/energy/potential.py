"""What every potential energy offers: energies, forces, gradients and reduced energies of batches."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from molecular.molecule.constants import MOLAR_GAS_CONSTANT


class PotentialEnergy(nn.Module):
    """The potential energy of a molecule of `num_atoms` atoms, as a torch module.

    Positions are (..., n, 3) in nm. Coordinates that are not finite, or atoms on top of each other, give an energy that
    is not finite or huge in that conformation only. Subclasses implement `_evaluate_batch`.
    """

    _reference: Tensor

    def __init__(self, num_atoms: int, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu") -> None:
        super().__init__()
        self.num_atoms = num_atoms
        self.register_buffer("_reference", torch.zeros((), dtype=dtype, device=device), persistent=False)

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the results."""
        return self._reference.dtype

    @property
    def device(self) -> torch.device:
        """Where positions must be, and results are."""
        return self._reference.device

    def _evaluate_batch(self, x: Tensor, with_force: bool) -> tuple[Tensor, Tensor | None]:
        """Energies (B,) and, if asked for, forces (B, n, 3) of positions (B, n, 3), without a graph."""
        raise NotImplementedError

    def energy(self, x: Tensor) -> Tensor:
        """Energies (...,) in kJ/mol of positions x (..., n, 3) in nm; differentiable once with respect to x."""
        x = torch.as_tensor(x)
        if torch.is_grad_enabled() and x.requires_grad:
            return _DifferentiableEnergy.apply(x, self)
        return self._evaluate(x, with_force=False)[0]

    forward = energy

    def energy_and_force(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Energies (...,) in kJ/mol and forces (..., n, 3) in kJ/mol/nm of positions x (..., n, 3) in nm; no graph.

        Raises ValueError if x does not end in (n, 3) or is on another device.
        """
        energy, force = self._evaluate(torch.as_tensor(x), with_force=True)
        assert force is not None
        return energy, force

    def reduced_energy(self, x: Tensor, temperature: float | Tensor) -> Tensor:
        """Energies (...,) in kT, U / (R T); differentiable once with respect to x.

        Args:
            x: positions (..., n, 3), nm.
            temperature: K, a number or a tensor that broadcasts against the energies: one temperature a replica.

        Raises:
            ValueError: a temperature that is not positive, or positions of another shape or on another device.
        """
        kelvin = torch.as_tensor(temperature, dtype=torch.float64)
        if not bool((kelvin > 0.0).all()):
            raise ValueError(f"temperature is {temperature} K; give a positive number, or a tensor of them.")
        energy = self.energy(x)
        return energy / (MOLAR_GAS_CONSTANT * kelvin).to(energy)

    def _evaluate(self, x: Tensor, with_force: bool) -> tuple[Tensor, Tensor | None]:
        if x.shape[-2:] != (self.num_atoms, 3):
            raise ValueError(f"Positions must have shape (..., {self.num_atoms}, 3); got {tuple(x.shape)}.")
        if x.device != self.device:
            raise ValueError(f"Positions are on {x.device}, the energy on {self.device}; move one with .to(device).")
        energy, force = self._evaluate_batch(x.detach().reshape(-1, self.num_atoms, 3), with_force)
        return energy.view(x.shape[:-2]), None if force is None else force.view(x.shape)


class _DifferentiableEnergy(torch.autograd.Function):
    """Energy whose gradient is minus the force."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, module: PotentialEnergy) -> Tensor:
        energy, force = module.energy_and_force(x)
        ctx.save_for_backward(force)
        ctx.input_dtype = x.dtype
        return energy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (force,) = ctx.saved_tensors
        return (-grad[..., None, None] * force).to(ctx.input_dtype), None
