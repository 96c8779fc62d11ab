"""AdamW with weight decay where it belongs, and clipping of the gradient."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nflib.training.config import TrainingConfig

_VECTORS = (
    "norm",
    "embedding",
    "position",
)  # parts of the class names of modules whose weights are not decayed


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Trainable parameters in two groups: matrices, decayed; biases, norms, embeddings and other vectors, not
    decayed.
    """
    undecayed: dict[int, nn.Parameter] = {}
    for child in module.modules():
        kind = type(child).__name__.lower()
        for parameter in child.parameters(recurse=False):
            if parameter.ndim < 2 or any(part in kind for part in _VECTORS):
                undecayed[id(parameter)] = parameter
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if not trainable:
        raise ValueError(f"{type(module).__name__} has no trainable parameters; there is nothing to fit.")
    return [
        {"params": [p for p in trainable if id(p) not in undecayed], "weight_decay": weight_decay},
        {"params": [p for p in trainable if id(p) in undecayed], "weight_decay": 0.0},
    ]


def make_optimizer(module: nn.Module, config: TrainingConfig, device: torch.device) -> torch.optim.AdamW:
    """AdamW over `parameter_groups`, fused on CUDA; raises ValueError without trainable parameters."""
    return torch.optim.AdamW(
        parameter_groups(module, config.weight_decay),
        lr=config.learning_rate,
        betas=config.betas,
        eps=config.epsilon,
        fused=True if device.type == "cuda" else None,
    )


def clip_gradient(module: nn.Module, largest: float | None) -> Tensor:
    """Scale the gradient down to norm `largest` where it is longer; returns its norm before, a scalar."""
    parameters = [parameter for parameter in module.parameters() if parameter.grad is not None]
    return torch.nn.utils.clip_grad_norm_(parameters, float("inf") if largest is None else largest)
