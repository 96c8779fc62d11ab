"""A flow over the conformations of one peptide."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from nflows.transforms import CompositeTransform, Transform
from torch import Tensor

from molecular.coordinates import TOKEN_SIZE
from molecular.coordinates.local_frames import LocalFrames
from molecular.coordinates.spherical import PeriodicTorsions, Spherical
from nflib.distributions import StandardNormal
from nflib.flows import Flow, autoregressive_blocks
from nflib.transforms import GaussianizeMarginals, Permute, Standardize, VectorPatches

COORDINATES = ("internal", "local_frames", "cartesian")
NUM_BINS = 32
# Share of the samples whose torsion may be anything: small, as 3n - 6 coordinates each take it, yet never zero.
UNIFORM_FRACTION = 1e-4


class PeptideFlow(Flow):
    """A TARFlow on all-atom positions ``(B, n, 3)`` in nm of one molecule.

    coordinates says what the transformer sees, each standardised on training data:

    - ``"internal"``: local frames, then the spherical coordinates of each atom in its frame, with Gaussianised
      marginals; tokens hold three coordinates of one kind from distant atoms, torsions first, then angles, then bonds.
    - ``"local_frames"``: Cartesian positions in local frames, one atom a token.
    - ``"cartesian"``: plain positions, one atom a token; neither translation nor rotation is removed.

    The first two are densities of conformations modulo rigid motion (see `LocalFrames` for the
    measure), the last one a density on all 3n coordinates. A new flow must be fitted to data by `fit_coordinates`.
    """

    def __init__(
        self,
        sequence: str,
        elements: Sequence[str],
        bonds: Sequence[Sequence[int]],
        coordinates: str = "internal",
        channels: int = 128,
        num_blocks: int = 6,
        layers_per_block: int = 2,
        head_dim: int = 32,
        expansion: float = 4,
    ):
        if coordinates not in COORDINATES:
            raise ValueError(f"coordinates must be one of {', '.join(COORDINATES)}, got {coordinates!r}.")
        num_tokens = len(elements) if coordinates == "cartesian" else len(elements) - 2
        blocks = autoregressive_blocks(
            (num_tokens, TOKEN_SIZE),
            channels=channels,
            num_blocks=num_blocks,
            layers_per_block=layers_per_block,
            head_dim=head_dim,
            expansion=expansion,
        )
        steps = _fixed_steps(coordinates, LocalFrames([(i, j) for i, j in bonds], len(elements), list(elements)))
        super().__init__(
            CompositeTransform([*(step.transform for step in steps), *blocks]),
            StandardNormal((num_tokens, TOKEN_SIZE)),
        )
        self.sequence = sequence
        self.num_atoms = len(elements)
        self.coordinates = coordinates
        self._fixed = steps
        self._blocks = blocks

    def check_sequence(self, sequence: str) -> None:
        """Raise ValueError unless this flow was made for the peptide `sequence`."""
        if sequence != self.sequence:
            raise ValueError(f"this flow was trained on {self.sequence}, not on {sequence}; choose another model.")

    def fit_coordinates(self, positions: Tensor) -> None:
        """Fit the fixed, elementwise part of the map to training positions ``(N, n, 3)``.

        Raises ValueError for another number of atoms.
        """
        if positions.shape[1:] != (self.num_atoms, 3):
            raise ValueError(
                f"positions of shape {tuple(positions.shape)} do not belong to {self.sequence}, which has "
                f"{self.num_atoms} atoms."
            )
        outputs = positions
        with torch.no_grad():
            for transform, fit in self._fixed:
                if fit is not None:
                    transform.load_state_dict(fit(outputs).state_dict())
                outputs, _ = transform(outputs)

    def split_coordinates(self) -> tuple[Transform, Flow]:
        """The fixed map from positions to unconstrained coordinates ``(B, n - 2, 3)``, and the flow on those.

        Together they are this flow, on the same weights: ``log_prob(x) = rest.log_prob(y) + logabsdet`` with
        ``y, logabsdet = fixed(x)``. They hold neither translation nor rotation, and gradient steps can be taken in
        them. Of internal coordinates they are those of `Spherical`, periodic in torsions. Not
        Gaussianised ones: where a torsion is rare these are so narrow that no step of a common length leaves.

        Raises ValueError for Cartesian coordinates, in which a molecule's Boltzmann density has no normaliser.
        """
        if self.coordinates == "cartesian":
            raise ValueError(
                "this flow sees Cartesian coordinates, which hold translation and rotation, and there a Boltzmann "
                "density has no normaliser; use a flow on internal coordinates or local frames."
            )
        steps = [step.transform for step in self._fixed]
        num_fixed = len(steps)
        if self.coordinates == "internal":
            num_fixed = 1 + next(number for number, step in enumerate(steps) if isinstance(step, Spherical))
            steps[num_fixed:num_fixed] = [PeriodicTorsions(), PeriodicTorsions()]
            num_fixed += 1
        rest = CompositeTransform([*steps[num_fixed:], *self._blocks])
        return CompositeTransform(steps[:num_fixed]), Flow(rest, self._distribution)


class _Step(NamedTuple):
    """One fixed transform on the way to the transformer's tokens, and how it is fitted to its inputs."""

    transform: Transform
    fit: Callable[[Tensor], Transform] | None = None


def _fixed_steps(coordinates: str, frames: LocalFrames) -> list[_Step]:
    if coordinates == "cartesian":
        shape = (frames.num_atoms, TOKEN_SIZE)
        one_scale = Standardize(torch.zeros(shape), torch.ones(shape))
        return [_Step(one_scale, lambda data: Standardize.fit(data, event_dims=()))]
    num_tokens = frames.num_atoms - 2
    shape = (num_tokens, TOKEN_SIZE)
    if coordinates == "local_frames":
        return [_Step(frames), _Step(Standardize(torch.zeros(shape), torch.ones(shape)), Standardize.fit)]
    return [
        _Step(frames),
        _Step(Spherical(torch.zeros(num_tokens)), Spherical.fit),
        _Step(GaussianizeMarginals(shape, NUM_BINS), _fit_marginals),
        _Step(VectorPatches(shape, 1)),
        _Step(Permute(_by_kind(frames))),
        _Step(VectorPatches((num_tokens * TOKEN_SIZE, 1), TOKEN_SIZE)),
    ]


def _fit_marginals(data: Tensor) -> Transform:
    is_torsion = torch.zeros(data.shape[1:], dtype=torch.bool)
    is_torsion[1:, 2] = True
    return GaussianizeMarginals.fit(data, is_torsion, num_bins=NUM_BINS, uniform_fraction=UNIFORM_FRACTION)


def _by_kind(frames: LocalFrames) -> Tensor:
    """The order of the 3T internal coordinates in which the transformer sees them: torsions, angles, then bonds.

    An affine map moves the coordinates of one token independently of each other, so a token should hold coordinates
    that hardly depend on each other given the tokens before: of one kind, from distant atoms, and no two torsions about
    rotatable bonds. Those come first in their list, which is dealt out to the tokens like cards.
    """
    num_tokens = frames.num_atoms - 2
    index = torch.arange(num_tokens * TOKEN_SIZE).view(num_tokens, TOKEN_SIZE).tolist()
    # Token 0 holds two bonds and an angle. Behind it, an atom that refers to a sibling is rigid relative to that one.
    rigid = frames.refers_to_sibling[3:].tolist()
    torsions = [index[k + 1][2] for k in sorted(range(num_tokens - 1), key=lambda k: rigid[k])]
    angles = [index[0][2]] + [row[1] for row in index[1:]]
    lengths = [index[0][0], index[0][1]] + [row[0] for row in index[1:]]
    return torch.tensor([coordinate for kind in (torsions, angles, lengths) for coordinate in _dealt(kind)])


def _dealt(cards: list[int]) -> list[int]:
    """The cards, reordered so that each run of TOKEN_SIZE holds cards a TOKEN_SIZE-th of the list apart."""
    stride = -(-len(cards) // TOKEN_SIZE)
    return [cards[k] for first in range(stride) for k in range(first, len(cards), stride)]
