"""Computing within `torch.inference_mode` and by tensors of it, within `torch.autocast`, and in traced programs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from nflib.contexts import map_context
from nflib.dtypes import widened

Method = TypeVar("Method", bound=Callable[..., Any])


def differentiates(method: Method) -> Method:
    """A method ``(inputs, context=None, …)`` that takes derivatives: by ordinary tensors, in ordinary mode."""

    @functools.wraps(method)
    def outside(self: Any, inputs: Any, context: Any = None, *args: Any, **kwargs: Any) -> Any:
        parts = (inputs, *(context if isinstance(context, tuple) else (context,)))
        if not torch.is_inference_mode_enabled() and not any(map(_is_inference, parts)):
            return method(self, inputs, context, *args, **kwargs)
        recorded = torch.is_grad_enabled()  # which leaving the mode would switch on
        with torch.inference_mode(False), torch.set_grad_enabled(recorded):
            inputs, *rest = (part.clone() if _is_inference(part) else part for part in parts)
            return method(self, inputs, tuple(rest) if isinstance(context, tuple) else rest[0], *args, **kwargs)

    return cast(Method, outside)


def without_autocast(method: Method) -> Method:
    """A method ``(inputs, context=None, …)`` that computes in single precision or better under `torch.autocast`, too.

    For log-determinants of maps of which each pass is exact: what is rounded to half precision is no smooth map.
    """

    @functools.wraps(method)
    def outside(self: Any, inputs: Tensor, context: Any = None, *args: Any, **kwargs: Any) -> Any:
        device = inputs.device.type
        if not torch.is_autocast_enabled(device):
            return method(self, inputs, context, *args, **kwargs)
        with torch.autocast(device, enabled=False):
            return method(self, widened(inputs), map_context(widened, context), *args, **kwargs)

    return cast(Method, outside)


def is_traced() -> bool:
    """Whether a graph is being traced, or `torch.func` at work: no number of a tensor can be looked at."""
    return torch.compiler.is_compiling() or within_torch_func()


def within_torch_func() -> bool:
    """Whether a transform of `torch.func`, such as vmap or grad, is at work; torch has no public word for it."""
    return torch._C._are_functorch_transforms_active()


def _is_inference(part: Any) -> bool:
    return isinstance(part, Tensor) and part.is_inference()
