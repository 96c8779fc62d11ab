"""Prose on internal coordinates: one flow for every peptide, exactly blind to translation and rotation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Self

from nflows.transforms import CompositeTransform, InverseTransform, Transform
from torch import Tensor

from molecular.coordinates import TOKEN_SIZE
from molecular.coordinates.internal import InternalCoordinates, coordinate_kinds
from molecular.flows.conditioning import (
    CheckedInternalContext,
    SiteEmbedding,
    TargetConditions,
    TokenMask,
    tokens_in_order,
)
from molecular.flows.conformations import TransferableFlow
from molecular.flows.internal_molecule import GivenInternalMolecule
from molecular.flows.local_environment import LocalEnvironment
from molecular.flows.marginals import fit_marginals
from molecular.molecule.canonical_names import CanonicalNames, Naming
from molecular.molecule.internal_context import NUM_COLUMNS, ORDERINGS, internal_context
from molecular.molecule.kinds import KINDS
from molecular.molecule.orderings import check_orderings
from nflib.distributions import PaddedNormal
from nflib.flows.tarflow import depths_of_blocks
from nflib.networks import AdaptiveLayerNorm, CausalTransformer, SinusoidalPositions
from nflib.networks.layers import transformer_layers
from nflib.transforms import GaussianizeByKind, PermuteByContext
from nflib.transforms.conditionals import REAL_CONDITIONALS, autoregressive_map, check_conditional, conditional_names

if TYPE_CHECKING:
    from molecular.molecule.topology import AnyTopology

# A block visits the tokens, maps them, and puts them back.
PARTS_OF_BLOCK = 3
# What models saved by earlier versions know by other names.
FORMER_ARGUMENTS = {"surroundings": "local_environment"}
FORMER_ORDERINGS = {"walk": "z-matrix", "walk_flip": "z-matrix_flip"}


class InternalProse(TransferableFlow):
    """One flow on the internal coordinates of any uncapped peptide: positions ``(B, n, 3)`` in nm modulo rigid motion.

    Its context says which peptide: one integer tensor that `context` makes (padded where several are batched). Each
    atom becomes a token: bond length, bond angle and torsion in the frame of three earlier atoms
    (`InternalCoordinates`), each with the Gaussianised marginal of its kind, which all molecules share. Blocks then
    visit the tokens, each in its own ordering, by layers whose adaptive norms are steered by the atoms of the token to
    come and the one before. A new flow's marginals must be fitted (`fitted`). Padding carries no density. A
    trained flow gives next to none to atoms that are named otherwise than in training; `with_canonical_names` names
    them as every flow knows them.

    Args:
        channels: width of the transformers.
        num_blocks: autoregressive maps.
        layers_per_block: transformer layers of each map, or one number for each of them.
        head_dim: width of an attention head.
        orderings: of the tokens; block k visits them in ``orderings[k % len(orderings)]``.
        expansion: width of the layers' MLPs over `channels`.
        conditional: how a number is mapped given those before it: "spline", "quadratic", "binned", "mixture", or
            "affine", given earlier tokens alone (`nflib.transforms.conditionals`).
        num_bins: pieces, bins or components of that map.
        units: hidden units of the small network that computes it within a token.
        condition_channels: width of the conditions that steer the layers.
        neighbours: whether conditions tell the residues before and behind, which a flow trained on few sequences
            learns by heart.
        local_environment: whether the first block sees that of the atom to come: the atoms placed so far
            (`molecular.flows.local_environment`). The first ordering must then visit reference atoms first.
        marginal_bins: pieces of each Gaussianised marginal.
        max_atoms: the longest molecule.
        num_atom_types: how many atom types the embedding has room for.
        num_residue_types: how many residue types the embedding has room for.
        dropout: of the layers' updates, in training.
        canonical_names: whether the flow learns one naming of equivalent atoms alone
            (`molecular.molecule.canonical_names`); its samples are then weighted to the Boltzmann density of that one.

    Raises:
        ValueError: settings that do not fit, or, in use, a context that does not.

    >>> from molecular import Peptide
    >>> flow = InternalProse(channels=32, num_blocks=2, layers_per_block=1, head_dim=16, condition_channels=16)
    >>> samples = flow.sample(5, flow.context(Peptide("AA")), seed=0)
    >>> samples.shape
    torch.Size([1, 5, 23, 3])
    """

    given_class = GivenInternalMolecule

    def __init__(
        self,
        channels: int = 128,
        num_blocks: int = 2,
        layers_per_block: int | Sequence[int] = 3,
        head_dim: int = 32,
        orderings: Sequence[str] = ("z-matrix", "z-matrix_flip"),
        expansion: float = 4,
        *,
        conditional: str = "spline",
        num_bins: int = 8,
        units: int = 32,
        condition_channels: int = 64,
        neighbours: bool = True,
        local_environment: bool = True,
        marginal_bins: int = 32,
        max_atoms: int = 256,
        num_atom_types: int = 64,
        num_residue_types: int = 32,
        dropout: float = 0.0,
        canonical_names: bool = False,
    ):
        depths = depths_of_blocks(layers_per_block, num_blocks)
        sizes = {
            "channels": channels,
            "num_blocks": num_blocks,
            "head_dim": head_dim,
            "units": units,
            "condition_channels": condition_channels,
            "max_atoms": max_atoms,
        }
        _check_settings(sizes, orderings, conditional, local_environment)
        embedding = SiteEmbedding(condition_channels, num_atom_types, num_residue_types, neighbours)
        self_norm = partial(AdaptiveLayerNorm, condition_channels=condition_channels)

        coordinates = InternalCoordinates(len(KINDS))
        marginals = GaussianizeByKind(TOKEN_SIZE * len(KINDS), coordinate_kinds, marginal_bins)

        def around(column: int) -> LocalEnvironment:
            return LocalEnvironment(coordinates, marginals, embedding, column, condition_channels, channels)

        def network(
            depth: int,
            column: int,
            features: LocalEnvironment | None,
            features_per_token: int,
            parameters_per_token: int,
        ) -> CausalTransformer:
            return CausalTransformer(
                features_per_token,
                parameters_per_token,
                channels,
                transformer_layers(
                    depth, channels, head_dim=head_dim, expansion=expansion, norm=self_norm, dropout=dropout
                ),
                positions=SinusoidalPositions(max_atoms, channels),
                conditioner=TargetConditions(embedding, column, condition_channels),
                token_mask=TokenMask(),
                features=features,
                start_token=True,
            )

        def block(depth: int, column: int, features: LocalEnvironment | None) -> list[Transform]:
            part = autoregressive_map(
                conditional_names(conditional, TOKEN_SIZE),
                partial(network, depth, column, features),
                num_bins=num_bins,
                units=units,
                dropout=dropout,
            )
            visit = PermuteByContext(partial(tokens_in_order, column=column))
            return [visit, part, InverseTransform(visit)]

        columns = [NUM_COLUMNS + index % len(orderings) for index in range(num_blocks)]
        # Only the first block's tokens are a conformation's.
        features = [around(columns[0]) if local_environment else None, *[None] * (num_blocks - 1)]
        blocks = [part for settings in zip(depths, columns, features, strict=True) for part in block(*settings)]
        super().__init__(
            CompositeTransform([coordinates, marginals, *blocks]),
            PaddedNormal(TOKEN_SIZE, TokenMask()),
            CheckedInternalContext(len(orderings), max_atoms, num_atom_types, num_residue_types),
        )
        self.orderings, self.canonical_names = tuple(orderings), canonical_names
        # The same modules under names of their own.
        self.coordinates, self.marginals = coordinates, marginals
        self._blocks = blocks

    @classmethod
    def current_arguments(cls, saved: Mapping[str, Any]) -> Mapping[str, Any]:
        """See `nflib.io.Pretrained.current_arguments`."""
        arguments = {FORMER_ARGUMENTS.get(name, name): value for name, value in saved.items()}
        if "orderings" in arguments:
            arguments["orderings"] = [FORMER_ORDERINGS.get(name, name) for name in arguments["orderings"]]
        return arguments

    @property
    def blocks(self) -> list[Transform]:
        """The maps between tokens of Gaussianised coordinates and noise, in the order in which data passes them."""
        return self._blocks

    def context_of(self, molecule: AnyTopology) -> Tensor:
        """See `internal_context`."""
        return internal_context(molecule, self.orderings)

    def symmetries(self, molecules: Sequence[AnyTopology]) -> Naming:
        """See `TransferableFlow.symmetries`."""
        return CanonicalNames(molecules) if self.canonical_names else super().symmetries(molecules)

    def fitted(self, batches: Sequence[dict[str, Tensor]]) -> Self:
        """This flow, in place, with the cuts of its circles and the marginals of each kind fitted (`fit_marginals`)."""
        fit_marginals(self.coordinates, self.marginals, batches)
        return self

    def terms_of_average(self) -> dict[str, Any]:
        """See `ConformationFlow.terms_of_average`."""
        if len(self.blocks) != PARTS_OF_BLOCK:
            raise ValueError(f"one has {len(self.blocks) // PARTS_OF_BLOCK} blocks, and only flows of one have any")
        if not isinstance(self._distribution, PaddedNormal):
            raise ValueError("the noise of one is not normal, as of scaled noise; scale that of the average instead")
        taken, weight = self._embedding_net, next(self.parameters())
        return {
            "orderings": self.orderings,
            "names of equivalent atoms": self.canonical_names,
            "room for molecules": (taken.max_atoms, taken.num_atom_types, taken.num_residue_types),
            "dtypes": weight.dtype,
            "devices": weight.device,
            "circles (are all fitted?)": self.marginals.is_interval.tolist(),
        }


def _check_settings(
    sizes: dict[str, int],
    orderings: Sequence[str],
    conditional: str,
    local_environment: bool,
) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be a positive number, got {size!r}.")
    check_conditional(conditional, REAL_CONDITIONALS)
    check_orderings(orderings, ORDERINGS)
    if local_environment and orderings[0].endswith("_flip"):
        raise ValueError(
            f"local_environment needs an ordering that places atoms before those that refer to them, but the first is "
            f"{orderings[0]!r}; start with another, or turn local_environment off."
        )
