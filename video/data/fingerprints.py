"""What tells one autoencoder or text encoder from another: a hash of its weights and settings."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from torch import nn

# Attributes that change nothing in what comes out.
IRRELEVANT = ("training", "batch_size", "transformers_version")


def fingerprint(part: Any) -> str:
    """A hash of the class, the plain attributes, the configurations and all weights of an encoder.

    Where it lies on the disk, on which device it is and in what mode does not count; the dtype does.
    """
    digest = hashlib.sha256(type(part).__qualname__.encode())
    digest.update(json.dumps(_plain(vars(part))).encode())
    modules = [value for value in vars(part).values() if isinstance(value, nn.Module)]
    if isinstance(part, nn.Module):
        modules = list(part.children())
    for module in modules:
        config = getattr(module, "config", {})
        config = config.to_dict() if hasattr(config, "to_dict") else dict(config)
        digest.update(json.dumps([type(module).__qualname__, _plain(config)]).encode())
        for name, tensor in module.state_dict().items():
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _plain(values: dict[str, Any]) -> list[list[Any]]:
    """Names and values of what JSON can tell."""
    kept = []
    for name, value in sorted(values.items(), key=lambda item: str(item[0])):
        if str(name).startswith("_") or name in IRRELEVANT or isinstance(value, torch.dtype):
            continue
        try:
            json.dumps(value)
        except TypeError:
            continue
        kept.append([name, value])
    return kept
