"""Fixtures of the engine's tests: networks that are not at their zero start."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

Perturb = Callable[..., nn.Module]


@pytest.fixture
def perturb() -> Perturb:
    """Adds noise to all parameters in place: output layers start at zero, where every map is the identity."""

    def add_noise(module: nn.Module, scale: float = 0.1, seed: int = 1) -> nn.Module:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in module.parameters():
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
                parameter.add_(scale * noise.to(parameter.dtype))
        return module.eval()

    return add_noise
