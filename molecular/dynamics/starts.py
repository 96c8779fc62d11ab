"""Different start structures of one molecule, by turning its torsions."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from molecular.molecule.geometry import dihedrals, has_torsion, signed_volumes
from molecular.molecule.topology import Topology
from molecular.molecule.torsions import rigid_torsions, rotatable_bonds

MOST_STRETCHED = 1.2
"""Bonds stretched beyond this multiple of their given length tell of a chain threaded through a ring."""


class UnreliableStarts(ValueError):
    """Raised where no start conformations in equilibrium can be had of a molecule."""


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
    topology: Topology,
    number: int,
    relax: Callable[[Tensor], Tensor],
    generator: torch.Generator,
    rounds: int = 4,
) -> Tensor:
    """Relaxed structures of one molecule with random torsions, for replicas to start from.

    Torsions about `rotatable_bonds` are drawn uniformly, the structures relaxed, and kept where they are still the
    molecule: the same handedness everywhere, no amide turned over, no bond overstretched. Others are drawn again, up to
    ``rounds`` times in all; then structures that were kept stand in for them in turn.

    Args:
        positions: (n, 3) nm, a structure.
        topology: of the molecule.
        number: how many structures.
        relax: minimises positions (B, n, 3) -> (B, n, 3), nm.
        generator: of the torsions.
        rounds: of drawing.

    Returns:
        (number, n, 3) nm; the first is ``positions``, relaxed.
    """
    rotatable = rotatable_bonds(topology)
    # The given one and the first round together: a batch of many takes little longer than one.
    turned = random_torsions(positions, rotatable, number - 1 if rotatable else 0, generator)
    relaxed = relax(torch.cat([positions[None], turned]))
    kept, trial = relaxed[:1], relaxed[1:]
    for round_left in reversed(range(rounds)):
        kept = torch.cat([kept, trial[is_same_molecule(trial, relaxed[0], topology)]])
        missing = number - len(kept)
        if not (missing and rotatable and round_left):
            break
        trial = relax(random_torsions(positions, rotatable, missing, generator))
    repeat = torch.arange(number, device=kept.device) % len(kept)
    return kept[repeat]


def is_same_molecule(x: Tensor, reference: Tensor, topology: Topology) -> Tensor:
    """(B,) bool: whether structures (B, n, 3) have the handedness, amides and bonds of ``reference`` (n, 3)."""
    sound = torch.isfinite(x).all(dim=(1, 2))
    pairs = torch.tensor(topology.bonds, dtype=torch.int64, device=x.device).reshape(-1, 2)
    centres = [[atom, *near[:3]] for atom, near in enumerate(topology.neighbours) if len(near) == 4]
    corners = torch.tensor(centres, dtype=torch.int64, device=x.device).reshape(-1, 4).T
    quadruples = rigid_torsions(topology).to(x.device)
    quadruples = quadruples[has_torsion(reference, quadruples)]

    def lengths(y: Tensor) -> Tensor:
        return (y[:, pairs[:, 0]] - y[:, pairs[:, 1]]).norm(dim=-1)

    wanted = reference[None]
    sound &= (lengths(x) < MOST_STRETCHED * lengths(wanted)).all(dim=1)
    sound &= (signed_volumes(x, corners).sign() == signed_volumes(wanted, corners).sign()).all(dim=1)
    return sound & ((dihedrals(x, quadruples) - dihedrals(wanted, quadruples)).cos() > 0).all(dim=1)
