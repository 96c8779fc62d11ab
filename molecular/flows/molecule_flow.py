"""A flow over the conformations of one molecule."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import torch
from nflows.transforms import CompositeTransform, Transform
from torch import Tensor

from molecular.coordinates import TOKEN_SIZE
from molecular.coordinates.local_frames import LocalFrames
from molecular.coordinates.spherical import FirstAngleOnCircle, Spherical, WrapTorsions
from molecular.flows.conformations import ConformationFlow, GivenMolecule
from molecular.flows.marginals import UNIFORM_FRACTION
from molecular.molecule.topology import Topology
from nflib.flows import Flow, autoregressive_blocks
from nflib.transforms import (
    ByParts,
    GaussianizeMarginals,
    Permute,
    Standardize,
    UniformizeCircles,
    VectorPatches,
    Whiten,
)
from nflib.transforms.conditionals import base_distribution, check_conditional, conditional_names

if TYPE_CHECKING:
    from molecular.molecule.topology import AnyTopology

COORDINATES = ("internal", "local_frames", "cartesian")
MARGINAL_BINS = 32
# Of a bond's length, its angle and its torsion.
BY_COORDINATE = {"circular": ("spline", "spline", "circular")}


class MoleculeFlow(ConformationFlow):
    """A transformer autoregressive flow on all-atom positions ``(B, n, 3)`` in nm of one molecule.

    `coordinates` says what the transformer sees, each standardised on training data:

    - ``"internal"``: local frames, then the spherical coordinates of each atom in its frame, with Gaussianised
      marginals.
    - ``"local_frames"``: Cartesian positions in local frames, one atom a token.
    - ``"cartesian"``: plain positions, one atom a token; neither translation nor rotation is removed.

    The first two are densities of conformations modulo rigid motion (see `LocalFrames` for the
    measure), the last one a density on all 3n coordinates. A new flow must be fitted to data by `fit_coordinates`.

    Args:
        topology: as `Topology.to_dict` gives it; `MoleculeFlow.of` takes a molecule.
        coordinates: see above.
        channels: width of the transformers.
        num_blocks: autoregressive maps.
        layers_per_block: transformer layers of each map.
        head_dim: width of an attention head, `channels` where these are fewer.
        expansion: width of the layers' MLPs over `channels`.
        conditional: how a token's numbers are mapped given the tokens before. "spline": each by a rational-quadratic
            spline of `num_bins` pieces given those before it in its own token too; a token is then an atom, and few
            deep blocks are best. "quadratic", "binned", "mixture": the same by other maps of one number
            (`nflib.transforms.conditionals`). "circular": torsions are angles, mapped by splines of the circle, with no
            cut, and lengths and angles as by "spline"; of internal coordinates alone. "affine": independently of each
            other, and tokens of internal coordinates are dealt so that they nearly are: three of one kind from distant
            atoms, torsions first, then angles, then lengths.
        num_bins: pieces of each spline, bins, or components of a mixture.
        whitened: whether linear correlations, too, are taken out of what the transformer sees, by a fitted map: better
            where rings couple many coordinates stiffly and training is short, worse where nothing does.

    Raises:
        ValueError: unknown coordinates, a topology that is none, or settings that do not fit.

    >>> from molecular import Peptide
    >>> peptide = Peptide("Ace-A-Nme")
    >>> flow = MoleculeFlow.of(peptide, channels=32, layers_per_block=1)
    >>> frames = torch.as_tensor(peptide.positions, dtype=torch.float32) + 0.002 * torch.randn(100, 22, 3)
    >>> flow.fit_coordinates(frames)
    >>> flow.log_prob(frames).shape, flow.given(peptide).sample((5,), seed=0).shape
    (torch.Size([100]), torch.Size([5, 22, 3]))
    """

    def __init__(
        self,
        topology: Mapping[str, Any],
        coordinates: str = "internal",
        channels: int = 64,
        num_blocks: int = 1,
        layers_per_block: int = 4,
        head_dim: int = 32,
        expansion: float = 4,
        conditional: str = "spline",
        num_bins: int = 8,
        whitened: bool = False,
    ):
        if coordinates not in COORDINATES:
            raise ValueError(f"coordinates must be one of {', '.join(COORDINATES)}, got {coordinates!r}.")
        check_conditional(conditional)
        is_circular = conditional == "circular"
        if is_circular and (coordinates != "internal" or whitened):
            raise ValueError(
                "circular conditionals map torsions: they need internal coordinates, which are not whitened."
            )
        known = Topology.from_dict(topology)
        num_atoms = known.num_atoms
        num_tokens = num_atoms if coordinates == "cartesian" else num_atoms - 2
        names = conditional_names(BY_COORDINATE.get(conditional, conditional), TOKEN_SIZE)
        blocks = autoregressive_blocks(
            (num_tokens, TOKEN_SIZE),
            channels=channels,
            num_blocks=num_blocks,
            layers_per_block=layers_per_block,
            head_dim=head_dim,
            expansion=expansion,
            # Affine maps leave the first token to its marginals, which are Gaussian already.
            start_token=conditional != "affine",
            conditional=names,
            num_bins=num_bins,
        )
        frames = LocalFrames(known.bonds, known.num_atoms, known.elements)
        steps = _fixed_steps(coordinates, frames, dealt=conditional == "affine", circular=is_circular)
        if whitened:
            steps.append(_Step(Whiten((num_tokens, TOKEN_SIZE)), Whiten.fit))
        super().__init__(
            CompositeTransform([*(step.transform for step in steps), *blocks]),
            base_distribution(names, num_tokens),
        )
        self.topology = known
        self.num_atoms = num_atoms
        self.coordinates = coordinates
        self._fixed = steps
        self._blocks = blocks

    @classmethod
    def of(cls, molecule: AnyTopology, **settings: Any) -> Self:
        """A new flow for a molecule.

        Args:
            molecule: a `Molecule` or a topology.
            settings: arguments of the constructor, such as `channels`.
        """
        return cls(Topology.of(molecule).to_dict(), **settings)

    def given(self, context: Any = None) -> GivenMolecule:
        """This flow as a distribution of positions ``(n, 3)``; raises ValueError unless it was made for the molecule.

        Without a molecule there is nothing to check.
        """
        given = GivenMolecule(self, None, self.topology)
        if context is not None:
            given.check(context)
        return given

    def fit_coordinates(self, positions: Tensor) -> None:
        """Fit the fixed part of the map to training positions ``(N, n, 3)``.

        Raises ValueError for another number of atoms.
        """
        if positions.shape[1:] != (self.num_atoms, 3):
            raise ValueError(
                f"positions have shape {tuple(positions.shape)}, but this flow is of {self.num_atoms} atoms."
            )
        outputs = positions
        with torch.no_grad():
            for transform, fit in self._fixed:
                if fit is not None:
                    transform.load_state_dict(fit(outputs).state_dict())
                outputs, _ = transform(outputs)

    @property
    def coordinate_transform(self) -> CompositeTransform:
        """The fixed part of the map, from positions ``(B, n, 3)`` to what the transformer sees, for use in other flows.

        It is fitted by `fit_coordinates`.
        """
        return CompositeTransform([step.transform for step in self._fixed])

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
            steps[num_fixed:num_fixed] = [WrapTorsions(), WrapTorsions()]
            num_fixed += 1
        rest = CompositeTransform([*steps[num_fixed:], *self._blocks])
        return CompositeTransform(steps[:num_fixed]), Flow(rest, self._distribution)


class _Step(NamedTuple):
    """One fixed transform on the way to the transformer's tokens, and how it is fitted to its inputs."""

    transform: Transform
    fit: Callable[[Tensor], Transform] | None = None


def _fixed_steps(coordinates: str, frames: LocalFrames, *, dealt: bool, circular: bool) -> list[_Step]:
    if coordinates == "cartesian":
        shape = (frames.num_atoms, TOKEN_SIZE)
        one_scale = Standardize(torch.zeros(shape), torch.ones(shape))
        return [_Step(one_scale, lambda data: Standardize.fit(data, event_dims=()))]
    num_tokens = frames.num_atoms - 2
    shape = (num_tokens, TOKEN_SIZE)
    if coordinates == "local_frames":
        return [_Step(frames), _Step(Standardize(torch.zeros(shape), torch.ones(shape)), Standardize.fit)]
    steps = [_Step(frames), _Step(Spherical(torch.zeros(num_tokens)), Spherical.fit)]
    if circular:
        marginals = ByParts(
            _thirds(shape),
            UniformizeCircles(num_tokens, MARGINAL_BINS),
            GaussianizeMarginals((2 * num_tokens,), MARGINAL_BINS),
        )
        return [*steps, _Step(FirstAngleOnCircle()), _Step(marginals, _fit_circular_marginals)]
    steps.append(_Step(GaussianizeMarginals(shape, MARGINAL_BINS), _fit_marginals))
    if not dealt:
        return steps
    return [
        *steps,
        _Step(VectorPatches(shape, 1)),
        _Step(Permute(_by_kind(frames))),
        _Step(VectorPatches((num_tokens * TOKEN_SIZE, 1), TOKEN_SIZE)),
    ]


def _thirds(shape: tuple[int, ...]) -> Tensor:
    """The mask ``(T, 3)`` of the third coordinate of every token."""
    return (torch.arange(TOKEN_SIZE) == 2).expand(shape)


def _fit_circular_marginals(data: Tensor) -> Transform:
    mask = _thirds(data.shape[1:]).to(data.device)
    circles = UniformizeCircles.fit(data[:, mask], num_bins=MARGINAL_BINS, uniform_fraction=UNIFORM_FRACTION)
    return ByParts(mask, circles, GaussianizeMarginals.fit(data[:, ~mask], num_bins=MARGINAL_BINS))


def _fit_marginals(data: Tensor) -> Transform:
    is_torsion = _thirds(data.shape[1:]).clone()
    is_torsion[0] = False
    return GaussianizeMarginals.fit(data, is_torsion, num_bins=MARGINAL_BINS, uniform_fraction=UNIFORM_FRACTION)


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
