"""What tells one autoencoder or text encoder from another: a hash of its weights, settings and tokenizer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

# Attributes that change nothing in what comes out.
IRRELEVANT = ("training", "batch_size", "transformers_version")
# What a tokenizer remembers of the call before.
REMEMBERED = ("truncation", "padding")


def fingerprint(part: Any) -> str:
    """A hash of the class, the plain attributes, the configurations, all weights and the tokenizer of an encoder.

    Where it lies on the disk, on which device it is and in what mode does not count; the dtype does.
    """
    digest = hashlib.sha256(type(part).__qualname__.encode())
    digest.update(json.dumps(_plain(vars(part))).encode())
    weights = {name: value for name, value in vars(part).items() if isinstance(value, Tensor)}
    for value in part.children() if isinstance(part, nn.Module) else vars(part).values():
        if isinstance(value, nn.Module):
            config = getattr(value, "config", {})
            config = config.to_dict() if hasattr(config, "to_dict") else dict(config)
            digest.update(json.dumps([type(value).__qualname__, _plain(config)]).encode())
            _add(digest, value.state_dict())
        elif hasattr(value, "get_vocab"):
            digest.update(json.dumps(_rules(value), sort_keys=True).encode())
    _add(digest, weights)
    return digest.hexdigest()


def _add(digest: Any, tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())


def _rules(tokenizer: Any) -> list[Any]:
    """How a tokenizer of transformers makes numbers of words, and fills or cuts them."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = tokenizer.get_vocab() if backend is None else json.loads(backend.to_str())
    kept = {name: value for name, value in rules.items() if backend is None or name not in REMEMBERED}
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    return [kept, special, tokenizer.padding_side, tokenizer.truncation_side]


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
