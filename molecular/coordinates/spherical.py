"""Atoms in local frames as bond lengths, bond angles and azimuths, with the circles cut where they are empty."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nflib.transforms import ClosedForm


class Spherical(ClosedForm):
    """Spherical coordinates of local frames: tokens (B, T, 3) <-> scaled bond lengths, bond angles and azimuths.

    Token k >= 1, (x, y, z) with length r, polar angle theta from e1 and azimuth psi = atan2(z, y), becomes
    (log r, logit(theta / pi), phi) with phi = psi - offset wrapped to (-pi, pi]; token 0, (r01, x2, rho2),
    becomes (log r01, log r02, logit(angle / pi)). Where s is bonded to q, -psi is the IUPAC torsion of s, q,
    p and the atom. The log-determinants are those of dx dy dz = r^2 sin(theta) dr dtheta dphi and of the
    logarithms and logits. Lengths in nm, angles in radians.

    `inverse` accepts all reals for log r and logit theta; a sample with a phi outside (-pi, pi], which no
    conformation has, is NaN.

    Args:
        offset: (T,) radians, or None for zero: the circle of token k is cut at offset[k] + pi; entry 0 is not
            used. `fit` chooses it.
    """

    offset: Tensor | None

    def __init__(self, offset: Tensor | None = None) -> None:
        super().__init__()
        if offset is not None and offset.dim() != 1:
            raise ValueError(f"offset has shape {tuple(offset.shape)}; Spherical needs one angle a token, (T,).")
        self.register_buffer("offset", offset)

    @classmethod
    def fit(cls, tokens: Tensor) -> Spherical:
        """Cut every circle where these tokens (N, T, 3) are least dense."""
        return cls(torsion_cuts(torch.atan2(tokens[..., 2], tokens[..., 1])).to(tokens.dtype))

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self._check(inputs)
        outputs, logabsdet = to_spherical(inputs, None if self.offset is None else self.offset[1:])
        return outputs, logabsdet.sum(1)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self._check(inputs)
        outputs, logabsdet = from_spherical(inputs, None if self.offset is None else self.offset[1:])
        return outputs, logabsdet.sum(1)

    def _check(self, inputs: Tensor) -> None:
        if inputs.dim() != 3 or inputs.shape[2] != 3 or inputs.shape[1] < 1:
            raise ValueError(f"tokens have shape {tuple(inputs.shape)}; Spherical needs (B, T, 3).")
        if self.offset is not None and len(self.offset) != inputs.shape[1]:
            raise ValueError(f"there are {inputs.shape[1]} tokens but {len(self.offset)} offsets; give one a token.")


class WrapTorsions(ClosedForm):
    """Coordinates (B, T, 3) of `Spherical` with every azimuth, of tokens k >= 1, turned into (-pi, pi].

    The identity on what `Spherical` gives, either way; beyond it, the density of a circle, once around after the
    other: particles step across where the circle was cut.
    """

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        rest = inputs[:, 1:]
        turned = wrapped(rest[..., 2]).clamp(-math.pi, math.pi)  # after many turns rounding may lead outside
        outputs = torch.cat([inputs[:, :1], torch.stack([rest[..., 0], rest[..., 1], turned], dim=-1)], dim=1)
        return outputs, inputs.new_zeros(len(inputs))

    inverse = forward


class FirstAngleOnCircle(ClosedForm):
    """Coordinates (B, T, 3) of `Spherical`, the bond angle of token 0 as ``2 angle - pi`` in place of its logit.

    The third numbers of all tokens are then angles in (-pi, pi). The circle that this one makes, of angles 0 and pi in
    one point, is not the molecule's; no conformation comes near that point.
    """

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        logit = inputs[:, 0, 2]
        return _with_first(inputs, math.pi * torch.tanh(logit / 2)), _log_slope(logit)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        largest = 1 - torch.finfo(inputs.dtype).eps  # the end itself would be infinite
        logit = 2 * torch.atanh((inputs[:, 0, 2] / math.pi).clamp(-largest, largest))
        return _with_first(inputs, logit), -_log_slope(logit)


def _with_first(coordinates: Tensor, angle: Tensor) -> Tensor:
    """The coordinates (B, T, 3), the third one of token 0 replaced."""
    first = torch.cat([coordinates[:, 0, :2], angle[:, None]], dim=-1)
    return torch.cat([first[:, None], coordinates[:, 1:]], dim=1)


def _log_slope(logit: Tensor) -> Tensor:
    log_sigmoids = torch.nn.functional.logsigmoid(logit) + torch.nn.functional.logsigmoid(-logit)
    return math.log(2 * math.pi) + log_sigmoids


def to_spherical(tokens: Tensor, offset: Tensor | None) -> tuple[Tensor, Tensor]:
    """What `Spherical` maps tokens (B, T, 3) to, and its logabsdet token by token (B, T).

    offset: of tokens 1 ... T - 1, (T - 1,) or (B, T - 1), or None for zero.
    """
    r01, x2, rho2 = tokens[:, 0].unbind(-1)
    x, y, z = tokens[:, 1:].unbind(-1)
    rho = torch.cat([rho2[:, None], torch.hypot(y, z)], dim=1)
    along = torch.cat([x2[:, None], x], dim=1)
    log_r = torch.hypot(along, rho).log()
    log_theta = torch.atan2(rho, along).log()
    log_supplement = torch.atan2(rho, -along).log()  # log(pi - theta), accurate also near pi
    logit = log_theta - log_supplement
    phi = torch.atan2(z, y)
    if offset is not None:
        phi = wrapped(phi - offset.to(phi.dtype))
    first = torch.stack([r01.log(), log_r[:, 0], logit[:, 0]], dim=-1)
    rest = torch.stack([log_r[:, 1:], logit[:, 1:], phi], dim=-1)

    lengths = torch.cat([r01.log()[:, None], rho[:, 1:].log()], dim=1)
    return torch.cat([first[:, None], rest], dim=1), (
        math.log(math.pi) - log_theta - log_supplement - 2.0 * log_r - lengths
    )


def from_spherical(spherical: Tensor, offset: Tensor | None) -> tuple[Tensor, Tensor]:
    """The inverse of `to_spherical`, with its logabsdet token by token."""
    log_r01, log_r02, logit0 = spherical[:, 0].unbind(-1)
    log_r = torch.cat([log_r02[:, None], spherical[:, 1:, 0]], dim=1)
    logit = torch.cat([logit0[:, None], spherical[:, 1:, 1]], dim=1)
    phi = spherical[:, 1:, 2]
    pi = math.pi * (1.0 + 4.0 * torch.finfo(torch.float32).eps)  # what rounds to pi, as fitted intervals do, is allowed
    phi = torch.where(phi.abs() <= pi, phi, torch.full_like(phi, torch.nan))
    if offset is not None:
        phi = phi + offset.to(phi.dtype)

    near_axis = math.pi * torch.sigmoid(-logit.abs())  # the smaller of theta and pi - theta
    r = log_r.exp()
    along = -torch.sign(logit) * r * near_axis.cos()
    along = torch.where(logit == 0, torch.zeros_like(along), along)
    rho = r * near_axis.sin()
    first = torch.stack([log_r01.exp(), along[:, 0], rho[:, 0]], dim=-1)
    rest = torch.stack([along[:, 1:], rho[:, 1:] * phi.cos(), rho[:, 1:] * phi.sin()], dim=-1)

    log_sigmoids = torch.nn.functional.logsigmoid(logit) + torch.nn.functional.logsigmoid(-logit)
    lengths = torch.cat([log_r01[:, None], (log_r + near_axis.sin().log())[:, 1:]], dim=1)
    return torch.cat([first[:, None], rest], dim=1), math.log(math.pi) + log_sigmoids + 2.0 * log_r + lengths


def wrapped(angle: Tensor) -> Tensor:
    """The same angle in (-pi, pi]."""
    return angle - 2.0 * math.pi * torch.ceil((angle - math.pi) / (2.0 * math.pi))


def torsion_cuts(phi: Tensor, *, bins: int = 360, concentration: float = 30.0) -> Tensor:
    """Offsets (T,) for `Spherical` that cut each circle amid the emptiest arc of phi (N, T), in radians.

    The histogram is smoothed by a von Mises kernel, whose tails never vanish: the least density lies in the
    middle of an empty arc. The offset is half a turn from there, so that the shifted angles are cut at +-pi.
    """
    if phi.dim() != 2 or phi.shape[0] == 0:
        raise ValueError(f"angles have shape {tuple(phi.shape)}; torsion_cuts needs (N, T) with N >= 1.")
    width = 2.0 * math.pi / bins
    index = torch.remainder(torch.floor(phi.double() / width), bins).long()
    counts = torch.zeros(phi.shape[1], bins, dtype=torch.float64, device=phi.device)
    counts.scatter_add_(1, index.T, torch.ones_like(index.T, dtype=torch.float64))
    centres = (torch.arange(bins, dtype=torch.float64, device=phi.device) + 0.5) * width
    kernel = torch.exp(concentration * (torch.cos(centres[:, None] - centres) - 1.0))
    emptiest = centres[(counts @ kernel).argmin(1)]
    return wrapped(emptiest - math.pi).to(phi.dtype if phi.is_floating_point() else torch.float64)
