"""Importance sampling: draw from a proposal whose density is known, weight towards a target."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from nflib.montecarlo.weighted_samples import WeightedSamples

__all__ = ["BoltzmannDensity", "Proposal", "Target", "importance_sample"]


class Proposal(Protocol):
    """What is sampled from: a `Flow`, or any nflows flow or distribution."""

    def sample_and_log_prob(self, num_samples: int, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Samples `(num_samples, *event_shape)` and the log-density of each, `(num_samples,)`."""
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


@torch.no_grad()
def importance_sample(
    proposal: Proposal,
    target: Target,
    num_samples: int,
    *,
    context: Tensor | None = None,
    batch_size: int = 1024,
    generator: torch.Generator | None = None,
    seed: int | None = None,
    progress: bool = False,
) -> WeightedSamples:
    """Draw `num_samples` from the proposal and weight them by `target / proposal`.

    Samples with a non-finite position, log-density or target get weight zero and are counted; the target
    sees only finite positions. The proposal and the target are each called on at most `batch_size` samples
    at once; results are collected on the CPU.

    Args:
        proposal: has `sample_and_log_prob`. One that takes `generator=` is given it; another one draws from
            torch's global generator, which is seeded for the purpose and restored afterwards.
        target: has `log_prob(x)`; wrap an energy in kT as `BoltzmannDensity(energy)`.
        context: one row `(1, ...)`, passed to the proposal.
        generator, seed: at most one; neither means torch's global generator.
        progress: show a progress bar.

    Raises:
        ValueError: num_samples or batch_size below one, generator and seed together, a target without
            `log_prob`, more than one context row, or a log-density that is not one number a sample.

    >>> import torch
    >>> from nflows.distributions import StandardNormal
    >>> target = BoltzmannDensity(lambda x: 0.5 * (x - 0.5).square().sum(dim=-1))
    >>> samples = importance_sample(StandardNormal([2]), target, 4000, seed=0)
    >>> abs(samples.log_normalizer - 1.8379) < 5 * samples.log_normalizer_standard_error  # log(2 pi)
    True
    """
    if num_samples < 1 or batch_size < 1:
        raise ValueError(
            f"importance_sample: num_samples is {num_samples} and batch_size {batch_size}; both must be 1 or more."
        )
    if not isinstance(target, Target):
        raise ValueError(
            f"importance_sample: the target ({type(target).__name__}) has no log_prob; wrap a reduced energy "
            "in kT as BoltzmannDensity(energy)."
        )
    if context is not None and len(context) != 1:
        raise ValueError(
            f"importance_sample: context has {len(context)} rows; weights belong to one condition, call it "
            "once per row."
        )
    if generator is not None and seed is not None:
        raise ValueError("importance_sample: pass either a generator or a seed, not both.")
    if seed is not None:
        generator = torch.Generator().manual_seed(seed)

    pieces = []
    for size in _progress(_batch_sizes(num_samples, batch_size), progress):
        x, log_prob = _draw(proposal, size, context, generator)
        _check_log_density("the proposal", log_prob, size)
        pieces.append((x.cpu(), log_prob.cpu(), _log_target(target, x, log_prob).cpu()))
    x, log_prob, log_target = (torch.cat(column) for column in zip(*pieces, strict=True))
    return WeightedSamples.from_log_densities(x, log_prob, log_target)


def _batch_sizes(num_samples: int, batch_size: int) -> list[int]:
    full, rest = divmod(num_samples, batch_size)
    return [batch_size] * full + ([rest] if rest else [])


def _progress(sizes: list[int], show: bool) -> Any:
    if not show:
        return sizes
    from tqdm.auto import tqdm

    return tqdm(sizes, desc="importance sampling", unit="batch")


def _draw(
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


def _log_target(target: Target, x: Tensor, log_prob: Tensor) -> Tensor:
    """log p~(x), with NaN for samples that are rejected before they reach the target."""
    usable = torch.isfinite(x).flatten(1).all(dim=1) & torch.isfinite(log_prob)
    if usable.all():
        values = target.log_prob(x)
        _check_log_density("the target", values, len(x))
        return values
    if not usable.any():
        return torch.full_like(log_prob, torch.nan)
    values = target.log_prob(x[usable])
    _check_log_density("the target", values, int(usable.sum()))
    result = values.new_full((len(x),), torch.nan)
    result[usable.to(values.device)] = values
    return result


def _check_log_density(name: str, values: Tensor, count: int) -> None:
    if values.shape != (count,):
        raise ValueError(
            f"importance_sample: {name} returned log-densities of shape {tuple(values.shape)} for {count} "
            "samples; return one number a sample, summed over event dimensions."
        )
