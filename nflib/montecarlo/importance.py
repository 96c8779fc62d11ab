"""Importance sampling: draw from a proposal whose density is known, weight towards a target."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch

from nflib.errors import is_whole
from nflib.montecarlo.densities import Proposal, Target, as_proposal, as_target, draw_batches, log_prob_where
from nflib.montecarlo.weighted_samples import WeightedSamples
from nflib.random import generator_of

__all__ = ["importance_sample"]


@torch.no_grad()
def importance_sample(
    proposal: Proposal | torch.distributions.Distribution,
    target: Target | torch.distributions.Distribution,
    num_samples: int,
    *,
    batch_size: int = 1024,
    generator: torch.Generator | None = None,
    seed: int | None = None,
    allow_stochastic: bool = False,
    progress: bool = False,
) -> WeightedSamples:
    """Draw `num_samples` from the proposal and weight them by `target / proposal`.

    Samples with a non-finite position, log-density or target get weight zero and are counted; the target
    sees only finite positions. Results are collected on the CPU.

    Args:
        proposal: what `as_proposal` takes: a flow, a torch or nflows distribution, or an object with
            `sample_and_log_prob(num_samples, generator=...)`.
        target: has `log_prob(x)`; wrap an energy in kT as `BoltzmannDensity(energy)`.
        num_samples: how many to draw.
        batch_size: how many the proposal and the target see at once. It belongs to the seed: another one gives other
            draws.
        generator: of the random numbers; neither this nor a seed means a seed from torch's global generator.
        seed: of a new generator, in place of one.
        allow_stochastic: also take a proposal whose log-densities are estimates, which is wrong in expectation.
        progress: show a progress bar.

    Returns:
        The samples with their weights and both log-densities.

    Raises:
        ValueError: num_samples or batch_size no integer of one or more, generator and seed together, a proposal or
            target that `as_proposal` or `as_target` refuses, log-densities that are not one number a sample.

    >>> import torch
    >>> from nflib.montecarlo import BoltzmannDensity
    >>> normal = torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2))
    >>> target = BoltzmannDensity(lambda x: 0.5 * (x - 0.5).square().sum(dim=-1))
    >>> samples = importance_sample(normal, target, 4000, seed=0)
    >>> abs(samples.log_normalizer - 1.8379) < 3 * samples.log_normalizer_standard_error  # log(2 pi)
    True
    """
    if not (is_whole(num_samples, 1) and is_whole(batch_size, 1)):
        raise ValueError(
            f"importance_sample: num_samples is {num_samples} and batch_size {batch_size}; pass integers of 1 or more."
        )
    proposal, target = as_proposal(proposal, allow_stochastic=allow_stochastic), as_target(target)
    generator = generator_of(generator, seed)
    pieces = []
    with _bar(num_samples, progress) as bar:
        for x, log_prob, usable in draw_batches(proposal, num_samples, batch_size, generator):
            log_target = log_prob_where(target.log_prob, x, usable)
            pieces.append((x.cpu(), log_prob.cpu(), log_target.cpu()))
            if bar is not None:
                bar.update(len(x))
    x, log_prob, log_target = (torch.cat(column) for column in zip(*pieces, strict=True))
    return WeightedSamples.from_log_densities(x, log_prob, log_target)


def _bar(num_samples: int, show: bool) -> Any:
    if not show:
        return nullcontext()
    from tqdm.auto import tqdm

    return tqdm(total=num_samples, desc="importance sampling", unit="sample")
