"""A transferable flow on internal coordinates, given one molecule."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from nflows.transforms import CompositeTransform, Transform
from torch import Tensor

from molecular.coordinates.internal import coordinate_kinds
from molecular.coordinates.local_frames import LocalFrames
from molecular.coordinates.spherical import Spherical, WrapTorsions
from molecular.flows.conformations import GivenMolecule
from molecular.molecule.canonical_names import CanonicalEnergy
from molecular.molecule.features import ATOM_TYPES
from molecular.molecule.internal_context import ROWS_BEFORE_TOKENS, Column
from molecular.molecule.orderings import ordering
from nflib.flows import Flow, GivenFlow
from nflib.transforms import Permute

if TYPE_CHECKING:
    from molecular.molecule.topology import AnyTopology


class GivenInternalMolecule(GivenMolecule):
    """A flow on internal coordinates (`InternalProse`) given one molecule: a distribution of positions ``(n, 3)``."""

    def __init__(self, flow: Any, context: Tensor, molecule: AnyTopology):
        super().__init__(flow, context, molecule)
        self._atoms = ordering(molecule, "n2c_residue-by-residue_standard")
        place = self._atoms.argsort().tolist()
        self._bonds = [(place[a], place[b]) for a, b in self.topology.bonds]

    def target_energy(self, energy: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """The energy itself, or, of a flow that knows canonical names alone, that of conformations so named."""
        return CanonicalEnergy(energy, self.topology) if self.flow.canonical_names else energy

    def split_coordinates(self) -> tuple[Transform, GivenFlow]:
        """The fixed map from positions to internal coordinates ``(B, n - 2, 3)``, and the flow on those.

        Together they are this flow, on the same weights: ``log_prob(x) = rest.log_prob(y) + logabsdet`` with
        ``y, logabsdet = fixed(x)``. The coordinates are those of `Spherical`, without translation
        and rotation, all real numbers and periodic in torsions; fixed needs no context.
        """
        flow, context = self.flow, self.context
        rows = context[0]
        codes = rows[rows[:, Column.ATOM].argsort()][self._atoms, 0].tolist()
        elements = [ATOM_TYPES[code - 1][0] for code in codes]
        root = int(self._atoms.argsort()[rows[0, Column.ATOM]])
        steps: list[Transform] = [
            Permute(self._atoms),
            LocalFrames(self._bonds, len(elements), elements, root=root),
            Spherical(flow.coordinates.offsets[rows[ROWS_BEFORE_TOKENS:, Column.KIND]]),
            WrapTorsions(),
        ]
        fixed = CompositeTransform([step.to(context.device) for step in steps])
        marginals = flow.marginals.for_event(coordinate_kinds(context)[0])
        tokens = [WrapTorsions(), marginals, *flow.blocks]
        rest = Flow(CompositeTransform(tokens), flow._distribution, flow._embedding_net)
        return fixed.eval(), rest.train(flow.training).given(context)
