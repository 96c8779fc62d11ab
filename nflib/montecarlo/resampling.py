"""Resampling: indices drawn so that index i appears `n w_i` times on average, with as little noise as wanted.

Schemes after Douc, Cappé & Moulines (2005). All are unbiased; multinomial counts vary
most, systematic ones usually least. Indices come in ascending order.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from nflib.dtypes import as_tensor
from nflib.errors import is_whole

__all__ = ["SCHEMES", "multinomial", "resample", "residual", "stratified", "systematic"]


def resample(
    weights: Tensor, num_samples: int, generator: torch.Generator | None = None, scheme: str = "systematic"
) -> Tensor:
    """Resample by weights: indices of which i appears num_samples times the share of its weight, on average.

    Args:
        weights: `(N,)`, not negative, not necessarily normalised.
        num_samples: how many indices.
        generator: of the random numbers; None: torch's global generator.
        scheme: "multinomial" (independent draws), "stratified", "systematic" or "residual", whose numbers of copies
            vary less (Douc, Cappé & Moulines 2005).

    Returns:
        Indices `(num_samples,)` in ascending order; a sample of weight zero never appears.

    Raises:
        ValueError: an unknown scheme, num_samples below one, or weights that are negative, not finite or all zero.

    >>> import torch
    >>> resample(torch.tensor([0.5, 0.0, 0.25]), 3)
    tensor([0, 0, 2])
    """
    if scheme not in SCHEMES:
        raise ValueError(f"resample: unknown scheme {scheme!r}; choose one of {', '.join(SCHEMES)}.")
    return SCHEMES[scheme](as_tensor(weights), num_samples, generator)


def multinomial(weights: Tensor, num_samples: int, generator: torch.Generator | None = None) -> Tensor:
    """Independent draws. Sorted uniforms come from exponential spacings, so nothing is sorted."""
    cumulative = _cumulative(weights, num_samples)
    spacings = -torch.log1p(-_uniform(num_samples + 1, generator, cumulative)).cumsum(0)
    points = spacings[:-1] / spacings[-1]
    largest = torch.nextafter(points.new_ones(()), points.new_zeros(()))
    return torch.searchsorted(cumulative, torch.minimum(points, largest), right=True)


def stratified(weights: Tensor, num_samples: int, generator: torch.Generator | None = None) -> Tensor:
    """One uniform draw in each of `num_samples` equal strata. Linear in N."""
    positions = num_samples * _cumulative(weights, num_samples)
    offsets = _uniform(num_samples, generator, positions)
    stratum = positions.floor().clamp(max=num_samples - 1).long()
    return _indices(stratum + (offsets[stratum] < positions - stratum))


def systematic(weights: Tensor, num_samples: int, generator: torch.Generator | None = None) -> Tensor:
    """One random offset for `num_samples` equally spaced points: counts are `n w` rounded. Linear in N."""
    positions = num_samples * _cumulative(weights, num_samples)
    return _indices((positions - _uniform(1, generator, positions)).ceil().clamp(min=0).long())


def residual(weights: Tensor, num_samples: int, generator: torch.Generator | None = None) -> Tensor:
    """`floor(n w)` copies of each index for certain, and multinomial draws from what is left over."""
    _cumulative(weights, num_samples)
    expected, counts = expected_copies(weights, num_samples)
    left = num_samples - int(counts.sum())
    if left > 0:
        extra = multinomial((expected - counts).clamp(min=0.0), left, generator)
        counts = counts + torch.bincount(extra, minlength=len(counts))
    return _indices(counts.cumsum(0))


def expected_copies(weights: Tensor, num_samples: int) -> tuple[Tensor, Tensor]:
    """`n w` for each index, float64, and how many copies that makes for certain, int64.

    Rounded down but for what rounding took: of equal weights n 1/n may come out below one.
    """
    expected = num_samples * (weights.to(torch.float64) / weights.to(torch.float64).sum())
    return expected, (expected + 1e-9).floor().long()


SCHEMES: dict[str, Callable[[Tensor, int, torch.Generator | None], Tensor]] = {
    "multinomial": multinomial,
    "stratified": stratified,
    "systematic": systematic,
    "residual": residual,
}


def _cumulative(weights: Tensor, num_samples: int) -> Tensor:
    """Cumulative sum of the normalised weights in float64, its last entry exactly one."""
    if not is_whole(num_samples, 1):
        raise ValueError(f"resample: num_samples is {num_samples}; ask for a whole number, one or more.")
    if weights.dim() != 1 or len(weights) == 0:
        raise ValueError(f"resample: weights have shape {tuple(weights.shape)}; pass `(N,)`, N > 0.")
    cumulative = weights.to(torch.float64).cumsum(0)
    if not (weights >= 0).all() or not torch.isfinite(cumulative[-1]) or cumulative[-1] <= 0:
        raise ValueError("resample: weights must be finite, not negative, and not all zero.")
    return cumulative / cumulative[-1]


def _uniform(count: int, generator: torch.Generator | None, like: Tensor) -> Tensor:
    """Uniform numbers in [0, 1), drawn where the generator lives."""
    device = like.device if generator is None else generator.device
    return torch.rand(count, generator=generator, dtype=torch.float64, device=device).to(like.device)


def _indices(cumulative_counts: Tensor) -> Tensor:
    """Indices from the running total of their counts."""
    counts = cumulative_counts.diff(prepend=cumulative_counts.new_zeros(1))
    return torch.repeat_interleave(counts)
