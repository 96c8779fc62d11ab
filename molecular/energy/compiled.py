"""An OpenMM System as one batched torch module."""

import itertools
import logging
import math
from collections.abc import Callable
from types import FunctionType
from typing import Any, Literal, cast, overload

import openmm
import torch
from torch import Tensor, nn

from molecular.energy.bonded import HarmonicAngles, HarmonicBonds
from molecular.energy.correction_maps import CorrectionMaps
from molecular.energy.dihedrals import AtomTerm
from molecular.energy.generalized_born import GeneralizedBorn
from molecular.energy.implicit_solvent import read_custom_gb, read_gbsa_obc
from molecular.energy.nonbonded import Nonbonded
from molecular.energy.openmm_energy import OpenMMEnergy
from molecular.energy.pairs import Pair, PairList, PairTerm
from molecular.energy.potential import PotentialEnergy
from molecular.energy.sums import total
from molecular.energy.threads import for_each, keep_freed_memory
from molecular.energy.torsions import PeriodicTorsions
from molecular.energy.unsupported import MOTION_ONLY, UnsupportedForce, refuse_constraints
from molecular.molecule.force_fields import check_system
from nflib.threads import one_thread

_logger = logging.getLogger(__name__)

Kernel = Callable[["CompiledEnergy", Tensor, bool], tuple[Tensor, Tensor | None]]

SUPPORTED = (
    "HarmonicBondForce, HarmonicAngleForce, PeriodicTorsionForce, CMAPTorsionForce, NonbondedForce, GBSAOBCForce, "
    "CustomGBForce (HCT, OBC1, OBC2, GBn and GBn2 of openmm.app), CMMotionRemover and AndersenThermostat"
)


@overload
def compile_system(
    system: openmm.System,
    dtype: torch.dtype = ...,
    device: torch.device | str = ...,
    compile: bool = ...,
    batch_size: int | None = ...,
    fallback: Literal[False] = ...,
) -> "CompiledEnergy": ...


@overload
def compile_system(
    system: openmm.System,
    dtype: torch.dtype = ...,
    device: torch.device | str = ...,
    compile: bool = ...,
    batch_size: int | None = ...,
    *,
    fallback: bool,
) -> PotentialEnergy: ...


def compile_system(
    system: openmm.System,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    compile: bool = False,
    batch_size: int | None = None,
    fallback: bool = False,
) -> PotentialEnergy:
    """The potential energy of an OpenMM System as a batched torch module.

    Args:
        system: supported are HarmonicBondForce, HarmonicAngleForce, PeriodicTorsionForce, CMAPTorsionForce,
            NonbondedForce, and GBSAOBCForce or openmm.app's HCT, OBC1, OBC2, GBn and GBn2 as CustomGBForce (with or
            without salt and the ACE surface term), without cutoff or with a non-periodic one; CMMotionRemover and
            AndersenThermostat are ignored.
        dtype: precision of the computation; `.to(...)` changes it, and the device, later without loss.
        device: that positions must be on.
        compile: fuse the arithmetic by `torch.compile`; the first calls of `energy` and `energy_and_force` take up to
            a minute each, later ones take batches of any size.
        batch_size: most conformations evaluated together by a thread; by default what fits a core's cache, on an
            accelerator what keeps each temporary below 256 MiB. Larger batches are split.
        fallback: return an `OpenMMEnergy` (CPU platform) for a system with an unsupported force, with a warning in
            the log that names it, instead of raising ValueError.

    Raises:
        ValueError: no System is given, or one with a force, constraint or virtual site that is not supported: the first
            is named.

    Example:
        >>> from molecular import Peptide
        >>> peptide = Peptide("AA")
        >>> energy = compile_system(peptide.system)
        >>> x = torch.as_tensor(peptide.positions, dtype=torch.float32)[None]
        >>> potential, force = energy.energy_and_force(x)  # (B, n, 3) nm -> (B,) kJ/mol, (B, n, 3) kJ/mol/nm
        >>> potential.shape, force.shape
        (torch.Size([1]), torch.Size([1, 23, 3]))
    """
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; give a positive number of conformations.")
    check_system(system)
    refuse_constraints(system)
    try:
        forces = _sort_forces(system)
        pair_list = PairList(system.getNumParticles(), _pair_groups(system.getNumParticles(), forces))
        terms = [_TERMS[kind](force, pair_list) for kind in _TERMS for force in forces.get(kind, [])]
    except UnsupportedForce as error:
        if not fallback:
            raise
        _logger.warning("%s OpenMM's CPU platform evaluates this system instead.", error)
        return OpenMMEnergy(system, dtype=dtype, device=device)
    return CompiledEnergy(pair_list, terms, compile, batch_size).to(device=device, dtype=dtype)


def _sort_forces(system: openmm.System) -> dict[type, list[Any]]:
    """The forces of the system by type."""
    forces: dict[type, list[Any]] = {}
    for force in system.getForces():
        if type(force) not in _TERMS and not isinstance(force, MOTION_ONLY):
            raise UnsupportedForce(f"The system has a {type(force).__name__}; compile_system supports {SUPPORTED}.")
        if force.usesPeriodicBoundaryConditions():
            raise UnsupportedForce(f"{force.getName()} is periodic; compile_system supports non-periodic forces only.")
        forces.setdefault(type(force), []).append(force)
    if len(forces.get(openmm.NonbondedForce, [])) > 1:
        raise UnsupportedForce("The system has several NonbondedForces; compile_system supports one.")
    return forces


class CompiledEnergy(PotentialEnergy):
    """Potential energies and analytic forces of batches of conformations; built by `compile_system`.

    Positions (..., n, 3) in nm are converted to the module's dtype.

    Args:
        pair_list: the pairs of atoms whose distances the terms need.
        terms: of the energy.
        compile: as of `compile_system`.
        batch_size: as of `compile_system`.
    """

    # Size of the largest temporaries: a few of them fit a core's cache. On an accelerator it only bounds the memory.
    chunk_bytes = 1 << 20
    chunk_bytes_accelerator = 1 << 28
    # Fewer conformations than this are not worth a thread of their own.
    smallest_share = 64

    def __init__(
        self,
        pair_list: PairList,
        terms: list[PairTerm | AtomTerm],
        compile: bool = False,
        batch_size: int | None = None,
    ) -> None:
        super().__init__(pair_list.num_atoms)
        self.fused, self.batch_size = compile, batch_size
        self._kernel: Kernel | None = None
        self.pair_list = pair_list
        self.pair_terms = nn.ModuleList(term for term in terms if isinstance(term, PairTerm))
        self.atom_terms = nn.ModuleList(term for term in terms if isinstance(term, AtomTerm))

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_kernel": None}

    def _evaluate_batch(self, x: Tensor, with_force: bool) -> tuple[Tensor, Tensor | None]:
        if self.fused and self._kernel is None:
            self._kernel = _fuse(cast(FunctionType, CompiledEnergy._evaluate_chunk), self.device.type)
        kernel = self._kernel or CompiledEnergy._evaluate_chunk
        flat = x.flatten(1)
        energy = flat.new_empty(len(flat), dtype=self.dtype)
        force = flat.new_empty(len(flat), self.num_atoms, 3, dtype=self.dtype) if with_force else None

        def work(part: slice) -> None:
            size = part.stop - part.start
            # The compiler would make one conformation a case of its own; it is evaluated twice instead.
            coordinates = torch.empty(
                flat.shape[1], max(size, 2) if self.fused else size, dtype=self.dtype, device=self.device
            )
            chunk_energy, chunk_force = kernel(self, coordinates.copy_(flat[part].t()), with_force)
            energy[part] = chunk_energy[:size]
            if force is not None and chunk_force is not None:
                force[part] = chunk_force[..., :size].permute(2, 1, 0)

        if self.device.type == "cpu":
            keep_freed_memory()
            with one_thread() as threads:
                for_each(work, self._chunks(len(flat), threads), threads)
        else:
            for_each(work, self._chunks(len(flat), 1), 1)
        return energy, force

    def _chunks(self, number: int, threads: int) -> list[slice]:
        """Parts of a batch, as equal as may be, that are evaluated one by one."""
        share = max(self.smallest_share, math.ceil(number / threads))
        count = math.ceil(number / min(share, self.chunk_size))
        edges = [number * index // max(1, count) for index in range(count + 1)]
        return [slice(start, stop) for start, stop in itertools.pairwise(edges)]

    @property
    def chunk_size(self) -> int:
        """Most conformations evaluated together by a thread."""
        if self.batch_size is not None:
            return self.batch_size
        largest = 2 * max(len(self.pair_list), self.num_atoms)
        room = self.chunk_bytes if self.device.type == "cpu" else self.chunk_bytes_accelerator
        return max(16, room // (largest * self.dtype.itemsize))

    def _evaluate_chunk(self, x: Tensor, with_force: bool) -> tuple[Tensor, Tensor | None]:
        """Energies (B,), summed as `total` does, and forces (3, n, B) of coordinates x (3n, B)."""
        pairs = self.pair_list.measure(x)
        slope = torch.zeros_like(pairs.distance) if with_force else None
        energy = total(x[:0])
        for term in self.pair_terms:
            energy += cast(PairTerm, term).energy_and_slope(pairs, slope)
        force = self.pair_list.force(pairs, slope) if slope is not None else None
        for term in self.atom_terms:
            energy += cast(AtomTerm, term).energy_and_force(x, force)
        return energy, force


def _fuse(function: FunctionType, device_type: str) -> Kernel:
    """`function` compiled for any batch of more than one conformation."""
    # Torch keeps what it compiled with the code object, eight variants at most: each energy gets a code of its own.
    own = FunctionType(function.__code__.replace(), function.__globals__, function.__name__)
    # The wrapper in C++ lets go of Python's lock, so that the threads of `for_each` run side by side.
    options: dict[str, Any] = {"cpp_wrapper": True} if device_type == "cpu" else {}
    return torch.compile(own, dynamic=True, fullgraph=True, options=options)


_TERMS: dict[type, Callable[[Any, PairList], PairTerm | AtomTerm]] = {
    openmm.HarmonicBondForce: HarmonicBonds,
    openmm.HarmonicAngleForce: HarmonicAngles,
    openmm.PeriodicTorsionForce: lambda force, pair_list: PeriodicTorsions(force),
    openmm.CMAPTorsionForce: lambda force, pair_list: CorrectionMaps(force),
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
