"""Conformations without their rigid motion, exactly: local frames along the bonds, and spherical tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from molecular.molecule.z_matrix import z_matrix_order
from nflib.transforms import ClosedForm


class LocalFrames(ClosedForm):
    r"""Local frames along the bonds: positions (B, n, 3) <-> tokens (B, n - 2, 3), nm, without rigid motion.

    The atoms are taken in the order a_0, a_1, ... of `z_matrix_order`; a_1 and a_2 are bonded to a_0.

    - Token 0 is (r01, x2, rho2): the distance a_0-a_1, the coordinate of a_2 along the axis a_0 -> a_1
      measured from a_0, and the distance of a_2 from this axis; r01 > 0, rho2 > 0.
    - Token k >= 1 is the displacement of a_{k+2} from its parent p in the right-handed orthonormal frame at p
      of three earlier atoms (`references`): e1 points from p to q, e2 along the part of x_s - x_p orthogonal
      to e1, e3 = e1 x e2.

    No reflection is involved: a molecule and its mirror image have different tokens.

    Measure: a density of conformations is taken with respect to Lebesgue measure on R^{3n} divided by that of
    the translations, dt, and by the Haar measure of the rotations, dR (d^3 omega for small rotation vectors):

        dx = dt dR r01^2 rho2 d(tokens),

    since each later atom is rotated and shifted by earlier ones only. So forward's logabsdet is
    -(2 log r01 + log rho2). In this measure exp(-U(x) / kT), for U without an external field, is the
    Boltzmann density up to the constant volume of the rigid motions, which is dropped.

    `inverse` puts a_0 at the origin, a_1 on +x and a_2 in the half plane z = 0, y > 0. Where reference atoms
    are collinear, or in the inverse r01 <= 0 or rho2 <= 0, there is no frame: that sample, alone, is NaN.

    Args:
        bonds: pairs of atom indices of one connected molecule.
        num_atoms: n >= 3.
        elements: n element symbols; hydrogens ("H") are visited after heavy atoms.
        root: a_0; by default the heavy atom with most heavy neighbours, the first of equals.

    >>> water = LocalFrames([(0, 1), (0, 2)], 3, ["O", "H", "H"])
    >>> tokens, logabsdet = water(torch.tensor([[[0.0, 0, 0], [0.1, 0, 0], [0, 0.1, 0]]]))
    >>> tokens.shape
    torch.Size([1, 1, 3])
    """

    order: Tensor
    references: Tensor
    _rank: Tensor

    def __init__(
        self,
        bonds: Sequence[Sequence[int]],
        num_atoms: int,
        elements: Sequence[str],
        *,
        root: int | None = None,
    ) -> None:
        super().__init__()
        if len(elements) != num_atoms:
            raise ValueError(f"there are {len(elements)} elements for {num_atoms} atoms; give one element an atom.")
        order, references = z_matrix_order(bonds, elements, root)
        self.num_atoms = num_atoms
        # Derived from the arguments, so not part of the saved state.
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("references", references, persistent=False)
        rank, levels = _levels(order, references)
        self.register_buffer("_rank", rank, persistent=False)
        self._depth = len(levels)
        for k, level in enumerate(levels):
            self.register_buffer(f"_level{k}", level, persistent=False)

    @property
    def refers_to_sibling(self) -> Tensor:
        """Whether each atom, in z-matrix order, (n,) bool, is rigid relative to a sibling: its s is bonded to its p.

        The azimuths of the others, of the first three apart, are torsions about bonds.
        """
        parent = dict(zip(self.order.tolist(), self.references[:, 0].tolist(), strict=True))
        parent |= dict.fromkeys(self.order[1:3].tolist(), int(self.order[0]))
        return torch.tensor([s >= 0 and parent[s] == p for p, _, s in self.references.tolist()])

    def input_shape(self, output_shape: Sequence[int]) -> tuple[int, ...]:
        return (output_shape[0] + 2, 3)

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if inputs.dim() != 3 or inputs.shape[1:] != (self.num_atoms, 3):
            raise ValueError(f"positions have shape {tuple(inputs.shape)}; LocalFrames needs (B, {self.num_atoms}, 3).")
        first = root_token(inputs[:, self.order[:3]])
        r01, _, rho2 = first.unbind(-1)
        logabsdet = -(2.0 * r01.log() + rho2.log())

        p, q, s = self.references[3:].unbind(1)
        parents = inputs[:, p]
        frames = frames_at(parents, inputs[:, q], inputs[:, s])
        displacement = inputs[:, self.order[3:]] - parents
        rest = (frames * displacement[..., None, :]).sum(-1)
        return torch.cat([first[:, None], rest], dim=1), logabsdet

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if inputs.dim() != 3 or inputs.shape[1:] != (self.num_atoms - 2, 3):
            shape = f"(B, {self.num_atoms - 2}, 3)"
            raise ValueError(f"tokens have shape {tuple(inputs.shape)}; LocalFrames needs {shape}.")
        r01, x2, rho2 = inputs[:, 0].unbind(-1)
        logabsdet = 2.0 * r01.log() + rho2.log()
        nan = torch.full_like(r01, torch.nan)
        r01 = torch.where(r01 > 0, r01, nan)
        rho2 = torch.where(rho2 > 0, rho2, nan)
        placed = root_atoms(torch.stack([r01, x2, rho2], dim=-1))
        for k in range(self._depth):  # atoms of a level refer to earlier levels only
            tokens, p, q, s = self.get_buffer(f"_level{k}").unbind()
            parents = placed[:, p]
            frames = frames_at(parents, placed[:, q], placed[:, s])
            placed = torch.cat([placed, parents + (inputs[:, tokens, :, None] * frames).sum(-2)], dim=1)
        return placed[:, self._rank], logabsdet


def _levels(order: Tensor, references: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Group atoms, in z-matrix order, by depth of reference.

    Returns the place (n,) of each atom in the order of placement, level by level, and for each level
    (4, m) its tokens and the places of p, q and s.
    """
    atoms = order.tolist()
    level = {atoms[0]: 0, atoms[1]: 0, atoms[2]: 0}
    members: dict[int, list[int]] = {}
    for position in range(3, len(atoms)):
        depth = 1 + max(level[k] for k in references[position].tolist())
        level[atoms[position]] = depth
        members.setdefault(depth, []).append(position)
    place = {atom: k for k, atom in enumerate(atoms[:3])}
    levels = []
    for depth in sorted(members):
        p, q, s = ([place[k] for k in references[members[depth], column].tolist()] for column in range(3))
        levels.append(torch.tensor([[position - 2 for position in members[depth]], p, q, s]))
        for position in members[depth]:
            place[atoms[position]] = len(place)
    return torch.tensor([place[atom] for atom in range(len(atoms))]), levels


def root_token(atoms: Tensor) -> Tensor:
    """The first token ``(B, 3)``, r01, x2 and rho2 of `LocalFrames`, of the first three atoms ``(B, 3, 3)``."""
    origin, axis, plane = atoms.unbind(1)
    axis, plane = axis - origin, plane - origin
    r01 = axis.norm(dim=-1)
    e1 = axis / r01[:, None]
    return torch.stack([r01, (plane * e1).sum(-1), _orthogonal(plane, e1).norm(dim=-1)], dim=-1)


def root_atoms(token: Tensor) -> Tensor:
    """The first three atoms ``(B, 3, 3)`` of first tokens ``(B, 3)``: the molecule stands in their frame."""
    r01, x2, rho2 = token.unbind(-1)
    zero = torch.zeros_like(r01)
    return torch.stack([zero, zero, zero, r01, zero, zero, x2, rho2, zero], dim=-1).unflatten(-1, (3, 3))


def _orthogonal(vector: Tensor, unit: Tensor) -> Tensor:
    return vector - (vector * unit).sum(-1, keepdim=True) * unit


def frames_at(p: Tensor, q: Tensor, s: Tensor) -> Tensor:
    """Rows e1, e2, e3 (..., 3, 3) at p; NaN where p, q, s are collinear within rounding."""
    e1 = q - p
    e1 = e1 / e1.norm(dim=-1, keepdim=True)
    plane = s - p
    across = _orthogonal(plane, e1)
    width = across.norm(dim=-1, keepdim=True)
    threshold = 16.0 * torch.finfo(p.dtype).eps * plane.norm(dim=-1, keepdim=True)
    e2 = across / torch.where(width > threshold, width, torch.full_like(width, torch.nan))
    return torch.stack([e1, e2, torch.linalg.cross(e1, e2)], dim=-2)
