"""Foreign state dicts, put into modules of ours key for key."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from torch import Tensor, nn

from nflib.dtypes import widened
from nflib.io.state_dicts import check_keys, check_shape
from nflib.networks import GatedMLP
from video.conversion.layouts import BLOCK, BUFFERS, GATED_MLP, GELU_MLP, LAYER

Conversion = Callable[[str, Tensor], Tensor]


class Part(NamedTuple):
    """A module of ours that a part of a foreign state dict goes into.

    Args:
        prefix: of its keys in the state dict.
        module: ours.
        convert: makes our tensor, given our name of it and theirs.
    """

    prefix: str
    module: nn.Module
    convert: Conversion


def fill(parts: Iterable[Part], state: Mapping[str, Tensor], keep_dtype: bool = False) -> None:
    """Put the tensors of a state dict into the parts, in float32 or better; what is so already is not copied.

    Args:
        parts: that together take all of the state dict.
        state: the foreign state dict.
        keep_dtype: leave half precision as it is.

    Raises:
        ValueError: a key that is missing, unknown (but for buffers), or of another shape; then nothing is changed.
    """
    parts = list(parts)
    names = [{key: part.prefix + _their_name(key, part.module) for key in part.module.state_dict()} for part in parts]
    check_keys((name for theirs in names for name in theirs.values()), state, ignored=BUFFERS)
    filled = []
    for part, theirs in zip(parts, names, strict=True):
        own = part.module.state_dict()
        values = {key: _converted(part, key, state[name]) for key, name in theirs.items()}
        for key, value in values.items():
            check_shape(theirs[key], state[theirs[key]], value.shape, own[key].shape)
        filled.append((part.module, values))
    for module, values in filled:
        if not keep_dtype:
            values = {k: widened(value) for k, value in values.items()}
        module.load_state_dict(values, assign=True)


def _converted(part: Part, key: str, value: Tensor) -> Tensor:
    try:
        return part.convert(key, value).contiguous()
    except RuntimeError:  # it has not the shape for it, which `fill` then says
        return value


def _their_name(key: str, module: nn.Module) -> str:
    """Their name, below the part's prefix, of the tensor that a module of ours has as `key`."""
    if key in BLOCK:
        return BLOCK[key]
    if not key.startswith("layers."):
        stem, kind = key.rsplit(".", 1)
        return f"{BLOCK[stem]}.{kind}"
    _, index, rest = key.split(".", 2)
    stem, kind = rest.rsplit(".", 1)
    is_gated = isinstance(module.get_submodule(f"layers.{index}.mlp"), GatedMLP)
    return f"attn_blocks.{index}.{(LAYER | (GATED_MLP if is_gated else GELU_MLP))[stem]}.{kind}"
