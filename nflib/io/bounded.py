"""Building no more than a file of weights can fill, in this thread alone: what would take more memory is refused."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

# Numbers of a table that a module computes for itself, such as rotary positions, beyond what its weights hold.
TABLE = 2**26

Hook = Callable[[nn.Module, str, nn.Parameter | None], nn.Parameter | None]
_own = threading.local()


@contextmanager
def registering(hook: Hook) -> Iterator[None]:
    """Within the block, the hook gets each parameter that this thread's modules register, and may give another."""
    _listen()
    before = getattr(_own, "hooks", ())
    _own.hooks = (*before, hook)
    try:
        yield
    finally:
        _own.hooks = before


@cache
def _listen() -> None:
    # Torch's hooks are those of all threads, and must not change while any of these builds a module: one stays.
    register_module_parameter_registration_hook(_registered)  # type: ignore[arg-type]


def _registered(module: nn.Module, name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
    for hook in getattr(_own, "hooks", ()):
        changed = hook(module, name, parameter)
        parameter = parameter if changed is None else changed
    return parameter


@contextmanager
def at_most(num_tensors: int, num_numbers: int) -> Iterator[None]:
    """Within the block, a model of many more parameters, or a tensor of many more numbers, is a ValueError."""
    seen = {"tensors": 0, "numbers": 0}

    def count(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None:
            seen["tensors"] += 1
            seen["numbers"] += parameter.numel()
        # Some are made only to be replaced by others.
        if seen["tensors"] > 4 * num_tensors + 1000 or seen["numbers"] > 4 * num_numbers + TABLE:
            raise ValueError(f"its sizes give far more parameters than the {num_numbers} numbers of its weights")

    with registering(count), _NoLargeTensor(max(num_numbers, TABLE)):
        yield


class _NoLargeTensor(TorchDispatchMode):
    """Asks the meta device for the size of each result before it is computed."""

    def __init__(self, largest: int):
        super().__init__()
        self.largest = largest

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        # Views and what is written in place take no memory.
        if not func._schema.is_mutable and not any(result.alias_info for result in func._schema.returns):
            meta_args, meta_kwargs = tree_map_only(Tensor, lambda tensor: tensor.to("meta"), (args, dict(kwargs)))
            if any(argument.name == "device" for argument in func._schema.arguments):
                meta_kwargs["device"] = torch.device("meta")
            try:
                result = func(*meta_args, **meta_kwargs)
            except (NotImplementedError, RuntimeError):
                result = None  # its size depends on numbers, or the call itself is wrong, which the next line tells
            for tensor in tree_leaves(result):
                if isinstance(tensor, Tensor) and tensor.numel() > self.largest:
                    raise ValueError(f"its sizes give a tensor {tuple(tensor.shape)}, larger than all of its weights")
        return func(*args, **kwargs)
