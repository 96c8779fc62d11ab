"""What Monte Carlo needs of its two densities: a proposal to draw from, a target that need not be normalised."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

__all__ = ["BoltzmannDensity", "DifferentiableProposal", "Proposal", "Target"]


class Proposal(Protocol):
    """What is sampled from: a `Flow`, or any nflows flow or distribution."""

    def sample_and_log_prob(self, num_samples: int, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Samples `(num_samples, *event_shape)` and the log-density of each, `(num_samples,)`."""
        ...


class DifferentiableProposal(Proposal, Protocol):
    """A proposal that also tells the log-density of points that it did not draw."""

    def log_prob(self, inputs: Tensor, context: Tensor | None = None) -> Tensor:
        """Log-densities `(n,)`, in nats, of `(n, *event_shape)`; `context`, if any, has n rows."""
        ...


@runtime_checkable
class Target(Protocol):
    """What is wanted: a log-density that need not be normalised."""

    def log_prob(self, inputs: Tensor, /) -> Tensor:
        """Log-densities `(n,)`, in nats, of `(n, *event_shape)`."""
        ...


class BoltzmannDensity:
    """The target `exp(-u(x))` of a reduced energy `u`: a function from `(n, *event_shape)` to `(n,)`, in kT.

    >>> import torch
    >>> harmonic = BoltzmannDensity(lambda x: 0.5 * x.square().sum(dim=-1))
    >>> harmonic.log_prob(torch.ones(1, 2))
    tensor([-1.])
    """

    def __init__(self, reduced_energy: Callable[[Tensor], Tensor]) -> None:
        self.reduced_energy = reduced_energy

    def log_prob(self, inputs: Tensor, /) -> Tensor:
        return -self.reduced_energy(inputs)


def check_arguments(
    caller: str, target: object, context: Tensor | None, generator: torch.Generator | None, seed: int | None
) -> None:
    """Raises ValueError, in the name of `caller`, for a target without log_prob, a context of several rows, or a
    generator and a seed at once."""
    if not isinstance(target, Target):
        raise ValueError(
            f"{caller}: the target ({type(target).__name__}) has no log_prob; wrap a reduced energy in kT as "
            "BoltzmannDensity(energy)."
        )
    if context is not None and len(context) != 1:
        raise ValueError(
            f"{caller}: context has {len(context)} rows; weights belong to one condition, call it once per row."
        )
    if generator is not None and seed is not None:
        raise ValueError(f"{caller}: pass either a generator or a seed, not both.")


def check_log_density(caller: str, name: str, values: Tensor, count: int) -> None:
    """Raises ValueError unless `values` holds one number a sample."""
    if values.shape != (count,):
        raise ValueError(
            f"{caller}: {name} returned log-densities of shape {tuple(values.shape)} for {count} samples; return "
            "one number a sample, summed over event dimensions."
        )


def batch_sizes(num_samples: int, batch_size: int) -> list[int]:
    """Sizes of the batches that make up `num_samples`, each at most `batch_size`."""
    full, rest = divmod(num_samples, batch_size)
    return [batch_size] * full + ([rest] if rest else [])


def draw(
    proposal: Proposal, size: int, context: Tensor | None, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """One batch, reproducible from the generator whether or not the proposal knows about generators."""
    keywords: dict[str, Any] = {} if context is None else {"context": context}
    scope: Any = nullcontext()
    if generator is not None:
        if "generator" in inspect.signature(proposal.sample_and_log_prob).parameters:
            keywords["generator"] = generator
        else:
            scope = torch.random.fork_rng()
    with scope:
        if generator is not None and "generator" not in keywords:
            torch.manual_seed(int(torch.randint(2**62, (), generator=generator, device=generator.device)))
        x, log_prob = proposal.sample_and_log_prob(size, **keywords)
    return (x, log_prob) if context is None else (x[0], log_prob[0])
