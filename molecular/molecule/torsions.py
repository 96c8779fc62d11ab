"""The torsions that an ensemble is judged by."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from molecular.molecule.symmetry import half_turns
from molecular.molecule.topology import Topology


def named_backbone_torsions(topology: Topology) -> dict[str, tuple[int, int, int, int]]:
    """Atoms of every backbone torsion phi (C, N, CA, C), then psi (N, CA, C, N), by name.

    The number in a name is the residue's place among the amino acids, caps not counted, so that "phi 2" and "psi 2" are
    of one residue: ``Ace-A-Nme`` has phi 1 and psi 1, ``AA`` psi 1 and phi 2. Neighbours, of which a cap is one, are
    told by their bonds.
    """
    phi, psi = {}, {}
    amino_acids = (own for own in topology.atoms_by_name if {"N", "CA", "C"} <= own.keys())
    for number, own in enumerate(amino_acids, start=1):
        nitrogen, alpha, carbon = own["N"], own["CA"], own["C"]
        before = _neighbour(topology, nitrogen, "C", own)
        after = _neighbour(topology, carbon, "N", own)
        if before is not None:
            phi[f"phi {number}"] = (before, nitrogen, alpha, carbon)
        if after is not None:
            psi[f"psi {number}"] = (nitrogen, alpha, carbon, after)
    return phi | psi


def phi_psi_torsions(topology: Topology) -> tuple[Tensor, Tensor]:
    """Quadruples (k, 4) of all phi, and of all psi, of `named_backbone_torsions`, in the order of residues."""
    named = named_backbone_torsions(topology).items()
    phi, psi = ([atoms for name, atoms in named if name.startswith(kind)] for kind in ("phi", "psi"))
    return torch.tensor(phi, dtype=torch.int64).reshape(-1, 4), torch.tensor(psi, dtype=torch.int64).reshape(-1, 4)


def _neighbour(topology: Topology, atom: int, name: str, own: dict[str, int]) -> int | None:
    """The atom of that name, of another residue, that an atom is bonded to."""
    for other in topology.neighbours[atom]:
        if topology.atom_names[other] == name and own.get(name) != other:
            return other
    return None


def backbone_torsions(topology: Topology) -> Tensor:
    """Quadruples (k, 4) of every phi, then every psi."""
    return torch.cat(phi_psi_torsions(topology))


def ramachandran_names(topology: Topology) -> list[tuple[str, str]]:
    """Names of phi and psi of every residue that has both, of `named_backbone_torsions`.

    A zwitterionic dipeptide has no such residue; there psi of the first and phi of the second, which flank its one
    peptide bond, are taken together, as is the custom.
    """
    named = list(named_backbone_torsions(topology))
    phi, psi = ([name for name in named if name.startswith(kind)] for kind in ("phi", "psi"))
    pairs = [(name, other) for name in phi if (other := name.replace("phi", "psi")) in psi]
    return pairs or list(zip(phi, psi, strict=False))[:1]


def ramachandran_torsions(topology: Topology) -> Tensor:
    """Quadruples (r, 2, 4) of the torsions of `ramachandran_names`."""
    named = named_backbone_torsions(topology)
    pairs = [(named[phi], named[psi]) for phi, psi in ramachandran_names(topology)]
    return torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2, 4)


def heavy_torsions(elements: Sequence[str], bonds: Sequence[tuple[int, int]]) -> Tensor:
    """One quadruple (t, 4) of heavy atoms about every bond that has heavy neighbours on both sides: phi, psi, omega
    and the side chains' chi, and bonds of rings.

    >>> heavy_torsions(["C", "C", "C", "O", "H"], [(0, 1), (1, 2), (2, 3), (0, 4)]).tolist()
    [[0, 1, 2, 3]]
    """
    neighbours: dict[int, list[int]] = {atom: [] for atom, element in enumerate(elements) if element != "H"}
    for i, j in bonds:
        if i in neighbours and j in neighbours:
            neighbours[i].append(j)
            neighbours[j].append(i)
    quadruples = []
    for i, j in sorted(bonds):
        if i in neighbours and j in neighbours:
            before = [atom for atom in sorted(neighbours[i]) if atom != j]
            after = [atom for atom in sorted(neighbours[j]) if atom != i]
            if before and after:
                quadruples.append([before[0], i, j, after[0]])
    return torch.tensor(quadruples, dtype=torch.int64).reshape(-1, 4)


def periods(topology: Topology, quadruples: Tensor) -> Tensor:
    """How often a full turn brings each torsion (k, 4) back, as if equivalent atoms had one name: (k,), 1 or 2.

    Twice where half a turn about the middle bond exchanges an atom at its end with another (`half_turns`): the angle
    times its period says, within the few degrees by which they are not opposite, the same of either.
    """
    twice = torch.zeros(len(quadruples), dtype=torch.bool)
    for turn in half_turns(topology):
        exchanged = dict(turn.T.tolist())
        for row, (a, b, c, d) in enumerate(quadruples.tolist()):
            for end, pivot, beyond in ((a, b, c), (d, c, b)):
                other = exchanged.get(end, beyond)
                if other != beyond and other in topology.neighbours[pivot]:
                    twice[row] = True
    return 1 + twice.long()
