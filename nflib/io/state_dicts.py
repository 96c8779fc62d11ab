"""State dicts in files of other programs: read without unpickling, and renamed to fit our modules."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from nflib.dtypes import dtype_name

# Under which trainers keep a model's weights.
WRAPPERS = ("model", "state_dict", "module", "model_state_dict", "ema")


def read_state_dict(checkpoint: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read a state dict from a `.safetensors` or `.pth` file, on the CPU; nothing but tensors is ever unpickled.

    The file is memory-mapped where possible: only what is used takes memory, and the file must not change meanwhile. A
    state dict under a key of a trainer's ("model", "state_dict" …) is found.

    Args:
        checkpoint: path of the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or holds something else.
    """
    path = Path(checkpoint)
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}; give the path of a .pth or .safetensors file.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = _state_in(torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)))
    except OSError:
        raise
    except Exception as error:  # of a file that is none of its own, torch.load raises errors of a dozen kinds
        raise ValueError(f"{path} is damaged or no state dict of tensors; fetch it again.") from error
    if state is None:
        raise ValueError(f"{path} holds no state dict of tensors; fetch it again.")
    return state


def _state_in(document: Any) -> dict[str, Tensor] | None:
    """The state dict that a checkpoint is, or has in it."""
    if not isinstance(document, Mapping) or not document:
        return None
    if all(isinstance(key, str) and isinstance(value, Tensor) for key, value in document.items()):
        return dict(document)
    for name in WRAPPERS:
        state = _state_in(document.get(name))
        if state is not None:
            return state
    return None


def not_finite(state: Mapping[str, Tensor], module: nn.Module) -> str | None:
    """The name of a tensor that holds NaN, or among the module's parameters infinity: no model is saved so."""
    parameters = dict(module.named_parameters())
    for name, tensor in state.items():
        if not tensor.numel() or not (tensor.is_floating_point() or tensor.is_complex()):
            continue
        values = torch.view_as_real(tensor) if tensor.is_complex() else tensor
        ends = torch.stack(values.detach().aminmax())  # which are NaN where any is, and take no memory
        # Of other tensors, such as the edges of bins, some may well be infinite.
        if bool((~ends.isfinite() if name in parameters else ends.isnan()).any()):
            return name
    return None


@torch.no_grad()
def load_renamed(module: nn.Module, state: Mapping[str, Tensor], names: Mapping[str, str]) -> None:
    """Load a state dict of another program into a module's parameters, under our names.

    Args:
        module: gets the weights, all of its parameters.
        state: their tensors, by their names.
        names: from our names of parts to theirs. A part is a parameter, or a module whose own parameters have the same
            names on both sides ("weight", "bias").

    Raises:
        ValueError: a parameter of ours is missing, a tensor of theirs has no place, or a shape differs; nothing is
            copied then.

    >>> ours, theirs = nn.Sequential(nn.Linear(2, 3)), {"head.weight": torch.ones(3, 2), "head.bias": torch.zeros(3)}
    >>> load_renamed(ours, theirs, {"0": "head"})
    >>> ours(torch.ones(1, 2)).tolist()
    [[2.0, 2.0, 2.0]]
    """
    theirs = {_their_name(name, names): parameter for name, parameter in module.named_parameters()}
    check_keys(theirs, state)
    for name, parameter in theirs.items():
        check_shape(name, state[name], state[name].shape, parameter.shape)
    for name, parameter in theirs.items():
        parameter.copy_(state[name])


def check_keys(wanted: Iterable[str], state: Mapping[str, Tensor], ignored: tuple[str, ...] = ()) -> None:
    """Raises ValueError unless `state` has the wanted keys and no others, but for those with an ignored ending."""
    wanted = set(wanted)
    missing = sorted(wanted - state.keys())
    unknown = sorted(key for key in state.keys() - wanted if not key.endswith(ignored))
    if missing or unknown:
        wrong = f"lacks {missing[0]!r}" if missing else f"should not have {unknown[0]!r}"
        raise ValueError(
            f"the state dict belongs to another configuration: it {wrong}; {len(missing)} keys are missing and "
            f"{len(unknown)} unknown."
        )


def check_shape(name: str, given: Tensor, shape: Sequence[int], wanted: Sequence[int]) -> None:
    """Raises ValueError unless `shape`, which the tensor given has or was converted to, is the wanted one.

    Integers are no weights either.
    """
    if not given.is_floating_point():
        raise ValueError(
            f"the state dict is damaged or no model's: its {name!r} holds {dtype_name(given.dtype)} numbers."
        )
    if tuple(shape) != tuple(wanted):
        raise ValueError(
            f"the state dict belongs to another configuration: its {name!r} has shape {tuple(given.shape)}, which does "
            f"not fit {tuple(wanted)}."
        )


def _their_name(name: str, names: Mapping[str, str]) -> str:
    if name in names:
        return names[name]
    part, _, kind = name.rpartition(".")
    return f"{names[part]}.{kind}"
