"""One thread of the processor where several would wait for each other."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["one_thread"]

# Threads of Python inside the block, and how many threads torch had there before.
_inside: dict[int, int] = {}


@contextmanager
def one_thread() -> Iterator[int]:
    """While the block lasts, tensor operations stay on the thread that calls them; yields how many torch had before.

    Torch splits each large operation over threads that wait for each other at its end. For operations of microseconds
    that gains little on an idle machine, and on a busy one each wait lasts until the system schedules the last thread
    again: milliseconds. Threads started inside inherit the setting. Blocks may be nested, and be in several threads of
    Python at once.

    >>> with one_thread() as before:
    ...     inside = torch.get_num_threads()
    >>> inside, torch.get_num_threads() == before
    (1, True)
    """
    own = threading.get_ident()
    if own in _inside:
        yield _inside[own]
        return
    # A thread that began while others were inside has inherited their one.
    before = max(torch.get_num_threads(), *_inside.values(), 1)
    _inside[own] = before
    torch.set_num_threads(1)
    try:
        yield before
    finally:
        del _inside[own]
        torch.set_num_threads(before)
