"""Different start structures of one molecule, by turning its torsions."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from molecular.molecule.geometry import dihedrals, has_torsion
from molecular.molecule.topology import beyond_bond

LONGEST_BOND = 1.2
"""Bonds stretched beyond this multiple of their given length tell of a chain threaded through a ring."""


class UnreliableStarts(ValueError):
    """No starts in equilibrium can be had of a molecule."""


def rotatable_bonds(num_atoms: int, bonds: Sequence[tuple[int, int]]) -> list[tuple[int, int, Tensor]]:
    """Bonds about which a molecule may turn freely, as (fixed atom, turning atom, every atom beyond it).

    Such a bond is in no ring, has further neighbours at both ends, and a tetrahedral atom at one: phi, psi and chi, but
    neither amide bonds nor those of conjugated groups. The smaller side turns.
    """
    neighbours = _neighbours(num_atoms, bonds)
    result = []
    for i, j in bonds:
        if min(len(neighbours[i]), len(neighbours[j])) < 2 or max(len(neighbours[i]), len(neighbours[j])) < 4:
            continue
        beyond = beyond_bond(neighbours, i, j)
        if i in beyond:
            continue
        if 2 * len(beyond) > num_atoms:
            i, j, beyond = j, i, set(range(num_atoms)) - beyond
        result.append((i, j, torch.tensor(sorted(beyond))))
    return result


def rigid_torsions(num_atoms: int, bonds: Sequence[tuple[int, int]]) -> Tensor:
    """One quadruple (t, 4) about each bond with neighbours at both ends and no tetrahedral atom: amides and the like.

    Rings are left out.
    """
    neighbours = _neighbours(num_atoms, bonds)
    rows = []
    for i, j in bonds:
        before, after = sorted(neighbours[i] - {j}), sorted(neighbours[j] - {i})
        if before and after and max(len(before), len(after)) < 3 and i not in beyond_bond(neighbours, i, j):
            rows.append([before[0], i, j, after[0]])
    return torch.tensor(rows, dtype=torch.int64).reshape(-1, 4)


def random_torsions(
    positions: Tensor, rotatable: Sequence[tuple[int, int, Tensor]], number: int, generator: torch.Generator
) -> Tensor:
    """``number`` structures (number, n, 3): ``positions`` (n, 3) turned about each bond by a uniformly drawn angle."""
    x = positions.expand(number, -1, -1).clone()
    angles = 2 * torch.pi * torch.rand(len(rotatable), number, generator=generator, dtype=torch.float64)
    for (fixed, turning, beyond), angle in zip(rotatable, angles.to(x), strict=True):
        origin = x[:, turning, None]
        axis = torch.nn.functional.normalize(origin - x[:, fixed, None], dim=-1)
        arm = x[:, beyond] - origin
        # Rodrigues' formula.
        along = (arm * axis).sum(-1, keepdim=True) * axis
        cosine, sine = angle.cos()[:, None, None], angle.sin()[:, None, None]
        turned = along + cosine * (arm - along) + sine * torch.linalg.cross(axis.expand_as(arm), arm)
        x[:, beyond] = origin + turned
    return x


def start_structures(
    positions: Tensor,
    bonds: Sequence[tuple[int, int]],
    number: int,
    relax: Callable[[Tensor], Tensor],
    generator: torch.Generator,
    rounds: int = 4,
) -> Tensor:
    """``number`` relaxed structures (number, n, 3) of one molecule, of different torsions; the first is ``positions``.

    Torsions about `rotatable_bonds` are drawn uniformly, the structures relaxed by ``relax`` (B, n, 3) -> (B, n, 3),
    and kept where they are still the molecule: the same handedness everywhere, no amide turned over, no bond
    overstretched. Others are drawn again, up to ``rounds`` times, and then take a kept structure's place in turn.
    """
    rotatable = rotatable_bonds(len(positions), bonds)
    # The given one and the first round together: a batch of many takes little longer than one.
    turned = random_torsions(positions, rotatable, number - 1 if rotatable else 0, generator)
    relaxed = relax(torch.cat([positions[None], turned]))
    kept, trial = relaxed[:1], relaxed[1:]
    for round_left in reversed(range(rounds)):
        kept = torch.cat([kept, trial[is_same_molecule(trial, relaxed[0], bonds)]])
        missing = number - len(kept)
        if not (missing and rotatable and round_left):
            break
        trial = relax(random_torsions(positions, rotatable, missing, generator))
    repeat = torch.arange(number, device=kept.device) % len(kept)
    return kept[repeat]


def is_same_molecule(x: Tensor, reference: Tensor, bonds: Sequence[tuple[int, int]]) -> Tensor:
    """(B,) bool: whether structures (B, n, 3) have the handedness, amides and bonds of ``reference`` (n, 3)."""
    num_atoms = len(reference)
    sound = torch.isfinite(x).all(dim=(1, 2))
    pairs = torch.tensor(bonds, dtype=torch.int64, device=x.device).reshape(-1, 2)
    neighbours = _neighbours(num_atoms, bonds)
    centres = [[atom, *sorted(near)[:3]] for atom, near in enumerate(neighbours) if len(near) == 4]
    quadruples = rigid_torsions(num_atoms, bonds).to(x.device)
    quadruples = quadruples[has_torsion(reference, quadruples)]

    def lengths(y: Tensor) -> Tensor:
        return (y[:, pairs[:, 0]] - y[:, pairs[:, 1]]).norm(dim=-1)

    def hands(y: Tensor) -> Tensor:
        index = torch.tensor(centres, dtype=torch.int64, device=x.device).reshape(-1, 4)
        a, b, c = (y[:, index[:, column]] - y[:, index[:, 0]] for column in (1, 2, 3))
        return (torch.linalg.cross(a, b) * c).sum(-1).sign()

    wanted = reference[None]
    sound &= (lengths(x) < LONGEST_BOND * lengths(wanted)).all(dim=1)
    sound &= (hands(x) == hands(wanted)).all(dim=1)
    return sound & ((dihedrals(x, quadruples) - dihedrals(wanted, quadruples)).cos() > 0).all(dim=1)


def _neighbours(num_atoms: int, bonds: Sequence[tuple[int, int]]) -> list[set[int]]:
    neighbours: list[set[int]] = [set() for _ in range(num_atoms)]
    for i, j in bonds:
        neighbours[i].add(j)
        neighbours[j].add(i)
    return neighbours
