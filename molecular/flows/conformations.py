"""What all flows on conformations of molecules have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Self, cast

import torch
from nflows.transforms import Transform
from torch import Tensor

from molecular.energy.symmetries import Symmetries
from molecular.flows.rigid_motion import random_rigid_motion
from molecular.molecule.canonical_names import Naming
from molecular.molecule.equivalent_atoms import SymmetryTable
from molecular.molecule.features import pad
from molecular.molecule.molecule import Molecule
from molecular.molecule.topology import Topology
from nflib.flows import Flow, GivenFlow

if TYPE_CHECKING:
    from molecular.molecule.topology import AnyTopology


class ConformationFlow(Flow):
    """The base of all flows of molecules: on positions ``(B, n, 3)`` in nm, of one molecule or of any it is given."""

    def given(self, context: Any = None) -> GivenFlow:
        """This flow for one molecule: a distribution of positions ``(n, 3)``.

        Raises ValueError for a molecule that it does not take.
        """
        return super().given(context)

    def context(self, *molecules: AnyTopology) -> Tensor | None:
        """The context of molecules, padded, ``(len(molecules), n_max, k)``; None for a flow of one molecule alone."""
        return None

    @property
    def places_molecules(self) -> bool:
        """Whether the density is over position and orientation as well, 3n numbers in place of 3n - 6."""
        return False

    def target_energy(self, energy: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """A reduced energy, made the target of this flow: over the space of its density.

        Such as with an energy of the centroid for a density that places molecules, or infinite where atoms are named
        otherwise than the flow ever names them. Here: the energy itself.

        Args:
            energy: a function of positions ``(B, n, 3)`` in nm that returns ``(B,)`` in kT.
        """
        return energy

    def placed(self, positions: Tensor, mask: Tensor, generator: torch.Generator) -> Tensor:
        """Conformations ``(B, n, 3)`` where this flow's density has them: where they are, or moved as rigid bodies.

        Args:
            positions: ``(B, n, 3)``.
            mask: ``(B, n)``, False at padding.
            generator: of random rotations and shifts.
        """
        return positions

    def augmentation(self, molecule: Molecule) -> Callable[[Tensor, torch.Generator], Tensor]:
        """Random symmetry operations for training on conformations: a function of positions and generator."""
        return Symmetries(molecule)

    def terms_of_average(self) -> dict[str, Any]:
        """What flows must have in common to have an average (`molecular.AveragedProse`), by name.

        Raises ValueError where this one has none with any other, in words that end a sentence.
        """
        raise ValueError(f"one is a {type(self).__name__}, not an InternalProse")


class GivenMolecule(GivenFlow):
    """A flow given one molecule: a distribution of its positions ``(n, 3)`` in nm.

    Args:
        flow: of this molecule, or of any.
        context: of the molecule, ``(1, n, k)``; None for a flow of this one alone.
        topology: of the molecule.
    """

    flow: Any

    def __init__(self, flow: ConformationFlow, context: Tensor | None, topology: AnyTopology):
        self.topology = Topology.of(topology)
        super().__init__(flow, context, (self.topology.num_atoms, 3))

    def check(self, molecule: AnyTopology) -> None:
        """Raise ValueError unless this is the molecule that the flow was given."""
        difference = self.topology.difference(Topology.of(molecule))
        if difference is not None:
            raise ValueError(f"the flow is of another molecule: {difference}; choose another model.")

    def target_energy(self, energy: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """See `ConformationFlow.target_energy`."""
        return cast(Callable[[Tensor], Tensor], self.flow.target_energy(energy))

    def split_coordinates(self) -> tuple[Transform, Flow | GivenFlow]:
        """See the function `split_coordinates`."""
        return cast(tuple[Transform, Flow], split_coordinates(self.flow))


def split_coordinates(flow: Any) -> tuple[Transform, Any]:
    """A flow's fixed map from positions ``(B, n, 3)`` to unconstrained coordinates, and the flow on those.

    Raises ValueError for a flow that cannot be taken apart so.
    """
    if not hasattr(flow, "split_coordinates"):
        raise ValueError(
            f"a {type(flow).__name__} has no split_coordinates, so its samples cannot be moved; use importance "
            "sampling."
        )
    return cast(tuple[Transform, Any], flow.split_coordinates())


class TransferableFlow(ConformationFlow):
    """The base of transferable flows: on conformations of any molecule, which one integer tensor describes.

    Its `embedding_net` checks contexts, and knows how long a molecule may be (`CheckedContext`).

    Attributes:
        given_class: what it is, given one molecule.
    """

    given_class: type[GivenMolecule] = GivenMolecule

    @property
    def max_atoms(self) -> int:
        """Atoms of the longest molecule that it takes."""
        return cast(int, self._embedding_net.max_atoms)

    @abstractmethod
    def context_of(self, molecule: AnyTopology) -> Tensor:
        """The context of one molecule, ``(n, k)`` int64; raises ValueError for one that the flow does not know."""

    def symmetries(self, molecules: Sequence[AnyTopology]) -> Naming:
        """How equivalent atoms of molecules are named for this flow: at random, or canonically.

        Raises ValueError for a molecule whose symmetries are not known.
        """
        return SymmetryTable.of(molecules)

    def augmentation(self, molecule: Molecule) -> Callable[[Tensor, torch.Generator], Tensor]:
        """See `ConformationFlow.augmentation`."""
        return _Turned(self, molecule)

    @abstractmethod
    def fitted(self, batches: Sequence[dict[str, Tensor]]) -> Self:
        """This flow, or one like it, whose parts that are not trained, such as marginals, are fitted to conformations.

        Args:
            batches: each "inputs" ``(B, n, 3)`` in nm with their "context".
        """

    def given(self, context: Any = None) -> GivenFlow:
        """This flow for one molecule, such as a Peptide, or its context: a distribution of positions ``(n, 3)``."""
        if isinstance(context, Tensor):
            return super().given(context)
        return self.given_class(self, self.context(context), context)

    def context(self, *molecules: AnyTopology) -> Tensor:
        """The contexts of molecules, padded, ``(len(molecules), n_max, k)``, on the flow's device.

        Raises ValueError for no molecule, or one that the flow does not know.
        """
        return pad([self.context_of(molecule) for molecule in molecules]).to(next(self.parameters()).device)


class _Turned:
    """Equivalent atoms named as the flow knows them and, on plain positions, random rotations about the centroid, which
    stays where it is: an energy label belongs to its place."""

    def __init__(self, flow: TransferableFlow, molecule: Molecule):
        self.table, self.rotate = flow.symmetries([molecule]), flow.places_molecules

    def __call__(self, positions: Tensor, generator: torch.Generator) -> Tensor:
        turned = self.table.turn(positions, torch.zeros(len(positions), dtype=torch.int64), generator)
        if not self.rotate:
            return turned
        mask = torch.ones(turned.shape[:2], dtype=torch.bool, device=turned.device)
        return random_rigid_motion(turned, mask, 0.0, generator) + turned.mean(1, keepdim=True)
