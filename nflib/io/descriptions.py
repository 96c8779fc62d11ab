"""Objects as JSON, by the names of their classes and what their constructors got, and back.

    {"class": "nflib.transforms:Reverse", "arguments": {"frame_length": 4, "within_tokens": false}}

Names are ``module:qualified.name``. Beside plain values, arguments may be other such objects (one that stands in two
places has an "id", and is elsewhere the "same"), tensors (kept with the weights), dtypes, classes and functions of a
module (a "reference"), and `functools.partial` of these. What a file names is looked up in nflib, molecular, video,
nflows and torch.nn, which alone are imported; of other modules, classes that keep their arguments, once the user has
imported them. Nothing else is run.
"""

from __future__ import annotations

import functools
import inspect
import json
import math
import sys
from collections.abc import Iterator, Mapping
from importlib import import_module
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from nflib.dtypes import dtype_name
from nflib.io.arguments import call_with, keeps_arguments, kept_arguments

# Its modules keep no arguments, but by its own convention attributes of the same names.
TORCH = ("torch.nn",)
ALLOWED = ("nflib", "molecular", "video", "nflows", *TORCH)
SHAPES = [
    {"class", "arguments"},
    {"class", "arguments", "id"},
    {"same"},
    {"tensor"},
    {"dtype"},
    {"reference"},
    {"partial", "arguments", "keywords"},
]
# Annotations of parameters that take a number.
NUMBERS = ("int", "float", "int | None", "float | None", int, float)
# Classes that once had other names, which saved models still know them by.
RENAMED = {
    "nflib.continuous": {
        "Blockwise": "BlockwiseVelocity",
        "Guided": "GuidedVelocity",
        "Linear": "LinearPath",
        "Refined": "RefinedVelocity",
        "Trigonometric": "TrigonometricPath",
        "TwoSided": "TwoSidedPath",
        "VarianceExploding": "VarianceExplodingPath",
        "VariancePreserving": "VariancePreservingPath",
    },
    "nflib.transforms": {
        "AutoregressiveTransform": "TransformerAffineAutoregressive",
        "Exponential": "ExponentialScale",
        "Guided": "GuidedAutoregressive",
        "Independent": "IndependentTokenMap",
        "InnerAutoregressive": "AutoregressiveTokenMap",
        "Softplus": "SoftplusScale",
    },
}
# Where a tensor's name begins so, it belongs to a description, not to the weights.
TENSOR = "config/"


class CannotDescribe(ValueError):
    """There are no words for an object, such as a function without a name."""


def describe(arguments: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Arguments as JSON takes them, and the tensors among them by the names that they have in it.

    Raises:
        CannotDescribe: naming the first value that has no description.
    """
    describer = _Describer()
    return describer.named(arguments), describer.tensors


def description_of(thing: object) -> dict[str, Any] | None:
    """The description of an object in plain JSON; None where there are no words for it."""
    try:
        description: dict[str, Any] = json.loads(json.dumps(describe({"it": thing})[0]["it"]))
    except (CannotDescribe, KeyError):  # of a module whose constructor was not called
        return None
    return description


def changes(before: Any, now: Any, name: str = "model") -> Iterator[tuple[str, Any, Any]]:
    """Where two descriptions differ: name, value before and value now.

    What one of them does not have is left out, since versions add arguments.

    >>> then = {"class": "nflib.flows:TARFlow", "arguments": {"head_dim": 8, "channels": 32}}
    >>> list(changes(then, {"class": "nflib.flows:TARFlow", "arguments": {"head_dim": 16, "mlp": "gelu"}}))
    [('head_dim', 8, 16)]
    """
    if isinstance(before, dict) and isinstance(now, dict):
        is_object = set(now) in SHAPES
        for key in [key for key in now if key in before and not (is_object and key in ("id", "same", "tensor"))]:
            then, today = before[key], now[key]
            if not is_object:
                yield from changes(then, today, key)
            elif key in ("class", "reference"):
                # A class of a program's own is of __main__ in one process, and of its module in another.
                if _present_name(then)[1] != _present_name(today)[1]:
                    yield name, then, today
            elif isinstance(today, dict) and isinstance(then, dict) and key in ("arguments", "keywords"):
                for argument in [argument for argument in today if argument in then]:
                    yield from changes(then[argument], today[argument], argument)
            else:
                yield from changes(then, today, name)
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for one, other in zip(before, now, strict=True):
            yield from changes(one, other, name)
    elif not _mean_the_same(before, now):
        then, today = (value.get("class") if isinstance(value, dict) else value for value in (before, now))
        yield name, then, today


def rebuild(cls: type, arguments: Mapping[str, Any], tensors: Mapping[str, Tensor], largest: int | None = None) -> Any:
    """An object of the class from the `describe`d arguments of its constructor.

    Args:
        largest: the largest integer that a constructor of ours, all of whose integers are sizes, may be given.

    Raises:
        ValueError: a name leads to nothing that may be used, or a size is too large; and whatever constructors raise.
    """
    return _Rebuilder(tensors, largest).call(cls, arguments)


def name_of(thing: type | FunctionType) -> tuple[str, str]:
    """The shortest public module in which a class or function can be found, and its name there.

    `nflib.flows` and `TARFlow`, in whichever file of nflib.flows it stands, so that files may be moved.
    """
    packages = thing.__module__.split(".")
    for length in range(1, len(packages)):
        module = ".".join(packages[:length])
        if _belongs(module, ALLOWED) and _attribute(sys.modules.get(module), thing.__qualname__) is thing:
            return module, thing.__qualname__
    return thing.__module__, thing.__qualname__


def find_class(name: Any) -> type:
    """The class of a name, imported if it is one of ours; raises ValueError where it is none that may be built."""
    thing = _find(name)
    if isinstance(thing, type) and (keeps_arguments(thing) or _is_of_torch(thing)):
        return thing
    raise ValueError(f"{name} is no class that can be built from a file.")


def _find(name: Any) -> Any:
    if not isinstance(name, str) or name.count(":") != 1:
        raise ValueError(f"{name!r} is no name of the form module:class.")
    module, qualname = _present_name(name)
    if _belongs(module, ALLOWED) and "__main__" not in module:
        try:
            import_module(module)
        except ModuleNotFoundError as error:
            raise ValueError(f"{name} is unknown to this version, or misses a package ({error}).") from error
    if module not in sys.modules:
        raise ValueError(f"{name} is not known here: import {module}, whose class it is, before.")
    thing = _attribute(sys.modules[module], qualname)
    if thing is None:
        raise ValueError(f"there is no {qualname} in {module}.")
    return thing


def _present_name(name: str) -> tuple[str, str]:
    """Module and class of a name ``module:class``, which may be a former one."""
    module, _, qualname = name.partition(":")
    return module, RENAMED.get(module, {}).get(qualname, qualname)


def _mean_the_same(before: Any, now: Any) -> bool:
    """Whether two values are equal, but for rounding, as some are fitted to data; one number may stand for a list."""
    for several, one in ((before, now), (now, before)):
        if isinstance(several, list) and isinstance(one, int | float):
            return bool(several) and all(value == one for value in several)
    if isinstance(before, float) and isinstance(now, float):
        return math.isclose(before, now, rel_tol=1e-5, abs_tol=1e-12) or (math.isnan(before) and math.isnan(now))
    return bool(before == now)


def _reference(name: Any) -> Any:
    thing = _find(name)
    named = isinstance(thing, FunctionType) or (isinstance(thing, type) and issubclass(thing, nn.Module))
    if named and _belongs(thing.__module__, ALLOWED):
        return thing
    raise ValueError(f"{name} is no function or module of {', '.join(ALLOWED)}.")


def _attribute(module: Any, qualname: str) -> Any:
    """None where there is no such attribute."""
    return functools.reduce(lambda thing, name: getattr(thing, name, None), qualname.split("."), module)


def _belongs(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == package or module.startswith(package + ".") for package in packages)


def _is_of_torch(cls: type) -> bool:
    return issubclass(cls, nn.Module) and _belongs(cls.__module__, TORCH)


def _attributes(part: nn.Module) -> dict[str, Any]:
    """The arguments of a module of torch.nn, from its attributes; raises CannotDescribe without one."""
    arguments: dict[str, Any] = {}
    if type(part).__init__ is nn.Module.__init__ or isinstance(part, nn.Identity):
        return arguments
    for name, parameter in inspect.signature(type(part)).parameters.items():
        if name in ("device", "dtype") or name.startswith("_"):
            continue
        if isinstance(part, (nn.Sequential, nn.ModuleList)):
            value: Any = list(part)
        else:
            value = getattr(part, name, ...)
        if value is ... or parameter.kind is parameter.VAR_KEYWORD:
            raise CannotDescribe(f"{type(part).__name__} does not keep its {name}.")
        arguments[name] = value is not None and value is not False if name == "bias" else value
    return arguments


class _Describer:
    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._parts: dict[int, dict[str, Any]] = {}
        self._number = 0

    def named(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments, which may have any names: they stand where no object can."""
        return {name: self.value(value) for name, value in arguments.items()}

    def mapping(self, values: Mapping[str, Any]) -> dict[str, Any]:
        if not all(isinstance(name, str) for name in values) or set(values) in SHAPES:
            raise CannotDescribe(f"a mapping with the keys {', '.join(map(repr, values))} cannot be told in JSON.")
        return self.named(values)

    def value(self, value: Any) -> Any:
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        if isinstance(value, (list, tuple)):
            return [self.value(item) for item in value]
        if isinstance(value, Mapping):
            return self.mapping(value)
        if isinstance(value, torch.dtype):
            return {"dtype": dtype_name(value)}
        if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
            name = f"{TENSOR}{len(self.tensors)}"
            self.tensors[name] = value.detach()
            return {"tensor": name}
        if isinstance(value, functools.partial):
            return {
                "partial": self.value(value.func),
                "arguments": self.value(value.args),
                "keywords": self.named(value.keywords),
            }
        if isinstance(value, (type, FunctionType)):
            if not _belongs(value.__module__, ALLOWED):
                raise CannotDescribe(f"{value.__qualname__} is not looked up in {value.__module__}, where it stands.")
            return {"reference": self._name(value)}
        if value is ...:  # as `nflib.io.arguments` keeps it
            raise CannotDescribe("a lambda has no name to find it by; give a functools.partial of a class or function.")
        return self._part(value)

    def _part(self, part: Any) -> dict[str, Any]:
        known = self._parts.get(id(part))
        if known is not None:
            if "id" not in known:
                known["id"] = self._number = self._number + 1
            return {"same": known["id"]}
        if keeps_arguments(type(part)):
            arguments = kept_arguments(part)
        elif _is_of_torch(type(part)):
            arguments = _attributes(part)
        else:
            raise CannotDescribe(f"{type(part).__qualname__} does not keep its arguments.")
        description: dict[str, Any] = {"class": self._name(type(part)), "arguments": {}}
        self._parts[id(part)] = description
        description["arguments"] |= self.named(arguments)
        return description

    def _name(self, thing: type | FunctionType) -> str:
        module, qualname = name_of(thing)
        if _attribute(sys.modules.get(module), qualname) is not thing:
            raise CannotDescribe(f"{qualname} cannot be found by its name in {module}.")
        return f"{module}:{qualname}"


class _Rebuilder:
    def __init__(self, tensors: Mapping[str, Tensor], largest: int | None):
        self._tensors = tensors
        self._largest = largest
        self._parts: dict[Any, Any] = {}

    def call(self, cls: type, arguments: Mapping[str, Any]) -> Any:
        arguments = getattr(cls, "current_arguments", dict)(arguments)
        largest = self._largest if _belongs(cls.__module__, ALLOWED) else None
        parameters = inspect.signature(cls).parameters
        for name, value in arguments.items():
            # To Python, True is the number 1.
            if isinstance(value, bool) and name in parameters and parameters[name].annotation in NUMBERS:
                raise ValueError(f"{name} is {value}, where a number belongs.")
        return call_with(cls, self.named(arguments, largest))

    def named(self, arguments: Mapping[str, Any], largest: int | None) -> dict[str, Any]:
        return {name: self.value(value, largest) for name, value in arguments.items()}

    def value(self, value: Any, largest: int | None) -> Any:
        if isinstance(value, int) and largest is not None and abs(value) > largest:
            raise ValueError(f"{value} is no size that fits weights of this number.")
        if isinstance(value, float) and math.isnan(value):
            raise ValueError("NaN is no argument of anything.")
        if isinstance(value, list):
            return [self.value(item, largest) for item in value]
        if not isinstance(value, dict):
            return value
        if set(value) not in SHAPES:
            return self.named(value, largest)
        if "class" in value:
            part = self.call(find_class(value["class"]), value["arguments"])
            if "id" in value:
                self._parts[value["id"]] = part
            return part
        if "same" in value:
            return self._parts[value["same"]]
        if "tensor" in value:
            return self._tensors[value["tensor"]].clone()
        if "dtype" in value:
            dtype = getattr(torch, str(value["dtype"]), None)
            if not isinstance(dtype, torch.dtype):
                raise ValueError(f"{value['dtype']!r} is no dtype.")
            return dtype
        if "partial" in value:
            function = self.value(value["partial"], largest)
            arguments, keywords = self.value(value["arguments"], largest), self.named(value["keywords"], largest)
            return functools.partial(function, *arguments, **keywords)
        return _reference(value["reference"])
