"""Leaving contexts out in training, so that a flow can be guided."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nflib.contexts import as_context, unconditional_rows
from nflib.events import per_row
from nflib.training.composed import OfAnother
from nflib.training.objectives import Objective, maximum_likelihood


@dataclass(frozen=True)
class ContextDropout(OfAnother):
    """Another objective, with a share of the contexts left out: training for classifier-free guidance.

    One flow learns the conditional and the unconditional density by it, and `Flow.guided` goes from the one to the
    other and beyond (Ho and Salimans 2022, arXiv:2207.12598). Validation is of the contexts as they are.

    Args:
        objective: what is minimised, such as `maximum_likelihood` or `FlowMatching()`.
        share: of the rows of a batch that lose their context, on average; from 0 to less than 1.
        unconditional: the context that they have instead, as `Flow.guided` takes it: -1 for class labels, a tensor of
            the contexts' shape or, of tokens with a padding mask, a pair.

    Raises:
        ValueError: a share outside its range; in training, data without a context, or with one of another shape.

    >>> import tempfile
    >>> from nflib.flows import TARFlow
    >>> from nflib.training import TrainingConfig, fit
    >>> from nflib.transforms import LinearGuidance
    >>> flow = TARFlow((6,), patch_size=2, channels=16, num_blocks=1, head_dim=8, num_classes=3)
    >>> data = {"inputs": torch.randn(64, 6), "context": torch.arange(64) % 3}
    >>> config = TrainingConfig(batch_size=32, max_steps=4, progress_bar=False, tensorboard=False)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     fit(flow, data, config=config, objective=ContextDropout(share=0.1), output=folder).steps
    4
    >>> flow.guided(LinearGuidance(1.0)).sample(2, context=torch.tensor([1]), seed=0).shape
    torch.Size([1, 2, 6])
    """

    objective: Objective = maximum_likelihood
    share: float = 0.1
    unconditional: Any = -1

    def __post_init__(self) -> None:
        object.__setattr__(self, "unconditional", as_context(self.unconditional))
        if self.unconditional is None:
            raise ValueError("ContextDropout needs an unconditional context, such as -1 for class labels.")
        if not 0 <= self.share < 1:
            raise ValueError(f"the share of contexts left out must be from 0 to less than 1, got {self.share!r}.")

    def __call__(
        self, flow: nn.Module, batch: dict[str, Tensor], generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Any]]:
        if "context" not in batch:
            raise ValueError("ContextDropout leaves contexts out, and the data have none; add a 'context'.")
        if flow.training:
            batch = batch | {"context": dropped(batch["context"], self.unconditional, self.share, generator)}
        return self.objective(flow, batch, generator)


def dropped(context: Any, unconditional: Any, share: float, generator: torch.Generator) -> Any:
    """Contexts, of which a share, drawn row by row, are the unconditional one, of one row or of as many."""
    if isinstance(context, tuple) != isinstance(unconditional, tuple):
        raise ValueError("the unconditional context must be a tensor, or a pair, as the contexts are.")
    parts, instead = (value if isinstance(value, tuple) else (value,) for value in (context, unconditional))
    is_dropped = torch.rand(len(parts[0]), generator=generator, device=parts[0].device) < share
    mixed = []
    for part, other in zip(parts, instead, strict=True):
        rows = unconditional_rows(other, part)
        # Labels without a sign hold no -1, and widen; other contexts keep their dtype.
        rows = rows if _are_labels(part) and _are_labels(rows) else rows.to(part.dtype)
        mixed.append(torch.where(per_row(is_dropped, part), rows, part))
    return tuple(mixed) if isinstance(context, tuple) else mixed[0]


def _are_labels(context: Tensor) -> bool:
    return not context.is_floating_point() and context.dtype != torch.bool
