"""A transferable flow on internal coordinates, given one molecule."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nflows.transforms import CompositeTransform, Transform

from molecular.coordinates import LocalFrames
from molecular.features import ATOM_TYPES
from molecular.orderings import ordering
from molecular.prose import MoleculeFlow
from molecular.spherical import PeriodicTorsions, Spherical
from molecular.transferable.context import ROWS_BEFORE_TOKENS, Column, bonds_of
from molecular.transferable.coordinates import coordinate_kinds
from nflib.flow import Flow
from nflib.transforms import Permute

if TYPE_CHECKING:
    import mdtraj
    from openmm import app

    from molecular.peptide import Peptide
    from molecular.transferable.flow import InternalProse


class InternalMoleculeFlow(MoleculeFlow):
    """An `InternalProse` flow given one molecule: densities and samples of its positions ``(B, n, 3)``."""

    flow: InternalProse

    def __init__(self, flow: InternalProse, molecule: Peptide | app.Topology | mdtraj.Topology):
        super().__init__(flow, flow.context(molecule))
        self._atoms = ordering(molecule, "n2c_residue-by-residue_standard")
        place = self._atoms.argsort().tolist()
        self._bonds = [(place[a], place[b]) for a, b in bonds_of(molecule)]

    def split_coordinates(self) -> tuple[Transform, MoleculeFlow]:
        """The fixed map from positions to internal coordinates ``(B, n - 2, 3)``, and the flow on those.

        Together they are this flow, on the same weights: ``log_prob(x) = rest.log_prob(y) + logabsdet`` with
        ``y, logabsdet = fixed(x)``. The coordinates are those of `molecular.spherical.Spherical`, without translation
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
            PeriodicTorsions(),
        ]
        fixed = CompositeTransform([step.to(context.device) for step in steps])
        marginals = flow.marginals.for_event(coordinate_kinds(context)[0])
        tokens = [PeriodicTorsions(), marginals, *flow.blocks]
        rest = Flow(CompositeTransform(tokens), flow._distribution, flow._embedding_net)
        return fixed.eval(), MoleculeFlow(rest.train(flow.training), context)
