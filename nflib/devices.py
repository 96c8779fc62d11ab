"""Devices by name."""

from __future__ import annotations

import torch


def usable_device(device: str | torch.device) -> torch.device:
    """The device of that name; raises ValueError for a word that names none, or one that this machine lacks.

    >>> usable_device("cpu")
    device(type='cpu')
    """
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        # torch says at length that it was built without CUDA, or lists the backends that it knows.
        raise ValueError(f"there is no device {str(device)!r} here; choose cpu, or one that is.") from error
    return found


def table_device() -> torch.device:
    """The device on which to make what a model computes once and does not learn.

    It is torch's default device, but for the meta device: a model that is built there gets its weights later, and its
    tables are no weights.
    """
    device = torch.get_default_device()
    return torch.device("cpu") if device.type == "meta" else device
