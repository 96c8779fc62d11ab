"""Building no more than a file of weights can fill: what would take more memory is refused before it is taken."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

# Numbers of a table that a module computes for itself, such as rotary positions, beyond what its weights hold.
TABLE = 2**26


@contextmanager
def at_most(num_tensors: int, num_numbers: int) -> Iterator[None]:
    """Within the block, a model of many more parameters, or a tensor of many more numbers, is a ValueError."""
    seen = {"tensors": 0, "numbers": 0}

    def count(module: nn.Module, name: str, parameter: Tensor | None) -> None:
        if parameter is not None:
            seen["tensors"] += 1
            seen["numbers"] += parameter.numel()
        # Some are made only to be replaced by others.
        if seen["tensors"] > 4 * num_tensors + 1000 or seen["numbers"] > 4 * num_numbers + TABLE:
            raise ValueError(f"its sizes give far more parameters than the {num_numbers} numbers of its weights")

    handle = register_module_parameter_registration_hook(count)
    try:
        with _NoLargeTensor(max(num_numbers, TABLE)):
            yield
    finally:
        handle.remove()


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
