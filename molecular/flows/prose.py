"""Prose: one transformer autoregressive flow for every peptide (arXiv 2508.18175), a setting of nflib's engine."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from nflows.transforms import CompositeTransform, InverseTransform, Transform
from torch import Tensor

from molecular.coordinates import TOKEN_SIZE
from molecular.flows.conformations import TransferableFlow
from molecular.flows.prose_context import (
    NUM_CODES,
    AtomEmbedding,
    AtomMask,
    CheckedContext,
    VisitedConditions,
    atoms_in_order,
)
from molecular.flows.rigid_motion import CentroidEnergy, random_rigid_motion
from molecular.molecule.features import atom_mask, prose_context
from molecular.molecule.orderings import PROSE_ORDERINGS, check_orderings
from nflib.distributions import PaddedNormal
from nflib.networks import CausalTransformer, SinusoidalPositions
from nflib.networks.adaptive import AdaptiveTransformerLayer, SwiGLU
from nflib.networks.layers import transformer_layers
from nflib.networks.norms import LayerNorm
from nflib.transforms import ClosedForm, PermuteByContext, TransformerAffineAutoregressive

if TYPE_CHECKING:
    from molecular.molecule.topology import AnyTopology


class Prose(TransferableFlow):
    """Prose (arXiv 2508.18175): one autoregressive flow on atom positions ``(B, n, 3)`` for any uncapped peptide.

    Its context says which peptide: one integer tensor ``(B, n, 4 + len(orderings))`` that `context` makes (padded where
    several are batched). Each block is an autoregressive map that visits the atoms in its own ordering, by layers
    steered by the atom just read and the one to come. Padding carries no density: a molecule's log-density is the same
    in any batch. The density is over position and orientation too. The defaults are the sizes of the released model of
    288 million parameters.

    Args:
        channels: width of the transformers.
        num_blocks: autoregressive maps.
        layers_per_block: transformer layers of each map.
        head_dim: width of an attention head.
        orderings: of the atoms; block k visits them in ``orderings[k % len(orderings)]``.
        expansion: width of the layers' MLPs over `channels`.
        scale: length by which positions are divided before the first map: the standard deviation of the training data,
            in the units of the positions.
        max_atoms: the longest molecule.
        num_atom_types: how many atom types the embedding has room for.
        num_residue_types: how many residue types the embedding has room for.
        dropout: of the residual updates inside each layer, in training.

    Raises:
        ValueError: settings that do not fit; in use, a context that does not: missing or of floats, of another width,
            with codes out of range, or with orderings that are no permutations or visit padding early.

    >>> from molecular import Peptide
    >>> flow = Prose(channels=32, num_blocks=2, layers_per_block=1, head_dim=16)
    >>> samples = flow.sample(5, flow.context(Peptide("AA")), seed=0)  # one molecule, five conformations of 23 atoms
    >>> samples.shape
    torch.Size([1, 5, 23, 3])
    """

    def __init__(
        self,
        channels: int = 384,
        num_blocks: int = 8,
        layers_per_block: int = 8,
        head_dim: int = 64,
        orderings: Sequence[str] = PROSE_ORDERINGS,
        expansion: float = 4,
        *,
        scale: float = 1.0,
        max_atoms: int = 512,
        num_atom_types: int = 128,
        num_residue_types: int = 64,
        dropout: float = 0.0,
    ):
        sizes = {
            "channels": channels,
            "num_blocks": num_blocks,
            "layers_per_block": layers_per_block,
            "head_dim": head_dim,
            "max_atoms": max_atoms,
        }
        _check_settings(sizes, orderings, scale)
        embedding = AtomEmbedding(channels, num_atom_types, num_residue_types)

        def block(column: int) -> list[Transform]:
            layers = [
                AdaptiveTransformerLayer(layer, SwiGLU(channels, expansion), channels, channels)
                for layer in transformer_layers(
                    layers_per_block,
                    channels,
                    head_dim=head_dim,
                    expansion=expansion,
                    query_key_norm=LayerNorm,
                    dropout=dropout,
                )
            ]
            network = CausalTransformer(
                TOKEN_SIZE,
                2 * TOKEN_SIZE,
                channels,
                layers,
                positions=SinusoidalPositions(max_atoms, channels),
                conditioner=VisitedConditions(embedding, column, channels),
                token_mask=AtomMask(),
            )
            visit = PermuteByContext(partial(atoms_in_order, column=column))
            return [visit, TransformerAffineAutoregressive(network), InverseTransform(visit)]

        columns = [NUM_CODES + index % len(orderings) for index in range(num_blocks)]
        super().__init__(
            CompositeTransform([ScaleAtoms(scale), *(part for column in columns for part in block(column))]),
            PaddedNormal(TOKEN_SIZE, AtomMask()),
            CheckedContext(len(orderings), max_atoms, num_atom_types, num_residue_types),
        )
        self.orderings = tuple(orderings)
        self.scale = scale

    def context_of(self, molecule: AnyTopology) -> Tensor:
        """See `prose_context`, ``(n, 4 + len(orderings))``."""
        return prose_context(molecule, self.orderings)

    def fitted(self, batches: Sequence[dict[str, Tensor]]) -> Prose:
        """A new flow of the same settings, whose scale is the spread of the atoms about their centroids."""
        return Prose(**(self.config or {}) | {"scale": spread(batches)})

    @property
    def places_molecules(self) -> bool:
        return True

    def placed(self, positions: Tensor, mask: Tensor, generator: torch.Generator) -> Tensor:
        """Each in an orientation of its own, its centroid drawn as `CentroidEnergy` has it; padding is zero."""
        return random_rigid_motion(positions, mask, self.scale, generator)

    def target_energy(self, energy: Callable[[Tensor], Tensor]) -> CentroidEnergy:
        """A reduced energy with that of the centroid that this flow was trained on, since its density places it too."""
        return CentroidEnergy(energy, self.scale)


def spread(batches: Sequence[dict[str, Tensor]]) -> float:
    """The standard deviation of the atoms' coordinates about their molecules' centroids."""
    total, count = 0.0, 0
    for batch in batches:
        mask = atom_mask(batch["context"])
        centred = batch["inputs"].masked_fill(~mask.unsqueeze(-1), 0.0)
        mean = centred.sum(1, keepdim=True) / mask.sum(1)[:, None, None]
        total += float((centred - mean)[mask].double().square().sum())
        count += 3 * int(mask.sum())
    return (total / count) ** 0.5


class ScaleAtoms(ClosedForm):
    """Divides positions ``(B, n, 3)`` by one length; logabsdet counts the atoms that exist, 3 dimensions each."""

    uses_context = True

    def __init__(self, scale: float):
        super().__init__()
        self.scale = scale
        self.mask = AtomMask()

    def forward(self, inputs: Tensor, context: Any = None) -> tuple[Tensor, Tensor]:
        return inputs / self.scale, -self._logabsdet(inputs, context)

    def inverse(self, inputs: Tensor, context: Any = None) -> tuple[Tensor, Tensor]:
        return inputs * self.scale, self._logabsdet(inputs, context)

    def _logabsdet(self, inputs: Tensor, context: Tensor) -> Tensor:
        mask = self.mask(context)
        if tuple(inputs.shape) != (*mask.shape, TOKEN_SIZE):
            raise ValueError(
                f"positions of shape {tuple(inputs.shape)} do not fit a context of {mask.shape[1]} atoms; expected "
                f"{(*mask.shape, TOKEN_SIZE)}."
            )
        return mask.sum(-1).to(torch.promote_types(inputs.dtype, torch.float32)) * (TOKEN_SIZE * math.log(self.scale))


def _check_settings(sizes: dict[str, int], orderings: Sequence[str], scale: float) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be a positive number, got {size!r}.")
    if not 0 < scale < math.inf:
        raise ValueError(f"scale must be a positive length, got {scale!r}.")
    check_orderings(orderings)
