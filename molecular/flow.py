"""A flow over the conformations of one peptide."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from nflows.transforms import CompositeTransform, Transform
from torch import Tensor

from molecular.coordinates import LocalFrames, Spherical, torsion_cuts
from nflib.distributions import StandardNormal
from nflib.flow import Flow
from nflib.flows import autoregressive_blocks
from nflib.transforms import GaussianizeMarginals, Permute, Standardize, VectorPatches

COORDINATES = ("internal", "local_frames", "cartesian")
TOKEN_SIZE = 3
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

    The first two are densities of conformations modulo rigid motion (see `molecular.coordinates.LocalFrames` for the
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
        config: dict[str, Any] = {
            "sequence": sequence,
            "elements": list(elements),
            "bonds": [list(map(int, bond)) for bond in bonds],
            "coordinates": coordinates,
            "channels": channels,
            "num_blocks": num_blocks,
            "layers_per_block": layers_per_block,
            "head_dim": head_dim,
            "expansion": expansion,
        }
        num_tokens = len(elements) if coordinates == "cartesian" else len(elements) - 2
        blocks = autoregressive_blocks(
            (num_tokens, TOKEN_SIZE),
            channels=channels,
            num_blocks=num_blocks,
            layers_per_block=layers_per_block,
            head_dim=head_dim,
            expansion=expansion,
        )
        frames = (
            []
            if coordinates == "cartesian"
            else [LocalFrames(config["bonds"], len(elements), list(elements))]
        )
        steps = _token_steps(coordinates, num_tokens)
        super().__init__(
            CompositeTransform([*frames, *(step.transform for step in steps), *blocks]),
            StandardNormal((num_tokens, TOKEN_SIZE)),
            config=config,
        )
        self.sequence = sequence
        self.num_atoms = len(elements)
        self._frames = frames
        self._token_steps = steps

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
            for frame in self._frames:
                outputs, _ = frame(outputs)
            for transform, fit in self._token_steps:
                if fit is not None:
                    transform.load_state_dict(fit(outputs).state_dict())
                outputs, _ = transform(outputs)


class _Step(NamedTuple):
    """One fixed transform on the way to the transformer's tokens, and how it is fitted to its inputs."""

    transform: Transform
    fit: Callable[[Tensor], Transform] | None = None


def _token_steps(coordinates: str, num_tokens: int) -> list[_Step]:
    shape = (num_tokens, TOKEN_SIZE)
    standardize = Standardize(torch.zeros(shape), torch.ones(shape))
    if coordinates == "cartesian":
        return [_Step(standardize, lambda data: Standardize.fit(data, event_dims=()))]
    if coordinates == "local_frames":
        return [_Step(standardize, Standardize.fit)]
    return [
        _Step(Spherical(torch.zeros(num_tokens)), _fit_spherical),
        _Step(GaussianizeMarginals(shape, NUM_BINS), _fit_marginals),
        _Step(VectorPatches(shape, 1)),
        _Step(Permute(_by_kind(num_tokens))),
        _Step(VectorPatches((num_tokens * TOKEN_SIZE, 1), TOKEN_SIZE)),
    ]


def _fit_spherical(data: Tensor) -> Transform:
    uncut, _ = Spherical(torch.zeros(data.shape[1]))(data)
    return Spherical(torsion_cuts(uncut[..., 2]))


def _fit_marginals(data: Tensor) -> Transform:
    is_torsion = torch.zeros(data.shape[1:], dtype=torch.bool)
    is_torsion[1:, 2] = True
    return GaussianizeMarginals.fit(data, is_torsion, num_bins=NUM_BINS, uniform_fraction=UNIFORM_FRACTION)


def _by_kind(num_tokens: int) -> Tensor:
    """The order of the 3T internal coordinates in which the transformer sees them: all torsions, angles, bonds.

    An affine map moves the coordinates of one token independently of each other, so a token should hold coordinates
    that hardly depend on each other given the tokens before: the same kind, from atoms a third of the molecule apart.
    """
    index = torch.arange(num_tokens * TOKEN_SIZE).view(num_tokens, TOKEN_SIZE)
    stride = -(-num_tokens // TOKEN_SIZE)
    spread = [atom for first in range(stride) for atom in range(first, num_tokens, stride)]
    return torch.cat([index[spread, kind] for kind in (2, 1, 0)])
