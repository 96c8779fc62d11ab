"""Several flows given one molecule, as one proposal: their mixture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from nflows.transforms import Transform
from torch import Tensor

from molecular.flows.conformations import GivenMolecule
from nflib.montecarlo import Mixture, TransformedProposal

if TYPE_CHECKING:
    from molecular.molecule.topology import AnyTopology


class GivenMixture(Mixture):
    """The equal mixture of flows given one molecule: a proposal of positions ``(n, 3)`` in nm, with its exact density.

    Flows that were trained apart err apart: where one has too few draws another has some, so weights spread less than
    those of any one of them. Draws and energies cost what those of one flow do, a density a pass through each flow.

    Args:
        flows: given the same molecule.

    Raises:
        ValueError: flows of different molecules, or of densities over different spaces: with position and orientation,
            and without.
    """

    def __init__(self, flows: Sequence[GivenMolecule]):
        super().__init__(flows)
        self.first = flows[0]
        for flow in flows[1:]:
            flow.check(self.first.topology)
            if flow.flow.places_molecules != self.first.flow.places_molecules:
                raise ValueError(
                    "of the flows to mix, some have densities over position and orientation as well, others not; mix "
                    "flows of one kind."
                )

    def check(self, molecule: AnyTopology) -> None:
        """See `GivenMolecule.check`."""
        self.first.check(molecule)

    def target_energy(self, energy: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """See `ConformationFlow.target_energy`."""
        return self.first.target_energy(energy)

    def split_coordinates(self) -> tuple[Transform, TransformedProposal]:
        """The first flow's fixed map from positions to unconstrained coordinates, and the mixture in these.

        Raises ValueError for a flow that cannot be taken apart so.
        """
        fixed, _ = self.first.split_coordinates()
        return fixed, TransformedProposal(self, fixed)
