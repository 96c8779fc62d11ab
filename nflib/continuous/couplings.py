"""Couplings: which noise is paired with which data while a velocity is fitted."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

import torch
from nflows.transforms import CompositeTransform, Transform
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from nflib.contexts import Context, as_context, map_context
from nflib.continuous.noise import said_shape
from nflib.distributions import draw
from nflib.errors import check_object
from nflib.events import check_event_shape, flattened
from nflib.flows.flow import Flow
from nflib.random import given_generator, normal_like

__all__ = ["Coupling", "FlowCoupling", "IndependentCoupling", "OptimalTransportCoupling", "Pairs", "pairs_of"]


class Coupling(Protocol):
    """A rule that pairs noise with data while a velocity or flow map is fitted.

    One that reads more of a batch than "inputs" and "context" lists that in an attribute `keys`.
    """

    def __call__(self, flow: Flow, batch: dict[str, Tensor], generator: torch.Generator) -> tuple[Tensor, Tensor, Any]:
        """Pair the data of a batch with noise.

        Args:
            flow: that is trained.
            batch: as `fit` gives it: "inputs" ``(B, *event_shape)``, maybe "context" and others.
            generator: of the noise.

        Returns:
            Noise x0 and data x1, ``(B, *event_shape)``, in the batch's order, and the contexts of the pairs, or None.
        """
        ...


class IndependentCoupling:
    """The independent coupling: a new draw of the flow's noise for every sample."""

    def __call__(self, flow: Flow, batch: dict[str, Tensor], generator: torch.Generator) -> tuple[Tensor, Tensor, Any]:
        x1 = batch["inputs"]
        context = batch.get("context")
        return noise_like(x1, flow, context, generator), x1, context


class OptimalTransportCoupling:
    """Optimal transport within a batch: new noise, paired so that the squared distances have the smallest sum.

    (Tong et al. 2024, arXiv:2302.00482; Pooladian et al. 2023, arXiv:2304.14772.) Exact, at a cost that grows with the
    third power of the batch. Noise is exchanged only among data of the same context: else it would depend on the
    context, and the flow be wrong for noise that does not. Where all contexts differ nothing is left to choose.

    Raises:
        ValueError: on training, data with "weights": noise that always goes to a heavier row would be weighted with it.
    """

    def __call__(self, flow: Flow, batch: dict[str, Tensor], generator: torch.Generator) -> tuple[Tensor, Tensor, Any]:
        if "weights" in batch:
            raise ValueError(
                "OptimalTransportCoupling pairs rows of equal weight, and the data have 'weights'; resample the rows "
                "by their weights, or take IndependentCoupling()."
            )
        x0, x1, context = IndependentCoupling()(flow, batch, generator)
        order = torch.empty(len(x1), dtype=torch.long, device=x1.device)
        for rows in _alike(context, torch.arange(len(x1), device=x1.device)):
            cost = torch.cdist(flattened(x1[rows]).double(), flattened(x0[rows]).double()).square()
            order[rows] = rows[torch.as_tensor(linear_sum_assignment(cost.cpu().numpy())[1], device=rows.device)]
        return x0[order], x1, context


class Pairs:
    """The coupling that the data bring along: "noise" beside "inputs", such as `pairs_of` a teacher.

    With flow matching on pairs of a flow's own noise and samples, paths get straighter: reflow (Liu et al. 2023,
    arXiv:2209.03003).

    Raises:
        ValueError: on training, a batch without "noise", or with noise of another shape than "inputs".
    """

    keys: ClassVar[tuple[str, ...]] = ("noise",)

    def __call__(self, flow: Flow, batch: dict[str, Tensor], generator: torch.Generator) -> tuple[Tensor, Tensor, Any]:
        x1 = batch["inputs"]
        if "noise" not in batch or batch["noise"].shape != x1.shape:
            raise ValueError("Pairs needs 'noise' of the shape of 'inputs' in every batch; see pairs_of().")
        return batch["noise"].to(x1), x1, batch.get("context")


@torch.no_grad()
def pairs_of(
    flow: Flow,
    num_pairs: int,
    context: Any = None,
    *,
    generator: torch.Generator | None = None,
    seed: int | None = None,
    batch_size: int = 1024,
) -> dict[str, Tensor | Context]:
    """Noise and what a flow makes of it, as data for `fit` with the coupling `Pairs`.

    Args:
        flow: the teacher.
        num_pairs: how many, for each row of the context.
        context: rows of contexts, where the flow takes one.
        generator: of the noise (default: torch's global one).
        seed: of the noise, in place of a generator.
        batch_size: at most so many are decoded at once.

    Returns:
        "noise" and "inputs", ``(num_pairs, *event_shape)``, num_pairs for each context in turn, and "context", where
        there is one. Noise of tokens lies where the data of the same tokens do; that of a flow along a path is over
        the width that the path gives it, as every coupling has it.

    >>> import torch
    >>> from nflib.flows import TARFlow
    >>> teacher = TARFlow((6,), patch_size=2, channels=16, num_blocks=1, head_dim=8)
    >>> pairs = pairs_of(teacher, 5, seed=0)
    >>> torch.allclose(teacher.encode(pairs["inputs"]).flatten(1), pairs["noise"], atol=1e-4)
    True
    """
    context = as_context(context)
    noise, _ = flow.noise_and_log_prob(num_pairs, context, generator=given_generator(generator, seed))
    if context is not None:
        noise = noise.flatten(0, 1)
        context = map_context(lambda part: part.repeat_interleave(num_pairs, 0), context)
    x = flow.decode(noise, context, batch_size)
    x0 = _over_width(placed(flow._transform, noise), flow)
    return {"inputs": x, "noise": x0} | ({} if context is None else {"context": context})


class FlowCoupling:
    """The coupling by a trained flow: data x1 are paired with its encoding of ``x1 + noise * normal``, over `width`.

    Normalized flow matching (Berthelot et al. 2026, arXiv:2603.09014): a flow knows which noise belongs to which data,
    and what is left to learn are nearly straight paths. What it was trained on should have had the same noise added.

    Args:
        flow: the teacher; taken to the data's device and to evaluation mode. Noise of tokens goes where the data of the
            same tokens are.
        noise: standard deviation of what is added to the data before they are encoded.
        width: standard deviation of the encodings, if it is not 1.

    Raises:
        ValueError: no flow, a negative noise, a width that is not positive; on training, a teacher whose transform
            begins with more than a rearrangement of events, such as other coordinates.
    """

    def __init__(self, flow: Flow, noise: float = 0.0, width: float = 1.0):
        check_object("flow", flow, "TARFlow((2,))", "encode")
        if not (noise >= 0 and width > 0):
            raise ValueError(f"FlowCoupling: noise ({noise!r}) must be 0 or more, width ({width!r}) positive.")
        self.flow, self.noise, self.width = flow.eval(), noise, width

    def __call__(self, flow: Flow, batch: dict[str, Tensor], generator: torch.Generator) -> tuple[Tensor, Tensor, Any]:
        x1, context = batch["inputs"], batch.get("context")
        added = normal_like(x1, generator)
        encoded = self.flow.to(x1.device).encode(x1 + self.noise * added, context)
        return placed(self.flow._transform, encoded).to(x1) / self.width, x1, context


def check_data(flow: Flow, x1: Tensor) -> None:
    """Raise ValueError for data of another shape than the flow's events, which noise would be broadcast with."""
    shape = said_shape(flow)
    if shape is not None:
        check_event_shape(x1, shape)


def noise_like(x1: Tensor, flow: Flow, context: Any, generator: torch.Generator) -> Tensor:
    """One x0 for each sample, in its dtype: a draw of the flow's base, over the width that the path gives it there."""
    return _over_width(base_noise(x1, flow, context, generator), flow)


def base_noise(x1: Tensor, flow: Flow, context: Any, generator: torch.Generator) -> Tensor:
    """A draw of the flow's base for each sample, in its dtype."""
    if context is None or not getattr(flow._distribution, "uses_context", True):
        return draw(flow._distribution, len(x1), None, generator).to(x1)
    return flow.noise_and_log_prob(1, context, generator=generator)[0].squeeze(1).to(x1)


def _over_width(noise: Tensor, flow: Flow) -> Tensor:
    """The x0 of noise of the flow's base, which a path multiplies by its width there."""
    return noise / getattr(flow, "noise_width", 1.0)


def placed(transform: Transform, noise: Tensor) -> Tensor:
    """Noise in the shape of an event, where a transform begins by rearranging events: in tokens, such as patches.

    Raises ValueError for one that changes their shape in another way.
    """
    if isinstance(transform, CompositeTransform):
        for part in reversed(list(transform._transforms)):  # type: ignore[arg-type]
            noise = placed(part, noise)  # type: ignore[arg-type]
    elif hasattr(transform, "input_shape"):
        noise, logabsdet = transform.inverse(noise)
        if bool(logabsdet.any()):
            raise ValueError(
                f"{type(transform).__name__} does more than rearrange events, so the flow's noise cannot stand beside "
                "its data; use the flow of what comes after it."
            )
    return noise


def _alike(context: Any, rows: Tensor) -> list[Tensor]:
    """The rows of a batch in groups of the same context."""
    context = as_context(context)
    if context is None:
        return [rows]
    parts = [context] if isinstance(context, Tensor) else list(context)
    flat = torch.cat([flattened(part).double() for part in parts], dim=1)
    group = torch.unique(flat, dim=0, return_inverse=True)[1]
    return [rows[group == number] for number in range(int(group.max()) + 1)]
