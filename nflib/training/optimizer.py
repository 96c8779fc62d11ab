"""AdamW, with Muon for matrices where asked for, weight decay where it belongs, and clipping of the gradient."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from nflib.training.config import TrainingConfig

MUON_MOMENTUM = 0.95
# Torch's modules whose parameters are vectors, in whatever shape they stand.
OF_VECTORS = (nn.Embedding, nn.EmbeddingBag, nn.LayerNorm, nn.RMSNorm)


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters in two groups: matrices, decayed; biases, norms, embeddings and other vectors, not
    decayed.

    A parameter of two or more dimensions is a matrix, but for embeddings and norms of torch, and modules whose class
    says ``decays = False``.
    """
    undecayed: set[int] = set()
    for child in module.modules():
        decays = getattr(child, "decays", not isinstance(child, OF_VECTORS))
        undecayed |= {id(p) for p in child.parameters(recurse=False) if p.ndim < 2 or not decays}
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if not trainable:
        raise ValueError(f"{type(module).__name__} has no trainable parameters; there is nothing to fit.")
    return [
        {"params": [p for p in trainable if id(p) not in undecayed], "weight_decay": weight_decay},
        {"params": [p for p in trainable if id(p) in undecayed], "weight_decay": 0.0},
    ]


def make_optimizers(module: nn.Module, config: TrainingConfig, device: torch.device) -> dict[str, Optimizer]:
    """The optimisers of a module's trainable parameters, by the names under which checkpoints hold their states.

    AdamW over `parameter_groups` ("optimizer"), fused on CUDA; with `config.optimizer` "muon", `torch.optim.Muon` has
    the decayed matrices ("muon"), at steps of the size of AdamW's, so that one learning rate serves both.

    Raises:
        ValueError: Without trainable parameters.
    """
    decayed, spared = parameter_groups(module, config.weight_decay)
    matrices = [p for p in decayed["params"] if p.ndim == 2] if config.optimizer == "muon" else []
    by_muon = set(map(id, matrices))
    decayed["params"] = [p for p in decayed["params"] if id(p) not in by_muon]
    optimizers: dict[str, Optimizer] = {
        "optimizer": torch.optim.AdamW(
            [decayed, spared],
            lr=config.learning_rate,
            betas=config.betas,
            eps=config.epsilon,
            fused=True if device.type == "cuda" else None,
        )
    }
    if matrices:
        optimizers["muon"] = torch.optim.Muon(
            matrices,
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            momentum=MUON_MOMENTUM,
            adjust_lr_fn="match_rms_adamw",
        )
    return optimizers


def clip_gradient(parameters: Iterable[nn.Parameter], largest: float | None) -> Tensor:
    """Scale the gradient down to norm `largest` where it is longer; returns its norm before, a scalar."""
    reached = [parameter for parameter in parameters if parameter.grad is not None]
    return torch.nn.utils.clip_grad_norm_(reached, float("inf") if largest is None else largest)
