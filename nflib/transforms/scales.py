"""From a network's raw output to the logarithm of a positive scale."""

import math

import torch
from torch import Tensor, nn

# softplus(x + INVERSE_SOFTPLUS_OF_ONE) is 1 at x = 0.
INVERSE_SOFTPLUS_OF_ONE = math.log(math.e - 1)


class ExponentialScale(nn.Module):
    """Scale of an affine map as ``exp(raw)``; `forward` returns its logarithm, the raw output of the network itself."""

    def forward(self, raw: Tensor) -> Tensor:
        return raw


class SoftplusScale(nn.Module):
    """Scale of an affine map as ``softplus(raw + softplus^{-1}(1))``: 1 at raw = 0, linear above (STARFlow).

    `forward` returns its logarithm.
    """

    def forward(self, raw: Tensor) -> Tensor:
        shifted = raw + INVERSE_SOFTPLUS_OF_ONE
        # For very negative x, softplus(x) = exp(x) underflows before its logarithm, x, does.
        log_small = torch.where(shifted < -15, shifted, 0.0)
        log_large = nn.functional.softplus(shifted.clamp_min(-15)).log()
        return torch.where(shifted < -15, log_small, log_large)
