"""Exponential moving average of weights, in float32 or better."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class ExponentialMovingAverage:
    """Exponential moving average e <- d e + (1 - d) w of a module's trainable parameters w.

    It is kept in float32 (in float64 for float64). The decay d is min(decay, (1 + n) / (10 + n)) after n updates, so
    that the random start is soon forgotten.

    Args:
        module: whose parameters are averaged; the average starts from their values.
        decay: the largest d, in [0, 1); 0 follows the weights themselves.

    Raises:
        ValueError: the decay is outside its range.

    >>> layer = nn.Linear(2, 2)
    >>> ema = ExponentialMovingAverage(layer, decay=0.999)
    >>> ema.update(layer)  # after each step of the optimiser
    >>> with ema.applied(layer) as averaged:
    ...     y = averaged(torch.zeros(1, 2))
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"the decay of an average must be in [0, 1), not {decay!r}.")
        self.decay = decay
        self.updates = 0
        self.average: dict[str, Tensor] = {
            name: parameter.detach().to(torch.promote_types(parameter.dtype, torch.float32), copy=True)
            for name, parameter in module.named_parameters()
            if parameter.requires_grad
        }

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Move the average towards the module's present weights."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates)) if self.decay else 0.0
        weights = dict(module.named_parameters())
        averages = list(self.average.values())
        present = [weights[name].detach().to(average.dtype) for name, average in self.average.items()]
        torch._foreach_lerp_(averages, present, 1 - decay)
        self.updates += 1

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> None:
        """Overwrite the module's weights by their average."""
        for name, parameter in module.named_parameters():
            if name in self.average:
                parameter.copy_(self.average[name])

    @contextmanager
    def applied(self, module: nn.Module) -> Iterator[nn.Module]:
        """Within the block the module has the averaged weights and is in evaluation mode; both are then put back."""
        weights = {name: parameter for name, parameter in module.named_parameters() if name in self.average}
        kept = {name: parameter.detach().clone() for name, parameter in weights.items()}
        modes = [(child, child.training) for child in module.modules()]
        self.copy_to(module)
        module.eval()
        try:
            yield module
        finally:
            with torch.no_grad():
                for name, parameter in weights.items():
                    parameter.copy_(kept[name])
            for child, mode in modes:
                child.training = mode
