"""One naming of a peptide's equivalent atoms: of those that symmetries of the energy make equal, torsions choose one.

A flow that knows one naming alone need not learn that the others are as likely, nor be wrong about it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from torch import Tensor

from molecular.molecule.equivalent_atoms import SymmetryTable, hydrogen_triples
from molecular.molecule.geometry import dihedrals
from molecular.molecule.internal_context import Column, internal_context
from molecular.molecule.symmetry import half_turns, methyl_rotations
from molecular.molecule.topology import Topology

if TYPE_CHECKING:
    from molecular.molecule.topology import AnyTopology

# Where, in degrees, the torsion of a group's first atom is in the canonical naming, half a period to either side: where
# simulations of dipeptides have it most often, so that few conformations are near the ends.
_THIRD_OF_A_TURN = 60.0
_HALF_A_TURN = {("PHE", "CD1"): 90.0, ("TYR", "CD1"): 90.0, ("GLY", "O"): 90.0}
_LAST_OXYGEN = -50.0
_NAMINGS = 3


class Naming(Protocol):
    """How equivalent atoms are named for a flow: at random (`SymmetryTable`), or canonically (`CanonicalNames`)."""

    # Of each molecule, the log of the number of equivalent namings; subtract it from log q to compare with a flow of
    # all namings.
    log_namings: Tensor

    def turn(self, positions: Tensor, molecules: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Name the atoms of conformations.

        Args:
            positions: ``(B, n, 3)``.
            molecules: ``(B,)``, the number of each conformation's molecule.
            generator: of random namings.
        """


class EquivalentGroup(NamedTuple):
    """A group of equivalent atoms, and the torsion that tells its namings apart.

    rows: (namings, atoms) int64, as of `molecular.molecule.symmetry.methyl_rotations`. torsions: (namings, 4) atoms, of
    which the last is the one that this row calls by the name of the group's first. centre: in radians, where the
    torsion is in the canonical naming.
    """

    rows: Tensor
    torsions: Tensor
    centre: float


def equivalent_groups(molecule: AnyTopology) -> list[EquivalentGroup]:
    """The groups of an uncapped peptide whose atoms change places, in the order in which they are named.

    The first atom of a group is the one that `internal_context` places first; its torsion is about the bond which the
    group turns about. Raises ValueError for a molecule that `molecular.molecule.orderings.named_residues` refuses.
    """
    topology = Topology.of(molecule)
    context = internal_context(molecule)
    atoms = context[:, Column.ATOM]
    place = atoms.argsort()
    found = []
    # The larger turns come first: what they carry along is named after them.
    for rows in [*half_turns(topology), *methyl_rotations(topology)]:
        column = int(place[rows[0]].argmin())
        first = int(rows[0, column])
        frame = atoms[context[place[first], [Column.S, Column.Q, Column.P]]]
        torsions = torch.cat([frame.expand(len(rows), 3), rows[:, column, None]], dim=1)
        found.append(EquivalentGroup(rows, torsions, math.radians(_centre(topology, first, len(rows)))))
    return found


def _centre(topology: Topology, first: int, namings: int) -> float:
    if namings == _NAMINGS:
        return _THIRD_OF_A_TURN
    name = topology.atom_names[first]
    residue = topology.residues[topology.residue_indices[first]].name
    return _HALF_A_TURN.get((residue, name), _LAST_OXYGEN if name == "O" else 0.0)


class CanonicalNames:
    """Names equivalent atoms of several peptides canonically; in place of a `SymmetryTable`, which turns at random.

    Args:
        molecules: the peptides, by whose numbers `turn` goes.

    >>> from molecular import Peptide
    >>> peptide = Peptide("AA")
    >>> names = CanonicalNames([peptide])
    >>> x = torch.from_numpy(peptide.positions)[None]
    >>> turned = SymmetryTable.of([peptide]).turn(x, torch.tensor([0]), torch.Generator().manual_seed(0))
    >>> bool(torch.equal(names.turn(turned, torch.tensor([0])), names.turn(x, torch.tensor([0]))))
    True
    """

    def __init__(self, molecules: Sequence[AnyTopology]):
        topologies = [Topology.of(molecule) for molecule in molecules]
        num_atoms = max((topology.num_atoms for topology in topologies), default=0)
        groups = [equivalent_groups(topology) for topology in topologies]
        most = max((len(own) for own in groups), default=0)
        shape = (len(groups), most, _NAMINGS)
        # 16 bits: a corpus has thousands of molecules. Of a turn, whose namings are two, the first stands twice.
        self._sources = torch.arange(num_atoms, dtype=torch.int16).repeat(*shape, 1)
        self._torsions = torch.arange(4, dtype=torch.int16).repeat(*shape, 1)
        self._centres = torch.zeros(shape[:2])
        for molecule, own in enumerate(groups):
            for number, group in enumerate(own):
                for naming in range(_NAMINGS):
                    row = naming % len(group.rows)
                    self._sources[molecule, number, naming, group.rows[0]] = group.rows[row].to(torch.int16)
                    self._torsions[molecule, number, naming] = group.torsions[row].to(torch.int16)
                self._centres[molecule, number] = group.centre
        self.log_namings = torch.tensor([sum(math.log(len(group.rows)) for group in own) for own in groups])
        self._clockwise = SymmetryTable([[]] * len(groups), num_atoms, [hydrogen_triples(own) for own in topologies])

    def turn(self, positions: Tensor, molecules: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Positions ``(B, n, 3)`` with equivalent atoms named canonically; molecules ``(B,)``: whose they are.

        Hydrogens clockwise (`SymmetryTable.named`); then of each group that naming whose torsion is nearest to its
        centre. The generator is not needed.
        """
        positions = self._clockwise.named(positions, molecules)
        device = positions.device
        batch = torch.arange(len(positions), device=device)
        molecules = molecules.to(device)
        for group in range(self._centres.shape[1]):
            torsions = self._torsions[:, group].to(device)[molecules].long()
            points = positions[batch[:, None, None], torsions]  # (B, namings, 4, 3)
            angles = dihedrals(points, torch.arange(4)[None])[..., 0]
            centre = self._centres[:, group].to(angles)[molecules]
            naming = torch.cos(angles - centre[:, None]).argmax(dim=1)  # the nearest
            sources = self._sources[:, group].to(device)[molecules, naming, : positions.shape[1]].long()
            positions = positions.gather(1, sources.unsqueeze(-1).expand_as(positions))
        return positions


def with_canonical_names(positions: Tensor, molecule: AnyTopology) -> Tensor:
    """Name the equivalent atoms of one peptide's conformations canonically, as every transferable flow knows them.

    Names that other programs give to hydrogens may differ, and such conformations then have next to no density.

    Args:
        positions: ``(B, n, 3)``.
        molecule: the peptide.
    """
    return CanonicalNames([molecule]).turn(positions, torch.zeros(len(positions), dtype=torch.int64))


class CanonicalEnergy:
    """A reduced energy, `(B, n, 3)` to `(B,)`, of one peptide's conformations that are named canonically.

    Infinite for all others: the Boltzmann density of one naming, with a share of the partition function. Energies of
    namings are the same, or, where improper torsions tell equivalent atoms apart, differ by tenths of kT.

    Args:
        energy: the reduced energy of all conformations.
        molecule: the peptide.
    """

    def __init__(self, energy: Callable[[Tensor], Tensor], molecule: AnyTopology):
        self.energy, self.names = energy, CanonicalNames([molecule])

    def __call__(self, positions: Tensor) -> Tensor:
        named = self.names.turn(positions, torch.zeros(len(positions), dtype=torch.int64))
        return torch.where((named == positions).flatten(1).all(1), self.energy(positions), torch.inf)
