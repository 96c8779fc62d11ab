"""The torsions of a molecule: those that an ensemble is judged by, those that turn, and those that do not."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from molecular.molecule.geometry import has_torsion
from molecular.molecule.molecule import Molecule
from molecular.molecule.symmetry import half_turns
from molecular.molecule.topology import Topology, beyond_bond

Quadruple = tuple[int, int, int, int]


def named_backbone_torsions(topology: Topology) -> dict[str, Quadruple]:
    """Atoms of every backbone torsion phi (C, N, CA, C), then psi (N, CA, C, N), by name.

    The number in a name is the residue's place among the amino acids, caps not counted, so that "phi 2" and "psi 2" are
    of one residue: ``Ace-A-Nme`` has phi 1 and psi 1, ``AA`` psi 1 and phi 2. Neighbours, of which a cap is one, are
    told by their bonds.
    """
    phi, psi = _phi_and_psi(topology)
    named = {f"phi {number}": atoms for number, atoms in phi.items()}
    return named | {f"psi {number}": atoms for number, atoms in psi.items()}


def phi_psi_torsions(topology: Topology) -> tuple[Tensor, Tensor]:
    """Quadruples (k, 4) of all phi, and of all psi, of `named_backbone_torsions`, in the order of residues."""
    phi, psi = (torch.tensor(list(part.values())).long().reshape(-1, 4) for part in _phi_and_psi(topology))
    return phi, psi


def _phi_and_psi(topology: Topology) -> tuple[dict[int, Quadruple], dict[int, Quadruple]]:
    """Atoms of each by the number of its residue, see `named_backbone_torsions`."""
    phi, psi = {}, {}
    amino_acids = (own for own in topology.atoms_by_name if {"N", "CA", "C"} <= own.keys())
    for number, own in enumerate(amino_acids, start=1):
        nitrogen, alpha, carbon = own["N"], own["CA"], own["C"]
        if (before := _neighbour(topology, nitrogen, "C", own)) is not None:
            phi[number] = (before, nitrogen, alpha, carbon)
        if (after := _neighbour(topology, carbon, "N", own)) is not None:
            psi[number] = (nitrogen, alpha, carbon, after)
    return phi, psi


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
    phi, psi = _phi_and_psi(topology)
    pairs = [(number, number) for number in phi if number in psi] or list(zip(phi, psi, strict=False))[:1]
    return [(f"phi {one}", f"psi {other}") for one, other in pairs]


def ramachandran_torsions(topology: Topology) -> Tensor:
    """Quadruples (r, 2, 4) of the torsions of `ramachandran_names`."""
    named = named_backbone_torsions(topology)
    pairs = [(named[phi], named[psi]) for phi, psi in ramachandran_names(topology)]
    return torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2, 4)


def heavy_torsions(topology: Topology) -> Tensor:
    """One quadruple (t, 4) of heavy atoms about every bond that has heavy neighbours on both sides: phi, psi, omega
    and the side chains' chi, and bonds of rings.

    >>> from molecular.molecule.topology import Residue
    >>> bonds = ((0, 1), (0, 4), (1, 2), (2, 3))
    >>> heavy_torsions(Topology(("C1", "C2", "C3", "O", "H"), tuple("CCCOH"), (Residue("MOL"),), (0,) * 5, bonds))
    tensor([[0, 1, 2, 3]])
    """
    quadruples = [found for bond in topology.bonds if (found := _heavy_torsion(topology, *bond)) is not None]
    return torch.tensor(quadruples, dtype=torch.int64).reshape(-1, 4)


def _heavy_torsion(topology: Topology, i: int, j: int) -> Quadruple | None:
    """The torsion about a bond by the first heavy atom on either side, if there are such and the bond's are heavy."""
    before, after = (
        [atom for atom in topology.neighbours[end] if atom != other and topology.elements[atom] != "H"]
        for end, other in ((i, j), (j, i))
    )
    hydrogens = "H" in (topology.elements[i], topology.elements[j])
    return (before[0], i, j, after[0]) if before and after and not hydrogens else None


def rotatable_bonds(topology: Topology) -> list[tuple[int, int, Tensor]]:
    """Bonds about which a molecule may turn freely, as (fixed atom, turning atom, every atom beyond it).

    Such a bond is in no ring, has further neighbours at both ends, and a tetrahedral atom at one: phi, psi and chi, but
    neither amide bonds nor those of conjugated groups. The smaller side turns.
    """
    neighbours, num_atoms = topology.neighbours, topology.num_atoms
    result = []
    for i, j in topology.bonds:
        if min(len(neighbours[i]), len(neighbours[j])) < 2 or max(len(neighbours[i]), len(neighbours[j])) < 4:
            continue
        beyond = beyond_bond(neighbours, i, j)
        if i in beyond:
            continue
        if 2 * len(beyond) > num_atoms:
            i, j, beyond = j, i, set(range(num_atoms)) - beyond
        result.append((i, j, torch.tensor(sorted(beyond))))
    return result


def rigid_torsions(topology: Topology) -> Tensor:
    """One quadruple (t, 4) about each bond with neighbours at both ends and no tetrahedral atom: amides and the like.

    Rings are left out.
    """
    neighbours = topology.neighbours
    rows = []
    for i, j in topology.bonds:
        before, after = ([atom for atom in neighbours[end] if atom != other] for end, other in ((i, j), (j, i)))
        if before and after and max(len(before), len(after)) < 3 and i not in beyond_bond(neighbours, i, j):
            rows.append([before[0], i, j, after[0]])
    return torch.tensor(rows, dtype=torch.int64).reshape(-1, 4)


def reported_torsions(molecule: Molecule) -> dict[str, NDArray[np.int64]]:
    """Atom quadruples of what should mix, by name: "phi 2", "psi 1" and so on (`named_backbone_torsions`), then each
    side chain's torsions.

    The first heavy atom on either side defines a side chain's torsion; it is named by its bond, "CA-CB of VAL 2". Bonds
    to linear groups, such as nitriles, have none.
    """
    topology = molecule.topology
    named = dict(named_backbone_torsions(topology))
    backbone = {frozenset(atoms[1:3]) for atoms in named.values()}
    for bond in rotatable_bonds(topology):
        i, j = sorted(bond[:2])
        torsion = _heavy_torsion(topology, i, j)
        if torsion is not None and frozenset((i, j)) not in backbone:
            named[f"{topology.atom_names[i]}-{topology.label(j)}"] = torsion
    atoms = torch.tensor(list(named.values()), dtype=torch.int64).reshape(-1, 4)
    defined = has_torsion(torch.as_tensor(molecule.positions), atoms)
    return {name: row.numpy() for name, row, kept in zip(named, atoms, defined.tolist(), strict=True) if kept}


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
