"""Early sweeps in a lower precision: a better guess for less; what is committed is computed in full precision."""

from __future__ import annotations

import copy
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from nflib.dtypes import FullPrecisionBuffers
from nflib.interfaces import CausalMap

# Rounding to bfloat16 leaves errors of about this size in tokens of unit variance; sweeps below it would not help.
WARMUP_TOLERANCE = 2e-2
SLOWEST_GAIN = 0.7

Map = TypeVar("Map", bound=CausalMap)


def warmed_up(
    map: CausalMap, noise: Tensor, guess: Tensor, encoded_context: Any, dtype: torch.dtype
) -> tuple[Tensor, int]:
    """Sweeps over all tokens with the weights rounded to `dtype`, as long as they bring the guess closer.

    encoded_context: in full precision. Returns the guess and the number of sweeps.
    """
    rounded = in_precision(map, dtype)
    encoded_context = _in_dtype(encoded_context, dtype)
    sweeps, change = 0, float("inf")
    while change > WARMUP_TOLERANCE and sweeps < noise.shape[1] - 1:
        solved, _ = rounded.from_noise(noise, rounded.conditionals(guess.to(dtype), encoded_context))
        new = contained(solved, noise, dtype, [float("inf")])
        last_change, change = change, float((new - guess).abs().nan_to_num(0.0, 0.0).amax())
        guess, sweeps = new, sweeps + 1
        if change > SLOWEST_GAIN * last_change:
            break
    return guess, sweeps


def _in_dtype(encoded_context: Any, dtype: torch.dtype) -> Any:
    """What a map made of its context, tensors in containers of containers, with floating-point numbers in `dtype`."""
    if isinstance(encoded_context, Tensor):
        return encoded_context.to(dtype) if encoded_context.is_floating_point() else encoded_context
    if isinstance(encoded_context, dict):
        return {name: _in_dtype(part, dtype) for name, part in encoded_context.items()}
    if not isinstance(encoded_context, (tuple, list)):
        return encoded_context
    parts = [_in_dtype(part, dtype) for part in encoded_context]
    return type(encoded_context)(*parts) if hasattr(encoded_context, "_fields") else type(encoded_context)(parts)


def in_precision(map: Map, dtype: torch.dtype) -> Map:
    """A copy of the map whose floating-point weights are rounded to `dtype`, but for tables that keep their own."""
    module = cast(nn.Module, map)
    rounded: dict[int, Any] = {}
    for parameter in module.parameters():
        rounded[id(parameter)] = nn.Parameter(parameter.detach().to(dtype), requires_grad=False)
    for part in module.modules():
        keeps = isinstance(part, FullPrecisionBuffers)
        for buffer in part.buffers(recurse=False):
            rounded[id(buffer)] = buffer.to(dtype) if buffer.is_floating_point() and not keeps else buffer
    return copy.deepcopy(map, rounded)


def contained(new: Tensor, latent: Tensor, dtype: torch.dtype, changes: list[float]) -> Tensor:
    """The new guess, and the latent where it nears overflow: masked attention would hand that to all other tokens.

    changes: by how much each token differs from the last guess, itself contained; where all are small, new is returned.
    """
    limit = torch.finfo(dtype).max ** 0.25
    if all(change <= limit for change in changes):
        return new
    return torch.where(new.abs() <= limit, new, latent)
