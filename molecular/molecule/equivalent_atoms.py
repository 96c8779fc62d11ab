"""Exact symmetries of peptides' energies, for molecules of a mixed batch: which atoms may change places."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from molecular.molecule.geometry import signed_volumes
from molecular.molecule.orderings import named_residues
from molecular.molecule.symmetry import half_turns, methyl_rotations
from molecular.molecule.topology import Topology

if TYPE_CHECKING:
    from molecular.molecule.topology import AnyTopology

# Every group's rotations are repeated to so many rows: drawing one is drawing a rotation, of two, three or eight.
_ROWS = 24


def symmetry_groups(molecule: AnyTopology) -> list[Tensor]:
    """The groups of atoms of an uncapped peptide that change places without a change of energy or of handedness.

    `methyl_rotations` and `half_turns`; those that share atoms, as of guanidinium and its NH2, are one group, with all
    that they bring about one after the other. Each group is (arrangements, atoms) int64, as of `methyl_rotations`;
    groups are disjoint. Raises ValueError for a molecule that `molecular.molecule.orderings.named_residues` refuses.
    """
    named_residues(molecule)
    topology = Topology.of(molecule)
    groups = methyl_rotations(topology)
    for turn in half_turns(topology):
        sharing = [group for group in groups if torch.isin(group[0], turn[0]).any()]
        groups = [group for group in groups if all(group is not other for other in sharing)]
        groups.append(_arrangements([*sharing, turn]))
    return groups


def _arrangements(turns: Sequence[Tensor]) -> Tensor:
    """All rows that turns of atoms which they share bring about one after the other, first as they are."""
    moves = [dict(zip(turn[0].tolist(), row, strict=True)) for turn in turns for row in turn[1:].tolist()]
    rows = [tuple(sorted({atom for move in moves for atom in move}))]
    for row in rows:  # which grows
        new = dict.fromkeys(tuple(move.get(atom, atom) for atom in row) for move in moves)
        rows += [other for other in new if other not in rows]
    return torch.tensor(rows)


def hydrogen_triples(molecule: AnyTopology) -> Tensor:
    """The methyl and ammonium groups of an uncapped peptide, ``(k, 4)``: the heavy atom, and its hydrogens by name."""
    names: dict[int, str] = {}
    for residue in named_residues(molecule):
        names |= {index: name for name, index in residue.atoms.items()}
    hydrogens: dict[int, list[int]] = {}
    for pair in Topology.of(molecule).bonds:
        for atom, other in (pair, pair[::-1]):
            if names[other].startswith("H"):
                hydrogens.setdefault(atom, []).append(other)
    rows = [[atom, *sorted(own, key=names.__getitem__)] for atom, own in sorted(hydrogens.items()) if len(own) == 3]
    return torch.tensor(rows, dtype=torch.int64).reshape(-1, 4)


class SymmetryTable:
    """Equivalent atoms of several molecules as one table, by which a mixed batch is turned at random.

    Args:
        groups: of each molecule, as `symmetry_groups` gives them.
        num_atoms: of the longest molecule.
        triples: of each molecule, as `hydrogen_triples` gives them, whose hydrogens are first named as the standard
            says (none: as they are).
    """

    def __init__(self, groups: Sequence[Sequence[Tensor]], num_atoms: int, triples: Sequence[Tensor] | None = None):
        self.triples = (
            pad_sequence(list(triples), batch_first=True) if triples else torch.zeros(len(groups), 0, 4).long()
        )
        self.log_namings = torch.zeros(len(groups))  # as of `CanonicalNames`: here all are in the density
        most = max((len(own) for own in groups), default=0)
        # 16 bits: a corpus has thousands of molecules.
        self.sources = torch.arange(num_atoms, dtype=torch.int16).repeat(len(groups), most, _ROWS, 1)
        for molecule, own in enumerate(groups):
            for number, rows in enumerate(own):
                for choice in range(_ROWS):
                    self.sources[molecule, number, choice, rows[0]] = rows[choice % len(rows)].to(torch.int16)

    @classmethod
    def of(cls, molecules: Sequence[AnyTopology]) -> SymmetryTable:
        """The table of uncapped peptides; raises ValueError for another molecule."""
        topologies = [Topology.of(molecule) for molecule in molecules]
        return cls(
            [symmetry_groups(topology) for topology in topologies],
            max((topology.num_atoms for topology in topologies), default=0),
            [hydrogen_triples(topology) for topology in topologies],
        )

    def turn(self, positions: Tensor, molecules: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Positions ``(B, n, 3)`` with every group of every sample rotated at random; molecules ``(B,)``: whose."""
        positions = self.named(positions, molecules)
        sources = self.sources.to(positions.device)[molecules.to(positions.device), :, :, : positions.shape[1]]
        batch, groups = sources.shape[:2]
        device = positions.device if generator is None else generator.device
        choice = torch.randint(_ROWS, (batch, groups), generator=generator, device=device).to(positions.device)
        index = torch.arange(positions.shape[1], device=positions.device)
        # Groups are disjoint, so that their displacements add up.
        chosen = sources[torch.arange(batch)[:, None], torch.arange(groups), choice].long() - index
        index = index + chosen.sum(1)
        return positions.gather(1, index.unsqueeze(-1).expand_as(positions))

    def named(self, positions: Tensor, molecules: Tensor) -> Tensor:
        """Positions ``(B, n, 3)`` whose methyl and ammonium hydrogens are named clockwise, seen from the chain.

        Two of them exchange their names where that is not so. Programs that place hydrogens name them at random, and
        simulations never exchange them: a flow of many molecules would learn which molecule happens to have which.
        """
        triples = self.triples.to(positions.device)[molecules.to(positions.device)]
        batch = torch.arange(len(positions), device=positions.device)[:, None, None]
        points = positions[batch, triples]
        wrong = signed_volumes(points, range(4)) < 0  # zero at padding
        second, third = triples[..., 2], triples[..., 3]
        shift = torch.where(wrong, third - second, 0)
        index = torch.arange(positions.shape[1], device=positions.device).repeat(len(positions), 1)
        index = index.scatter_add(1, second, shift).scatter_add(1, third, -shift)
        return positions.gather(1, index.unsqueeze(-1).expand_as(positions))
