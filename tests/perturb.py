"""Networks that are not at their zero start, and the gradients that reach them."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

Network = TypeVar("Network", bound=nn.Module)


@torch.no_grad()
def perturb(module: Network, scale: float = 0.1, seed: int = 1) -> Network:
    """Adds noise to all parameters in place: output layers start at zero, where every map is the identity."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.add_(scale * torch.randn(parameter.shape, generator=generator).to(parameter))
    return module.eval()


def check_gradients(module: nn.Module) -> None:
    """Assert that every parameter has a gradient, finite and not all zero."""
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all() and parameter.grad.any(), name
