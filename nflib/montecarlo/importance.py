"""Importance sampling: draw from a proposal whose density is known, weight towards a target."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nflib.montecarlo.densities import (
    BoltzmannDensity,
    Proposal,
    Target,
    batch_sizes,
    check_arguments,
    check_log_density,
    draw,
)
from nflib.montecarlo.weighted_samples import WeightedSamples

__all__ = ["BoltzmannDensity", "Proposal", "Target", "importance_sample"]


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
    check_arguments("importance_sample", target, context, generator, seed)
    if seed is not None:
        generator = torch.Generator().manual_seed(seed)

    pieces = []
    for size in _progress(batch_sizes(num_samples, batch_size), progress):
        x, log_prob = draw(proposal, size, context, generator)
        check_log_density("importance_sample", "the proposal", log_prob, size)
        pieces.append((x.cpu(), log_prob.cpu(), _log_target(target, x, log_prob).cpu()))
    x, log_prob, log_target = (torch.cat(column) for column in zip(*pieces, strict=True))
    return WeightedSamples.from_log_densities(x, log_prob, log_target)


def _progress(sizes: list[int], show: bool) -> Any:
    if not show:
        return sizes
    from tqdm.auto import tqdm

    return tqdm(sizes, desc="importance sampling", unit="batch")


def _log_target(target: Target, x: Tensor, log_prob: Tensor) -> Tensor:
    """log p~(x), with NaN for samples that are rejected before they reach the target."""
    usable = torch.isfinite(x).flatten(1).all(dim=1) & torch.isfinite(log_prob)
    if usable.all():
        values = target.log_prob(x)
        check_log_density("importance_sample", "the target", values, len(x))
        return values
    if not usable.any():
        return torch.full_like(log_prob, torch.nan)
    values = target.log_prob(x[usable])
    check_log_density("importance_sample", "the target", values, int(usable.sum()))
    result = values.new_full((len(x),), torch.nan)
    result[usable.to(values.device)] = values
    return result
