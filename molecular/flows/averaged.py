"""Transferable flows on internal coordinates, averaged: one flow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import torch
from nflows.transforms import CompositeTransform, Transform
from torch import Tensor, nn

from molecular.coordinates.internal import coordinate_kinds, token_mask
from molecular.coordinates.spherical import wrapped
from molecular.flows.conformations import ConformationFlow, TransferableFlow
from molecular.flows.internal_molecule import GivenInternalMolecule
from molecular.flows.internal_prose import InternalProse
from molecular.molecule.canonical_names import Naming
from molecular.molecule.internal_context import ROWS_BEFORE_TOKENS, Column
from nflib.errors import check_object
from nflib.networks.conditioning import distinct_rows
from nflib.transforms import AveragedAutoregressive
from nflib.transforms.causal_map import NumberMap, NumberwiseAutoregressive
from nflib.transforms.normal import lower_tail, normal_quantile

if TYPE_CHECKING:
    from molecular.molecule.topology import AnyTopology

# Of a token's numbers, the one that is an angle on a circle.
TORSION = 2
# Cuts of a circle nearer to each other than this, rad, are one, rounded.
SAME_CUT = 1e-5


class AveragedProse(TransferableFlow):
    """The mean of flows on internal coordinates (`InternalProse`), number by number: one flow, with its exact density.

    Given the numbers before, each length, angle and torsion has the mean of the densities that the flows give it
    (`AveragedAutoregressive`). Flows that were trained apart err apart, and their errors are averaged. A sample costs a
    pass through each of them; their own decoders are not used.

    Args:
        flows: of one block each, in the same ordering and for the same names of equivalent atoms, with normal noise.

    Raises:
        ValueError: no flows, or flows that do not fit together.

    >>> from molecular import InternalProse, Peptide
    >>> settings = dict(channels=32, num_blocks=1, layers_per_block=1, head_dim=16, condition_channels=16)
    >>> flow = AveragedProse([InternalProse(**settings) for _ in range(2)])
    >>> flow.sample(5, flow.context(Peptide("AA")), seed=0).shape
    torch.Size([1, 5, 23, 3])
    """

    given_class = GivenInternalMolecule

    def __init__(self, flows: Sequence[InternalProse]):
        for flow in flows:
            check_object("each of the flows", flow, "InternalProse()", "terms_of_average")
        misfit = why_not_averaged(flows)
        if misfit is not None:
            raise ValueError(f"these flows have no average: {misfit}.")
        first = flows[0]
        visit, part, back = first.blocks
        blocks = [visit, AveragedAutoregressive([part, *(_OnMarginalsOf(first, flow) for flow in flows[1:])]), back]
        super().__init__(
            CompositeTransform([first.coordinates, first.marginals, *blocks]),
            first._distribution,
            first._embedding_net,
        )
        self.flows: Any = nn.ModuleList(flows)
        # The same modules under names of their own.
        self.coordinates, self.marginals = first.coordinates, first.marginals
        self.canonical_names = first.canonical_names
        self.blocks: list[Transform] = blocks

    def context_of(self, molecule: AnyTopology) -> Tensor:
        """See `TransferableFlow.context_of`."""
        context: Tensor = self.flows[0].context_of(molecule)
        return context

    def symmetries(self, molecules: Sequence[AnyTopology]) -> Naming:
        """See `TransferableFlow.symmetries`."""
        naming: Naming = self.flows[0].symmetries(molecules)
        return naming

    def fitted(self, batches: Sequence[dict[str, Tensor]]) -> Self:
        """This flow, in place, with the marginals of each flow fitted."""
        for flow in self.flows:
            flow.fitted(batches)
        return self


def why_not_averaged(flows: Sequence[ConformationFlow]) -> str | None:
    """Why flows have no `AveragedProse`, in words that end a sentence; None where they have one."""
    if not flows:
        return "there are none"
    try:
        first, *others = (flow.terms_of_average() for flow in flows)
    except ValueError as error:
        return str(error)
    return next(
        (f"they have different {name}" for name in first if any(other[name] != first[name] for other in others)), None
    )


class _Encoded(NamedTuple):
    """A context, or conditionals, of tokens as they are visited, for `_OnMarginalsOf`.

    kinds: of each number, ``(b, T, 3)``, -1 at padding; b is one, or as many as there are samples. turn: a torsion in
    the own coordinates less that in the first flow's, ``(b, T, 3)`` radians; 0 where they cut a circle in one place,
    and of all other numbers. part: as the own map has it.
    """

    kinds: Tensor
    turn: Tensor
    part: Any


class _OnMarginalsOf(NumberwiseAutoregressive):
    """The autoregressive map of one flow, as a map of the Gaussianised coordinates of another, the first.

    Numbers go back through the first flow's marginals and then through the own ones. Where the two cut a circle in
    different places, the own distribution function of the torsion is counted from the first one's cut.

    Args:
        first: whose Gaussianised coordinates it takes.
        own: of which it is the map.
    """

    def __init__(self, first: InternalProse, own: InternalProse):
        super().__init__()
        # In a tuple, lest they become parts of this module, too.
        self._first = (first.coordinates, first.marginals)
        self.coordinates, self.marginals = own.coordinates, own.marginals
        self.visit, self.part, _ = own.blocks

    @property
    def token_size(self) -> int:
        size: int = self.part.token_size
        return size

    @property
    def uses_context(self) -> bool:
        return True

    def encode_context(self, context: Tensor) -> _Encoded:
        rows = distinct_rows(context)
        first, _ = self._first
        kinds = coordinate_kinds(rows)
        of_atom = rows[:, ROWS_BEFORE_TOKENS:, Column.KIND].clamp_min(0)
        turn = wrapped(first.offsets[of_atom] - self.coordinates.offsets[of_atom])
        turn = torch.where(token_mask(rows) & (turn.abs() > SAME_CUT), turn, 0.0)
        turn = nn.functional.pad(turn[..., None], (TORSION, 0))
        kinds, turn = (self.visit(numbers, rows)[0] for numbers in (kinds, turn))
        return _Encoded(kinds, turn, self.part.encode_context(context))

    def new_cache(self, batch_size: int, num_tokens: int, encoded_context: _Encoded) -> Any:
        return self.part.new_cache(batch_size, num_tokens, encoded_context.part)

    def conditionals(
        self, tokens: Tensor, encoded_context: _Encoded, cache: Any = None, start: int = 0, stop: int | None = None
    ) -> _Encoded:
        kinds, turn, part = encoded_context
        stop = tokens.shape[1] if stop is None else stop
        read = slice(max(start - 1, 0), stop)
        own, _ = self._to_own(tokens[:, read], kinds[:, read], turn[:, read])
        own = torch.cat([tokens[:, : read.start], own, tokens[:, stop:]], dim=1)
        conditionals = self.part.conditionals(own, part, cache, start, stop)
        return _Encoded(kinds[:, start:stop], turn[:, start:stop], conditionals)

    def number_map(self, number: int, tokens: Tensor, conditionals: _Encoded) -> NumberMap:
        kinds, turn = conditionals.kinds[..., number], conditionals.turn[..., number]
        own, _ = self._to_own(tokens, conditionals.kinds, conditionals.turn)
        alone = self.part.number_map(number, own, conditionals.part)
        if turn.any():
            return self._turned_map(alone, kinds, turn, own[..., number])

        def to_noise(u: Tensor) -> tuple[Tensor, Tensor]:
            y, to_own = self._to_own(u, kinds, turn)
            noise, log_slope = alone.to_noise(y)
            return noise, to_own + log_slope

        def from_noise(z: Tensor) -> Tensor:
            internal, _ = self.marginals.inverse_by_kind(alone.from_noise(z), kinds.expand_as(z))
            return self._first[1].forward_by_kind(internal, kinds.expand_as(z))[0]

        return NumberMap(to_noise, from_noise)

    def _turned_map(self, alone: NumberMap, kinds: Tensor, turn: Tensor, like: Tensor) -> NumberMap:
        """The map of torsions some of which the own flow cuts elsewhere, given the own map of them.

        Differences of distribution functions lose the digits of single precision: it computes in double where it can.
        """
        dtype = like.dtype if like.device.type == "mps" else torch.float64
        _, first = self._first
        kinds, is_turned = kinds.expand_as(like), turn != 0
        start = wrapped(turn.to(dtype) - math.pi)  # where the first flow's circle begins, in the own coordinate
        ends, _ = self.marginals.forward_by_kind(start.expand_as(like), kinds)
        cut = torch.where(is_turned, alone.to_noise(ends)[0], 0.0)

        def to_noise(u: Tensor) -> tuple[Tensor, Tensor]:
            internal, back = first.inverse_by_kind(u.to(dtype), kinds)
            angle = start + (internal + math.pi).clamp(0.0, 2 * math.pi)
            is_below = angle > math.pi  # once around, below the cut
            angle = torch.where(is_below, angle - 2 * math.pi, angle)
            y, onward = self.marginals.forward_by_kind(torch.where(is_turned, angle, internal), kinds)
            noise, log_slope = alone.to_noise(y)
            counted = torch.where(is_turned, _counted(noise, cut, is_below), noise)
            log_slope = back + onward + log_slope + 0.5 * (counted.square() - noise.square())
            return counted.to(u.dtype), log_slope.to(u.dtype)

        def from_noise(z: Tensor) -> Tensor:
            counted = z.to(dtype)
            is_below = counted >= -cut
            noise = torch.where(is_turned, _counted(counted, -cut, ~is_below), counted)
            internal, _ = self.marginals.inverse_by_kind(alone.from_noise(noise), kinds)
            around = internal - start + torch.where(is_below, 2 * math.pi, 0.0)
            internal = torch.where(is_turned, around.clamp(0.0, 2 * math.pi) - math.pi, internal)
            return first.forward_by_kind(internal, kinds)[0].to(z.dtype)

        return NumberMap(to_noise, from_noise)

    def _to_own(self, tokens: Tensor, kinds: Tensor, turn: Tensor) -> tuple[Tensor, Tensor]:
        """The own Gaussianised coordinates of numbers ``(B, ...)`` of these kinds, and the logabsdet of each."""
        kinds = kinds.expand_as(tokens)
        internal, back = self._first[1].inverse_by_kind(tokens, kinds)
        own, onward = self.marginals.forward_by_kind(torch.where(turn != 0, wrapped(internal + turn), internal), kinds)
        return own, back + onward


def _counted(noise: Tensor, cut: Tensor, is_below: Tensor) -> Tensor:
    """The noise of an angle whose distribution function is counted on from a cut: F - F(cut), and one more below it.

    Counting on from minus the cut is the inverse.
    """
    lower = torch.where(is_below, lower_tail(noise) + lower_tail(-cut), _probability(cut, noise))
    upper = torch.where(is_below, _probability(noise, cut), lower_tail(-noise) + lower_tail(cut))
    tiny = torch.finfo(noise.dtype).tiny
    return normal_quantile(lower.clamp_min(tiny), upper.clamp_min(tiny))


def _probability(low: Tensor, high: Tensor) -> Tensor:
    """Of a normal number between two others."""
    return torch.where(low > 0, lower_tail(-low) - lower_tail(-high), lower_tail(high) - lower_tail(low))
