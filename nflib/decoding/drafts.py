"""Early sweeps in a lower precision: a better first guess for less; what is committed is computed in full precision."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from nflib.networks import Embedded
    from nflib.transforms.autoregressive import Autoregressive

# Rounding to bfloat16 leaves errors of about this size in tokens of unit variance; sweeps below it would not help.
DRAFT_TOLERANCE = 2e-2
SLOWEST_GAIN = 0.7


def draft_guess(
    transform: Autoregressive, noise: Tensor, guess: Tensor, embedded: Embedded, dtype: torch.dtype
) -> tuple[Tensor, int]:
    """Sweeps over all tokens with the weights rounded to `dtype`, as long as they bring the guess closer.

    embedded: the context, embedded in full precision. Returns the guess and the number of sweeps.
    """
    draft = in_precision(transform, dtype)
    parts = (part.to(dtype) if isinstance(part, Tensor) and part.is_floating_point() else part for part in embedded)
    embedded = type(embedded)._make(parts)
    sweeps, change = 0, float("inf")
    while change > DRAFT_TOLERANCE and sweeps < noise.shape[1] - 1:
        solved, _ = draft.from_noise(noise, draft.extend(guess[:, :-1].to(dtype), 0, None, embedded))
        new = contained(solved, noise, dtype, [float("inf")])
        last_change, change = change, float((new - guess).abs().nan_to_num(0.0, 0.0).amax())
        guess, sweeps = new, sweeps + 1
        if change > SLOWEST_GAIN * last_change:
            break
    return guess, sweeps


def in_precision(transform: Autoregressive, dtype: torch.dtype) -> Autoregressive:
    """A copy of the transform whose floating-point weights are rounded to `dtype`."""
    rounded: dict[int, Any] = {}
    for parameter in transform.parameters():
        rounded[id(parameter)] = nn.Parameter(parameter.detach().to(dtype), requires_grad=False)
    for buffer in transform.buffers():
        rounded[id(buffer)] = buffer.to(dtype) if buffer.is_floating_point() else buffer
    return copy.deepcopy(transform, rounded)


def contained(new: Tensor, latent: Tensor, dtype: torch.dtype, changes: list[float]) -> Tensor:
    """The new guess, and the latent where it nears overflow: masked attention would hand that to all other tokens.

    changes: by how much each token differs from the last guess, itself contained; where all are small, new is returned.
    """
    limit = torch.finfo(dtype).max ** 0.25
    if all(change <= limit for change in changes):
        return new
    return torch.where(new.abs() <= limit, new, latent)
