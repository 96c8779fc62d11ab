"""Objects that keep the arguments of their constructor, so that classes need not write their own configuration."""

from __future__ import annotations

import copy
import functools
import inspect
import sys
from collections import OrderedDict
from collections.abc import Mapping
from types import FunctionType
from typing import Any, TypeVar

import numpy as np
from torch import Tensor, nn

Class = TypeVar("Class", bound=type)
Module = TypeVar("Module", bound=nn.Module)


def keep_arguments(cls: Class) -> Class:
    """Class decorator: objects keep their constructor's arguments, defaults included, so that they can be saved.

    A transform or network of your own with it is saved and loaded with the flow that it is part of (`Pretrained`). In a
    line of inheritance, the arguments are those of the class that was called.

    >>> import torch
    >>> @keep_arguments
    ... class Scale(torch.nn.Module):
    ...     def __init__(self, factor, shape=(1, 2)):
    ...         super().__init__()
    >>> kept_arguments(Scale(3.0))
    {'factor': 3.0, 'shape': [1, 2]}
    """
    init = cls.__init__  # type: ignore[misc]
    if keeps_arguments(cls):
        return cls
    signature = inspect.signature(init)

    @functools.wraps(init)
    def keeping(self: Any, *args: Any, **kwargs: Any) -> None:
        if type(self).__init__ is keeping:
            try:
                bound = signature.bind(self, *args, **kwargs)
            except TypeError:
                pass  # init itself says what is wrong, in the usual words
            else:
                bound.apply_defaults()
                self.__dict__["_arguments"] = _by_name(bound)
        init(self, *args, **kwargs)

    keeping._keeps_arguments = True  # type: ignore[attr-defined]
    cls.__init__ = keeping  # type: ignore[misc]
    return cls


def keep_arguments_of_parts(package: str) -> None:
    """`keep_arguments` for what a package, as far as it has been imported, defines of modules (`nn.Module`)."""
    for name, module in list(sys.modules.items()):
        if name == package or name.startswith(package + "."):
            for part in list(vars(module).values()):
                if isinstance(part, type) and issubclass(part, nn.Module) and part.__module__ == name:
                    keep_arguments(part)


def keeps_arguments(cls: type) -> bool:
    """Whether the constructor that objects of this class are made by keeps its arguments."""
    return hasattr(cls.__init__, "_keeps_arguments")  # type: ignore[misc]


def kept_arguments(thing: object) -> dict[str, Any]:
    """What the constructor of an object got, by name; further keyword arguments stand among the named ones."""
    return thing.__dict__["_arguments"]


def changed(module: Module, arguments: Mapping[str, Any] | None = None, **parts: nn.Module) -> Module:
    """A copy of a module on the same weights with other parts, which keeps these arguments in the place of its own."""
    copied = copy.copy(module)
    copied._modules = {**module._modules, **parts}
    copied.__dict__["_arguments"] = {**module.__dict__.get("_arguments", {}), **(arguments or {})}
    return copied


def call_with(cls: type, arguments: Mapping[str, Any]) -> Any:
    """An object made from what `kept_arguments` gave; raises TypeError as a call does."""
    signature = inspect.signature(cls)
    named = [p.name for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD and p.name in arguments]
    bound = inspect.BoundArguments(signature, OrderedDict((name, arguments[name]) for name in named))
    others = {name: value for name, value in arguments.items() if name not in named}
    return cls(*bound.args, **bound.kwargs, **others)


def _by_name(bound: inspect.BoundArguments) -> dict[str, Any]:
    _, *parameters = bound.signature.parameters.values()  # but for self
    arguments: dict[str, Any] = {}
    for parameter in parameters:
        value = _kept(bound.arguments[parameter.name])
        if parameter.kind is parameter.VAR_KEYWORD:
            arguments |= value
        elif parameter.kind is not parameter.VAR_POSITIONAL or value:
            arguments[parameter.name] = value
    return arguments


def _kept(value: Any) -> Any:
    """The value as it is now: containers copied, as lists and dicts, since the caller may change them later.

    A function that has no name to find it by could not be described, nor pickled: an ellipsis stands for it.
    """
    if isinstance(value, (list, tuple)):
        return [_kept(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _kept(item) for key, item in value.items()}
    if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
        return value.detach()
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    if isinstance(value, functools.partial):
        function = _kept(value.func)
        return function if function is ... else functools.partial(function, *_kept(value.args), **_kept(value.keywords))
    if isinstance(value, FunctionType) and "<" in value.__qualname__:
        return ...
    return value
