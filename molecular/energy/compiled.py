"""An OpenMM System as one batched torch module."""

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any, cast

import openmm
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from molecular.energy.bonded import HarmonicAngles, HarmonicBonds
from molecular.energy.generalized_born import GeneralizedBorn
from molecular.energy.implicit_solvent import read_custom_gb, read_gbsa_obc
from molecular.energy.nonbonded import Nonbonded
from molecular.energy.pairs import Pair, PairList, PairTerm
from molecular.energy.threads import for_each, keep_freed_memory, serial_operators
from molecular.energy.torsions import PeriodicTorsions

SUPPORTED = (
    "HarmonicBondForce, HarmonicAngleForce, PeriodicTorsionForce, NonbondedForce, GBSAOBCForce, "
    "CustomGBForce (OBC1 and OBC2 of openmm.app) and CMMotionRemover"
)


def compile_system(
    system: openmm.System,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    compile: bool = False,
) -> "CompiledEnergy":
    """The potential energy of an OpenMM System as a batched torch module.

    Args:
        system: supported are HarmonicBondForce, HarmonicAngleForce, PeriodicTorsionForce, NonbondedForce and
            GBSAOBCForce or an OBC CustomGBForce, without cutoff or with a non-periodic one; CMMotionRemover is ignored.
        dtype, device: where and in which precision to compute; `.to(...)` changes both later without loss.
        compile: fuse the arithmetic by `torch.compile`: about twice as fast, but the first calls of `energy` and
            `energy_and_force` take half a minute each, and torch compiles for some 8 systems a process.

    Raises:
        ValueError: names the first force, constraint or virtual site that is not supported.

    Example:
        >>> energy = compile_system(Peptide("AA").system)
        >>> potential, force = energy.energy_and_force(x)  # (B, n, 3) nm -> (B,) kJ/mol, (B, n, 3) kJ/mol/nm
    """
    _refuse_constraints(system)
    forces: dict[type, list[Any]] = {}
    for force in system.getForces():
        if type(force) not in _TERMS and not isinstance(force, openmm.CMMotionRemover):
            raise ValueError(f"The system has a {type(force).__name__}; compile_system supports {SUPPORTED}.")
        if force.usesPeriodicBoundaryConditions():
            raise ValueError(f"{force.getName()} is periodic; compile_system supports non-periodic forces only.")
        forces.setdefault(type(force), []).append(force)
    if len(forces.get(openmm.NonbondedForce, [])) > 1:
        raise ValueError("The system has several NonbondedForces; compile_system supports one.")
    pair_list = PairList(system.getNumParticles(), _pair_groups(system.getNumParticles(), forces))
    terms = [_TERMS[kind](force, pair_list) for kind in _TERMS for force in forces.get(kind, [])]
    return CompiledEnergy(pair_list, terms, compile).to(device=device, dtype=dtype)


class CompiledEnergy(nn.Module):
    """Potential energies and analytic forces of batches of conformations; built by `compile_system`.

    Inputs are positions (..., n, 3) in nm; they are converted to the module's dtype. Coordinates that are not
    finite, or atoms on top of each other, give an energy that is not finite, in that conformation only.
    """

    # Size of the largest temporaries: a few of them fit a core's cache. On an accelerator it only bounds the memory.
    chunk_bytes = 1 << 20
    chunk_bytes_accelerator = 1 << 28
    # Fewer conformations than this are not worth a thread of their own.
    smallest_share = 64

    def __init__(self, pair_list: PairList, terms: list[nn.Module], compile: bool = False) -> None:
        super().__init__()
        self.num_atoms = pair_list.num_atoms
        self.fused = compile
        self.pair_list = pair_list
        self.pair_terms = nn.ModuleList(term for term in terms if not isinstance(term, PeriodicTorsions))
        self.atom_terms = nn.ModuleList(term for term in terms if isinstance(term, PeriodicTorsions))
        self.register_buffer("_reference", torch.zeros((), dtype=torch.float64), persistent=False)

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the computation."""
        return self._reference.dtype  # type: ignore[union-attr, return-value]

    @property
    def device(self) -> torch.device:
        """Where the parameters are, and positions must be."""
        return self._reference.device  # type: ignore[union-attr, return-value]

    def energy(self, x: Tensor) -> Tensor:
        """Energies (...,) in kJ/mol of positions x (..., n, 3) in nm; differentiable once with respect to x."""
        if torch.is_grad_enabled() and x.requires_grad:
            return _DifferentiableEnergy.apply(x, self)
        return self._run(x, with_force=False)[0]

    forward = energy

    def energy_and_force(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Energies (...,) in kJ/mol and forces (..., n, 3) in kJ/mol/nm of positions x (..., n, 3) in nm; no graph.

        Raises ValueError if x does not end in (n, 3) or is on another device.
        """
        energy, force = self._run(x, with_force=True)
        assert force is not None
        return energy, force

    def _run(self, x: Tensor, with_force: bool) -> tuple[Tensor, Tensor | None]:
        if x.shape[-2:] != (self.num_atoms, 3):
            raise ValueError(f"Positions must have shape (..., {self.num_atoms}, 3); got {tuple(x.shape)}.")
        if x.device != self.device:
            raise ValueError(f"Positions are on {x.device}, the energy on {self.device}; move one with .to(device).")
        kernel = _fused_kernel() if self.fused else CompiledEnergy._evaluate
        flat = x.detach().reshape(-1, 3 * self.num_atoms)
        energy = flat.new_empty(len(flat), dtype=self.dtype)
        force = flat.new_empty(len(flat), self.num_atoms, 3, dtype=self.dtype) if with_force else None

        def work(part: slice) -> None:
            coordinates = flat[part].to(self.dtype).t().contiguous()
            energy[part], chunk_force = kernel(self, coordinates, with_force)
            if force is not None and chunk_force is not None:
                force[part] = chunk_force.permute(2, 1, 0)

        if self.device.type == "cpu":
            keep_freed_memory()
            with serial_operators() as threads:
                for_each(work, self._chunks(len(flat), threads), threads)
        else:
            for_each(work, self._chunks(len(flat), 1), 1)
        return energy.view(x.shape[:-2]), None if force is None else force.view(x.shape)

    def _chunks(self, number: int, threads: int) -> list[slice]:
        """Parts of a batch, as equal as may be, that are evaluated one by one."""
        share = max(self.smallest_share, math.ceil(number / threads))
        count = math.ceil(number / min(share, self.chunk_size))
        edges = [number * index // max(1, count) for index in range(count + 1)]
        return [slice(start, stop) for start, stop in itertools.pairwise(edges)]

    @property
    def chunk_size(self) -> int:
        """Most conformations evaluated together."""
        largest = 2 * max(len(self.pair_list), self.num_atoms)
        room = self.chunk_bytes if self.device.type == "cpu" else self.chunk_bytes_accelerator
        return max(16, room // (largest * self.dtype.itemsize))

    def _evaluate(self, x: Tensor, with_force: bool) -> tuple[Tensor, Tensor | None]:
        """Energies (B,) and forces (3, n, B) of coordinates x (3n, B)."""
        pairs = self.pair_list.measure(x)
        slope = torch.zeros_like(pairs.distance) if with_force else None
        energy = x.new_zeros(x.shape[1])
        for term in self.pair_terms:
            energy += cast(PairTerm, term).energy_and_slope(pairs, slope)
        force = self.pair_list.force(pairs, slope) if slope is not None else None
        for term in self.atom_terms:
            energy += cast(PeriodicTorsions, term).energy_and_force(x, force)
        return energy, force


@functools.cache
def _fused_kernel() -> Callable[[CompiledEnergy, Tensor, bool], tuple[Tensor, Tensor | None]]:
    return torch.compile(CompiledEnergy._evaluate, dynamic=True)


class _DifferentiableEnergy(torch.autograd.Function):
    """Energy whose gradient is the analytic force."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, module: CompiledEnergy) -> Tensor:
        energy, force = module.energy_and_force(x)
        ctx.save_for_backward(force)
        ctx.input_dtype = x.dtype
        return energy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (force,) = ctx.saved_tensors
        return (-grad[..., None, None] * force).to(ctx.input_dtype), None


_TERMS: dict[type, Callable[[Any, PairList], nn.Module]] = {
    openmm.HarmonicBondForce: HarmonicBonds,
    openmm.HarmonicAngleForce: HarmonicAngles,
    openmm.PeriodicTorsionForce: lambda force, pair_list: PeriodicTorsions(force),
    openmm.NonbondedForce: Nonbonded,
    openmm.GBSAOBCForce: lambda force, pair_list: GeneralizedBorn(read_gbsa_obc(force), pair_list),
    openmm.CustomGBForce: lambda force, pair_list: GeneralizedBorn(read_custom_gb(force), pair_list),
}


def _pair_groups(num_atoms: int, forces: dict[type, list[Any]]) -> list[list[Pair]]:
    """Pairs that any term needs, in the order the terms' slices expect."""
    groups: list[list[Pair]] = []
    for force in forces.get(openmm.NonbondedForce, []):
        excluded, exceptions = Nonbonded.special_pairs(force)
        groups += [excluded, list(exceptions)]
    if forces.keys() & {openmm.NonbondedForce, openmm.GBSAOBCForce, openmm.CustomGBForce}:
        return [*groups, list(itertools.combinations(range(num_atoms), 2))]
    for force in forces.get(openmm.HarmonicBondForce, []):
        groups.append(HarmonicBonds.pairs_of(force))
    for force in forces.get(openmm.HarmonicAngleForce, []):
        groups.append(HarmonicAngles.pairs_of(force))
    return groups


def _refuse_constraints(system: openmm.System) -> None:
    if system.getNumConstraints():
        raise ValueError("The system has constraints; compile_system supports systems built with constraints=None.")
    for index in range(system.getNumParticles()):
        if system.isVirtualSite(index):
            raise ValueError(f"Particle {index} is a virtual site; compile_system supports ordinary particles only.")
